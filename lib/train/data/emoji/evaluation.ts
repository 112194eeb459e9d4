import { MmError } from '../../../native/errors.js';
import { Rng } from '../rng.js';
import type { Item } from './batch.js';
import type { EmojiSelection } from './names.js';
import { EmojiQuestions } from './questions.js';
import type { Question, QuestionKind } from './questions.js';
import type { EmojiImages } from './render.js';

/** Questions about the held-out drawings, by kind. */
export type EvaluationSet = Record<QuestionKind, Item[]>;

/**
 * Every drawing of the held-out artist once with its name and once with its group, and, as in POPE, with one question
 * to be answered yes and one no. The same for every run with this seed.
 */
export function evaluationSet(selection: EmojiSelection, images: EmojiImages, seed = 0): EvaluationSet {
  const questions = new EmojiQuestions(selection);
  const set: EvaluationSet = { name: [], group: [], yesno: [] };
  for (const image of images.test) {
    const name = images.name[image];
    const add = (question: Question) => set[question.kind].push({ ...question, image });
    add(questions.name(name));
    add(questions.group(name));
    add(questions.yesNo(name, name));
    add(questions.yesNo(name, questions.negative(name, new Rng(seed, name))));
  }
  return set;
}

/**
 * Cuts questions into batches of one prompt length each, so that prompts need no padding when answers are generated.
 * Shorter prompts come first; within a length the order stays.
 */
export function promptBatches(items: readonly Item[], batchSize: number): Item[][] {
  if (!Number.isInteger(batchSize) || batchSize < 1) {
    throw new MmError('ERR_ARGUMENT', `batchSize: expected a positive integer, got ${batchSize}`);
  }
  const byLength = new Map<number, Item[]>();
  for (const item of items) {
    const list = byLength.get(item.promptWords.length);
    if (list) list.push(item);
    else byLength.set(item.promptWords.length, [item]);
  }
  const batches: Item[][] = [];
  for (const [, list] of [...byLength].sort(([a], [b]) => a - b)) {
    for (let at = 0; at < list.length; at += batchSize) batches.push(list.slice(at, at + batchSize));
  }
  return batches;
}
