import { MmError } from '../../../native/errors.js';
import { Rng } from '../rng.js';
import {
  checkAugment,
  defaultAugment,
  drawTransform,
  imagenetNormalisation,
  plainTransform,
  sampleImage,
} from './augment.js';
import type { AugmentOptions, ImageTransform, Normalisation } from './augment.js';
import type { EmojiSelection } from './names.js';
import { EmojiQuestions, questionKinds } from './questions.js';
import type { Question, QuestionKind } from './questions.js';
import type { EmojiImages } from './render.js';
import type { EmojiTokens } from './tokens.js';

/** Rows of one step; arrays are row-major and hold nothing but this batch. */
export interface Batch {
  /** rows, B */
  size: number;
  /** padded tokens a row, L: a multiple of `lengthMultiple`, so that few shapes occur */
  length: number;
  /** (B, L) i32, padded on the right with 0 */
  inputIds: Int32Array<ArrayBuffer>;
  /** (B, L) i32: 0, 1, 2, …; 0 at padding */
  positionIds: Int32Array<ArrayBuffer>;
  /** (B, L) u8: 1 at tokens, 0 at padding */
  attentionMask: Uint8Array<ArrayBuffer>;
  /**
   * (B, L) i32: the token itself at the answer and its `<eos>`, -100 elsewhere. Not shifted: the logits at t - 1 are to
   * predict labels[t].
   */
  labels: Int32Array<ArrayBuffer>;
  /** (B, L) u8: 1 where labels is not -100 */
  answerMask: Uint8Array<ArrayBuffer>;
  /** (B, 3, S, S) f32, normalised */
  pixelValues: Float32Array<ArrayBuffer>;
  /** (B) i32: every image counts, all 1 */
  imageFlags: Int32Array<ArrayBuffer>;
}

/** A question about one image. */
export interface Item extends Question {
  /** index into {@link EmojiImages} */
  image: number;
}

/** What a batch is made of; plain data, so that it can be sent to a worker thread. */
export interface BatchOptions {
  selection: EmojiSelection;
  images: EmojiImages;
  tokens: EmojiTokens;
  batchSize: number;
  seed: number;
  /** shares of the question kinds, any positive unit; default name 0.6, group 0.1, yesno 0.3 */
  kinds?: Partial<Record<QuestionKind, number>>;
  /** changes to {@link defaultAugment}, or false for unchanged images */
  augment?: Partial<AugmentOptions> | false;
  /** S, pixels a side of pixelValues; default 64 */
  imageSize?: number;
  /** `<IMG_CONTEXT>` tokens an image; default 16 */
  imageTokens?: number;
  /** L is rounded up to a multiple of this; default 8 */
  lengthMultiple?: number;
  normalisation?: Normalisation;
}

const defaultKinds: Record<QuestionKind, number> = { name: 0.6, group: 0.1, yesno: 0.3 };

// Streams of the generator that must not meet.
const orderStream = 1;
const sampleStream = 2;

/**
 * Makes training batches. Batch `step` is a pure function of (options, step): the training images in an order
 * shuffled anew every epoch, batches running on across the epoch's end, each image with one question and one
 * augmentation drawn from (seed, epoch, image). To resume is to ask for the next step.
 */
export class EmojiBatches {
  readonly #options: Required<Omit<BatchOptions, 'augment' | 'kinds'>>;
  readonly #augment: AugmentOptions | undefined;
  readonly #kinds: readonly number[];
  readonly #questions: EmojiQuestions;
  #order: { epoch: number; images: Int32Array } | undefined;

  constructor(options: BatchOptions) {
    this.#options = {
      ...options,
      imageSize: options.imageSize ?? 64,
      imageTokens: options.imageTokens ?? 16,
      lengthMultiple: options.lengthMultiple ?? 8,
      normalisation: options.normalisation ?? imagenetNormalisation,
    };
    for (const key of ['batchSize', 'imageSize', 'imageTokens', 'lengthMultiple'] as const) {
      const value = this.#options[key];
      if (!Number.isInteger(value) || value < 1) {
        throw new MmError('ERR_ARGUMENT', `${key}: expected a positive integer, got ${value}`);
      }
    }
    if (!Number.isSafeInteger(options.seed) || options.seed < 0) {
      throw new MmError('ERR_ARGUMENT', `seed: expected an integer from 0 to 2^53 - 1, got ${options.seed}`);
    }
    if (options.augment !== false) {
      this.#augment = { ...defaultAugment, ...options.augment };
      checkAugment(this.#augment);
    }
    const kinds = options.kinds ?? defaultKinds;
    this.#kinds = questionKinds.map((kind) => kinds[kind] ?? 0);
    if (!this.#kinds.every((share) => share >= 0) || !this.#kinds.some((share) => share > 0)) {
      throw new MmError('ERR_ARGUMENT', 'kinds: expected shares that are not negative and not all 0');
    }
    this.#questions = new EmojiQuestions(options.selection);
  }

  /** Steps after which every training image has come once. */
  get stepsPerEpoch(): number {
    return this.#options.images.train.length / this.#options.batchSize;
  }

  /** The questions of a training step. */
  items(step: number): Item[] {
    return this.#draw(step).map(({ item }) => item);
  }

  /** The batch of a training step, augmented. */
  batch(step: number): Batch {
    const drawn = this.#draw(step);
    return this.#collate(
      drawn.map(({ item }) => item),
      (row) => drawn[row].transform,
    );
  }

  /** Given questions with their answers and unchanged images: for a validation loss. */
  plain(items: readonly Item[]): Batch {
    return this.#collate(items, () => plainTransform);
  }

  /**
   * Given questions without their answers, for generation: no labels, and no padding as long as all prompts have one
   * length (`promptBatches` sees to that).
   */
  prompts(items: readonly Item[]): Batch {
    return this.#collate(items, () => plainTransform, true);
  }

  #draw(step: number): { item: Item; transform: ImageTransform }[] {
    if (!Number.isSafeInteger(step) || step < 0) {
      throw new MmError('ERR_ARGUMENT', `step: expected an integer from 0, got ${step}`);
    }
    const { images, batchSize, seed, selection } = this.#options;
    const count = images.train.length;
    return Array.from({ length: batchSize }, (_, row) => {
      const position = step * batchSize + row;
      const epoch = Math.floor(position / count);
      const image = this.#epochOrder(epoch)[position % count];
      const name = images.name[image];
      const rng = new Rng(seed, sampleStream, epoch, image);
      const transform = this.#augment
        ? drawTransform(rng, this.#augment, selection.names[name].mirrors)
        : plainTransform;
      const question = this.#questions.buildSample(name, this.#kind(rng), rng);
      return { item: { ...question, image }, transform };
    });
  }

  #epochOrder(epoch: number): Int32Array {
    if (this.#order?.epoch !== epoch) {
      const { images, seed } = this.#options;
      this.#order = { epoch, images: new Rng(seed, orderStream, epoch).shuffle(images.train.slice()) };
    }
    return this.#order.images;
  }

  #kind(rng: Rng): QuestionKind {
    let left = rng.uniform(
      0,
      this.#kinds.reduce((sum, share) => sum + share, 0),
    );
    const index = this.#kinds.findIndex((share) => (left -= share) < 0);
    return questionKinds[index];
  }

  #ids(words: readonly string[]): number[] {
    return words.map((word) => {
      const id = this.#options.tokens.words.get(word);
      if (id === undefined) throw new MmError('ERR_ARGUMENT', `tokens has no id for the word "${word}"`);
      return id;
    });
  }

  /** `<bos> <img> <IMG_CONTEXT>… </img> prompt answer <eos>` */
  #collate(items: readonly Item[], transformOf: (row: number) => ImageTransform, promptsOnly = false): Batch {
    const { images, imageSize, imageTokens, lengthMultiple, normalisation, tokens: own } = this.#options;
    const context = new Array<number>(imageTokens).fill(own.imageContext);
    const head = [own.bos, own.imageStart, ...context, own.imageEnd];
    const rows = items.map((item) => {
      const prompt = [...head, ...this.#ids(item.promptWords)];
      const answer = promptsOnly ? [] : [...this.#ids(item.answerWords), own.eos];
      return { answerAt: prompt.length, tokens: [...prompt, ...answer] };
    });
    const longest = Math.max(0, ...rows.map(({ tokens }) => tokens.length));
    const length = promptsOnly ? longest : Math.ceil(longest / lengthMultiple) * lengthMultiple;
    const size = items.length;
    const batch: Batch = {
      size,
      length,
      inputIds: new Int32Array(size * length),
      positionIds: new Int32Array(size * length),
      attentionMask: new Uint8Array(size * length),
      labels: new Int32Array(size * length).fill(-100),
      answerMask: new Uint8Array(size * length),
      pixelValues: new Float32Array(size * 3 * imageSize * imageSize),
      imageFlags: new Int32Array(size).fill(1),
    };
    rows.forEach(({ tokens, answerAt }, row) => {
      tokens.forEach((token, t) => {
        const at = row * length + t;
        batch.inputIds[at] = token;
        batch.positionIds[at] = t;
        batch.attentionMask[at] = 1;
        if (t < answerAt) return;
        batch.labels[at] = token;
        batch.answerMask[at] = 1;
      });
      sampleImage(
        images.pixels,
        items[row].image * images.size * images.size * 3,
        images.size,
        transformOf(row),
        normalisation,
        batch.pixelValues,
        row * 3 * imageSize * imageSize,
        imageSize,
      );
    });
    return batch;
  }
}
