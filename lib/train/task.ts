import type { ModelConfig } from '../models/config.js';
import { WordTokenizer } from '../io/tokenizer/word.js';
import type { Tokenizer } from '../io/tokenizer/tokenizer.js';
import { MmError } from '../native/errors.js';
import type { DataConfig } from './config.js';
import {
  EmojiBatches,
  emojiCorpus,
  emojiTokens,
  evaluationSet,
  loadEmojiImages,
  selectEmoji,
  type BatchOptions,
  type EmojiImages,
  type EmojiSelection,
  type EmojiTokens,
  type EvaluationSet,
  type Item,
} from './data/emoji/index.js';
import { Rng } from './data/rng.js';
import type { Progress } from './progress.js';

/** The emoji task as a run needs it: drawings split three ways, vocabulary, questions. */
export interface EmojiTask {
  readonly selection: EmojiSelection;
  /** `train` without the validation drawings */
  readonly images: EmojiImages;
  readonly tokenizer: Tokenizer;
  readonly tokens: EmojiTokens;
  /** questions about the drawings kept back from training; empty sets if none were */
  readonly validation: EvaluationSet;
  /** questions about the unseen artist's drawings */
  readonly test: EvaluationSet;
  /** tokens of the longest answer, its end included */
  readonly longestAnswer: number;
  /** makes prompts with unchanged images */
  readonly prompts: EmojiBatches;
  /** options of training batches */
  batches(options: { batchSize: number; seed: number }): BatchOptions;
}

export interface TaskOptions {
  /** default: a new vocabulary of the task's words */
  readonly tokenizer?: Tokenizer;
  /** names by which the selection is cut down, for tests */
  readonly keep?: (index: number) => boolean;
  readonly progress?: Progress;
  readonly signal?: AbortSignal;
}

/** Pixels a side and tokens of one image. */
export interface ImageShape {
  imageSize: number;
  patchSize: number;
}

/** The same split for every run: teacher and student must not see each other's validation drawings. */
const splitSeed = 20_250_213;

/** Loads drawings (rendered once, then cached), splits them and prepares the questions. @throws MmError ERR_CONFIG, ERR_IMAGE, ERR_FILE_IO */
export async function loadEmojiTask(data: DataConfig, { imageSize, patchSize }: ImageShape, options: TaskOptions = {}): Promise<EmojiTask> {
  const { keep, progress, signal } = options;
  const all = selectEmoji({ heldOut: data.heldOut, minArtists: data.minArtists });
  const selection = keep ? cut(all, keep) : all;
  let drawing = false;
  const images = await loadEmojiImages(selection, {
    cacheDir: data.cacheDir,
    signal,
    onProgress: (done, total) => {
      if (!drawing) progress?.start('drawing emoji', total);
      drawing = true;
      progress?.update(done);
    },
  });
  if (drawing) progress?.stop();
  if (data.validation >= images.train.length)
    throw new MmError(
      'ERR_CONFIG',
      `data.validation keeps ${data.validation} of ${images.train.length} drawings back; some must remain for training`,
    );
  const order = new Rng(splitSeed).shuffle(images.train.slice());
  const kept = order.slice(0, data.validation).sort();
  const train = order.slice(data.validation).sort();
  const tokenizer = options.tokenizer ?? WordTokenizer.build(emojiCorpus(selection));
  const tokens = emojiTokens(selection, tokenizer);
  const split = { ...images, train };
  const common = { selection, images: split, tokens, imageSize, imageTokens: (imageSize / patchSize) ** 2 / 4 };
  const words = [...selection.names.map((n) => n.words), ...selection.groups];
  return {
    selection,
    images: split,
    tokenizer,
    tokens,
    validation: evaluationSet(selection, { ...split, test: kept }),
    test: evaluationSet(selection, split),
    longestAnswer: Math.max(...words.map((w) => w.length)) + 1,
    prompts: new EmojiBatches({ ...common, batchSize: 1, seed: 0, augment: false }),
    batches: ({ batchSize, seed }) => ({ ...common, batchSize, seed, kinds: data.kinds, augment: data.augment }),
  };
}

/** The task for a model that was trained on it. @throws MmError ERR_CONFIG where the vocabulary is another one */
export function imageShapeOf(config: ModelConfig): ImageShape {
  return { imageSize: config.vision.imageSize, patchSize: config.vision.patchSize };
}

/** Every `count`-th part of a list, from its first on. */
export function spread<T>(items: readonly T[], count: number): T[] {
  if (items.length <= count) return [...items];
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)]!);
}

/** A smaller selection with its indices renumbered. */
function cut(all: EmojiSelection, keep: (index: number) => boolean): EmojiSelection {
  const kept = all.names.flatMap((_, index) => (keep(index) ? [index] : []));
  const groups = [...new Set(kept.map((index) => all.names[index]!.group))].sort((a, b) => a - b);
  return {
    ...all,
    groups: groups.map((group) => all.groups[group]!),
    names: kept.map((index) => {
      const name = all.names[index]!;
      return { ...name, group: groups.indexOf(name.group), twins: name.twins.map((t) => kept.indexOf(t)).filter((t) => t >= 0) };
    }),
  };
}

export type { Item };
