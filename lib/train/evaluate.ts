import { generateTokens } from '../models/generate.js';
import type { VisionLanguageModel } from '../models/model.js';
import { MmError } from '../native/errors.js';
import {
  promptBatches,
  scoreExact,
  scorePope,
  type EvaluationSet,
  type Item,
  type PopeScore,
  type QuestionKind,
  type Score,
} from './data/emoji/index.js';
import type { Progress } from './progress.js';
import type { EmojiTask } from './task.js';

export interface AnswerOptions {
  /** questions answered at once; default 128 */
  readonly batchSize?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Greedy answers as words, in the order of the questions: prompts of one length at a time are consumed at once, then the
 * state decodes token by token.
 */
export async function answer(model: VisionLanguageModel, task: EmojiTask, items: readonly Item[], options: AnswerOptions = {}): Promise<string[][]> {
  const { batchSize = 128, signal, onProgress } = options;
  const answers = new Map<Item, string[]>();
  for (const batch of promptBatches(items, batchSize)) {
    if (signal?.aborted) throw new MmError('ERR_ABORTED', `the evaluation was stopped after ${answers.size} of ${items.length} questions`);
    const rows = await decode(model, task, batch);
    batch.forEach((item, i) => answers.set(item, rows[i]!));
    onProgress?.(answers.size, items.length);
  }
  return items.map((item) => answers.get(item)!);
}

/** One batch of prompts of one length. */
async function decode(model: VisionLanguageModel, task: EmojiTask, items: readonly Item[]): Promise<string[][]> {
  const rows = await generateTokens(model, task.prompts.prompts(items), { maxTokens: task.longestAnswer, stopTokens: [task.tokens.eos] });
  return rows.map((row) => (row.length === 0 ? [] : task.tokenizer.decode(row).split(' ')));
}

export interface Scores {
  /** whole names, exact */
  name?: Score;
  group?: Score;
  /** POPE's figures for "is there a ... ?" */
  yesno?: PopeScore;
}

export interface EvaluateOptions {
  readonly kinds?: readonly QuestionKind[];
  readonly batchSize?: number;
  readonly progress?: Progress;
  /** of the progress display */
  readonly title?: string;
  readonly signal?: AbortSignal;
}

/** Asks a model a set's questions of the given kinds (default: all) and scores the answers. */
export async function evaluate(
  model: VisionLanguageModel,
  task: EmojiTask,
  set: EvaluationSet,
  options: EvaluateOptions = {},
): Promise<Scores & { answers: Partial<Record<QuestionKind, string[][]>> }> {
  const { kinds = ['name', 'group', 'yesno'], progress, title = 'evaluating', batchSize, signal } = options;
  const total = kinds.reduce((sum, kind) => sum + set[kind].length, 0);
  const result: Scores & { answers: Partial<Record<QuestionKind, string[][]>> } = { answers: {} };
  let before = 0;
  progress?.start(title, total);
  try {
    for (const kind of kinds) {
      const items = set[kind];
      const answers = await answer(model, task, items, { batchSize, signal, onProgress: (done) => progress?.update(before + done) });
      before += items.length;
      result.answers[kind] = answers;
      if (kind === 'yesno') result.yesno = scorePope(items, answers);
      else result[kind] = scoreExact(items, answers);
    }
  } finally {
    progress?.stop();
  }
  return result;
}
