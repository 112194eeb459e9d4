import { MmError } from '../native/errors.js';
import { cast, gatherRows } from '../ops/index.js';
import { noGrad } from '../autograd/tape.js';
import { scope } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import type { Placement } from '../nn/parameter.js';
import type { ModelConfig } from './config.js';

/** Rows of token ids and their images, on the host; rows are padded on the right. */
export interface Batch {
  /** rows, B */
  size: number;
  /** tokens a row, L */
  length: number;
  /** (B, L) */
  inputIds: Int32Array;
  /** (B, L); default 0, 1, 2, … in every row */
  positionIds?: Int32Array | null;
  /** (B, L): 1 at tokens, 0 at padding, which stands on the right; only decoding needs it. Default all 1 */
  attentionMask?: Uint8Array | null;
  /** f32 (tiles, c, S, S), normalised; an array's S follows from its length and that of imageFlags */
  pixelValues?: Float32Array | Tensor | null;
  /** (tiles): tiles with 0 do not count. Default all 1; needed with an array of pixels */
  imageFlags?: ArrayLike<number> | null;
  /** with pixel shuffle behind the embedding layers: their ids and positions, one token a patch; B is 1 */
  patchIds?: Int32Array | null;
  patchPositionIds?: Int32Array | null;
}

/** Token ids of one stack on the device. */
export interface TokenInputs {
  length: number;
  /** i32 (B, L); ids of special tokens are 0 here */
  ids: Tensor;
  /** i32 (M) flat positions of special tokens, and (M) their rows in the special embedding */
  special: { at: Tensor; rows: Tensor } | null;
  /** i32 (1 | B, L) */
  positions: Tensor;
  /** tokens that a rotary table must cover */
  span: number;
  /** i32 (M) flat positions of `<IMG_CONTEXT>` */
  images: Tensor | null;
}

/** A batch on the device, ready for one or several forward passes. Plain data: a scope disposes its tensors. */
export interface ModelInputs {
  batch: number;
  /** what the embedding layers read; one token a patch under 'post' */
  embedding: TokenInputs;
  /** what the language layers read; the same as embedding under 'pre' */
  llm: TokenInputs;
  /** (tiles, c, S, S), compute dtype */
  pixels: Tensor | null;
  /** 'post': for every row of (B, L), its row in [embedding output (B, L') | merged image tokens] */
  merge: Tensor | null;
  /** valid tokens of each row; null when all are full */
  lengths: Int32Array | null;
}

/** Rows of token ids as one batch, padded on the right. */
export function batchOf(rows: readonly ArrayLike<number>[], images: Pick<Batch, 'pixelValues' | 'imageFlags'> = {}, padId = 0): Batch {
  const length = Math.max(0, ...rows.map((r) => r.length));
  const inputIds = new Int32Array(rows.length * length).fill(padId);
  const attentionMask = new Uint8Array(rows.length * length);
  rows.forEach((row, b) => {
    inputIds.set(Array.from(row), b * length);
    attentionMask.fill(1, b * length, b * length + row.length);
  });
  return { size: rows.length, length, inputIds, attentionMask, ...images };
}

const bad = (message: string): MmError => new MmError('ERR_ARGUMENT', message);

function checkSize(name: string, data: ArrayLike<number> | null | undefined, rows: number, columns: number): void {
  if (data && data.length !== rows * columns)
    throw new MmError('ERR_SHAPE', `${name} has ${data.length} entries; a batch of ${rows} rows x ${columns} has ${rows * columns}`);
}

/** Valid tokens of each row. @throws MmError where padding is not on the right, or a row is empty */
function rowLengths(mask: Uint8Array, rows: number, columns: number): Int32Array {
  return new Int32Array(rows).map((_, b) => {
    const row = mask.subarray(b * columns, (b + 1) * columns);
    const padding = row.indexOf(0);
    const n = padding < 0 ? columns : padding;
    if (row.indexOf(1, n) >= 0) throw bad(`attentionMask: row ${b} has padding before a token; pad on the right`);
    if (n === 0) throw bad(`attentionMask: row ${b} has no token`);
    return n;
  });
}

/** Checks a batch against the model and puts it on the device. @throws MmError ERR_ARGUMENT, ERR_SHAPE that say what does not fit */
export function prepareInputs(config: ModelConfig, placement: Placement, batch: Batch): ModelInputs {
  return noGrad(() => scope(() => prepare(config, placement, batch)));
}

function prepare(config: ModelConfig, placement: Placement, batch: Batch): ModelInputs {
  const { size, length, inputIds, positionIds, attentionMask } = batch;
  const { device } = placement;
  const ints = (data: Int32Array | readonly number[], shape: readonly number[] = [data.length]): Tensor =>
    Tensor.from(Int32Array.from(data), shape, { device });
  const rowsOf = config.textVocabulary + config.specialTokens;

  const tokens = (name: string, ids: Int32Array, columns: number, positions: Int32Array | null | undefined): TokenInputs => {
    const special: number[] = [];
    const images: number[] = [];
    ids.forEach((id, i) => {
      if (id < 0 || id >= rowsOf) {
        const where = `row ${Math.floor(i / columns)}, column ${i % columns}`;
        throw bad(`${name}: token ${id} in ${where} is outside the vocabulary [0, ${rowsOf})`);
      }
      if (id >= config.textVocabulary) special.push(i);
      if (id === config.imageToken) images.push(i);
    });
    const plain = special.length ? ids.map((id) => (id < config.textVocabulary ? id : 0)) : ids;
    return {
      length: columns,
      ids: ints(plain, [size, columns]),
      special: special.length ? { at: ints(special), rows: ints(special.map((i) => ids[i]! - config.textVocabulary)) } : null,
      positions: positions ? ints(positions, [size, columns]) : ints(new Int32Array(columns).map((_, i) => i), [1, columns]),
      span: positions ? positions.reduce((most, p) => Math.max(most, p + 1), columns) : columns,
      images: images.length ? ints(images) : null,
    };
  };

  if (size === 0 || length === 0) throw bad(`the prompt has no token: the batch is of ${size} rows x ${length}`);
  checkSize('inputIds', inputIds, size, length);
  checkSize('positionIds', positionIds, size, length);
  checkSize('attentionMask', attentionMask, size, length);
  const pixels = preparePixels(config, placement, batch);
  const llm = tokens('inputIds', inputIds, length, positionIds);
  const lengths = attentionMask ? rowLengths(attentionMask, size, length) : null;
  const common = { batch: size, llm, pixels, lengths: lengths?.some((n) => n < length) ? lengths : null };
  const patches = pixels ? (pixels.dim(2) / config.vision.patchSize) * (pixels.dim(3) / config.vision.patchSize) : 0;
  const tiles = pixels?.dim(0) ?? 0;

  if (config.vision.pixelShuffle === 'pre' || !pixels) {
    if (batch.patchIds && config.vision.pixelShuffle === 'pre') throw bad("patchIds are only read with pixel_shuffle_loc 'post'");
    checkImageTokens('inputIds', llm.images?.size ?? 0, tiles, patches / 4);
    return { ...common, embedding: llm, merge: null };
  }
  const { patchIds, patchPositionIds } = batch;
  if (!patchIds) throw bad("images with pixel_shuffle_loc 'post' need patchIds: the ids with one <IMG_CONTEXT> a patch");
  if (size !== 1) throw bad(`pixel_shuffle_loc 'post' takes one row with images at a time; the batch has ${size}`);
  checkSize('patchPositionIds', patchPositionIds, 1, patchIds.length);
  const embedding = tokens('patchIds', patchIds, patchIds.length, patchPositionIds);
  checkImageTokens('patchIds', embedding.images?.size ?? 0, tiles, patches);
  checkImageTokens('inputIds', llm.images?.size ?? 0, tiles, patches / 4);
  return { ...common, embedding, merge: ints(mergeOrder(inputIds, patchIds, config.imageToken)) };
}

function checkImageTokens(name: string, found: number, tiles: number, perTile: number): void {
  if (found === tiles * perTile) return;
  throw bad(
    `${name} has ${found} <IMG_CONTEXT> tokens, but the images give ${tiles * perTile} rows (${tiles} tiles x ${perTile}); ` +
      (tiles ? 'write one token a row' : 'give pixelValues, or leave the tokens out'),
  );
}

function mergeOrder(ids: Int32Array, patchIds: Int32Array, imageToken: number): number[] {
  const text = [...patchIds.keys()].filter((i) => patchIds[i] !== imageToken);
  const order: number[] = [];
  let image = patchIds.length;
  let next = 0;
  ids.forEach((id, i) => {
    if (id === imageToken) return order.push(image++);
    const from = text[next++];
    if (from === undefined || patchIds[from] !== id)
      throw bad(`inputIds and patchIds must agree in their text tokens; they differ at column ${i} of inputIds`);
    return order.push(from);
  });
  if (next !== text.length) throw bad(`patchIds has ${text.length} text tokens, inputIds ${next}; they must be the same`);
  return order;
}

function preparePixels(config: ModelConfig, placement: Placement, { pixelValues, imageFlags }: Batch): Tensor | null {
  if (!pixelValues) return null;
  const { channels, patchSize } = config.vision;
  let pixels: Tensor;
  if (pixelValues instanceof Tensor) pixels = pixelValues;
  else {
    const tiles = imageFlags?.length;
    if (tiles === undefined) throw bad('an array of pixelValues needs imageFlags, one a tile, to know its shape');
    const side = Math.sqrt(pixelValues.length / Math.max(1, tiles) / channels);
    if (!Number.isInteger(side)) {
      const got = `pixelValues has ${pixelValues.length} entries`;
      throw new MmError('ERR_SHAPE', `${got}, which is not ${tiles} square tiles of ${channels} channels`);
    }
    pixels = Tensor.from(pixelValues, [tiles, channels, side, side], { device: placement.device });
  }
  const [tiles, c, height, width] = pixels.shape;
  if (pixels.rank !== 4 || c !== channels || height !== width || height! % (2 * patchSize) !== 0)
    throw new MmError(
      'ERR_SHAPE',
      `pixelValues has shape [${pixels.shape.join(', ')}]; expected (tiles, ${channels}, S, S) with S a multiple of ${2 * patchSize}`,
    );
  if (imageFlags) {
    checkSize('imageFlags', imageFlags, tiles!, 1);
    const used = Array.from(imageFlags).flatMap((flag, i) => (flag === 1 ? [i] : []));
    if (used.length < tiles!) {
      const index = Tensor.from(Int32Array.from(used), [used.length], { device: placement.device });
      pixels = gatherRows({ x: pixels, index });
    }
  }
  if (pixels.dim(0) === 0) return null;
  return pixels.dtype === placement.dtype ? pixels : cast({ x: pixels }, { dtype: placement.dtype });
}
