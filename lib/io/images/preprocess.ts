import { MmError } from '../../native/errors.js';
import { resizeBicubic, type RgbImage } from './resize.js';
import { tileLayout, type TileLayout, type TilingOptions } from './tiling.js';

export interface PreprocessOptions extends TilingOptions {
  /** Per channel, on the 0..1 scale. Default ImageNet's. */
  readonly mean?: readonly [number, number, number];
  /** Per channel, on the 0..1 scale. Default ImageNet's. */
  readonly std?: readonly [number, number, number];
}

/** What the model's image input needs: T tiles of S x S pixels. */
export interface PreprocessedImage {
  /** (T, 3, S, S) f32, (u8 / 255 - mean) / std */
  readonly pixelValues: Float32Array;
  /** T */
  readonly tiles: number;
  readonly layout: TileLayout;
}

export const IMAGENET_MEAN = [0.485, 0.456, 0.406] as const;
export const IMAGENET_STD = [0.229, 0.224, 0.225] as const;

/**
 * Cuts an image: resized to cols x rows tiles, which follow row by row, then the thumbnail if the layout has one.
 * @param image (h, w, 3) u8; @returns (T, S, S, 3) u8
 */
export function cutTiles(image: RgbImage, layout: TileLayout): Uint8Array {
  const { cols, rows, imageSize: size, thumbnail, total } = layout;
  const whole = resizeBicubic(image, cols * size, rows * size).data;
  const tiles = new Uint8Array(total * size * size * 3);
  const stride = size * 3;
  let target = 0;
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      for (let y = 0; y < size; y++, target += stride) {
        const source = ((row * size + y) * cols + col) * stride;
        tiles.set(whole.subarray(source, source + stride), target);
      }
    }
  }
  if (thumbnail) tiles.set(resizeBicubic(image, size, size).data, target);
  return tiles;
}

/** (T, S, S, 3) u8 → (T, 3, S, S) f32. Rounded to f32 at every step, as torch does, hence bit for bit what the model saw. */
function normalize(tiles: Uint8Array, count: number, mean: readonly number[], std: readonly number[]): Float32Array {
  const area = tiles.length / 3 / count;
  const out = new Float32Array(tiles.length);
  const table = new Float32Array(256);
  const { fround } = Math;
  for (let channel = 0; channel < 3; channel++) {
    for (let value = 0; value < 256; value++) {
      table[value] = fround(fround(value / 255) - fround(mean[channel])) / fround(std[channel]);
    }
    for (let tile = 0; tile < count; tile++) {
      const source = tile * area * 3 + channel;
      const target = (tile * 3 + channel) * area;
      for (let i = 0; i < area; i++) out[target + i] = table[tiles[source + i * 3]];
    }
  }
  return out;
}

/**
 * An RGB image as the model takes it: dynamic tiling, Pillow's bicubic resize, normalisation.
 * @param image (h, w, 3) u8
 * @throws MmError ERR_ARGUMENT, ERR_SHAPE
 */
export function preprocessImage(image: RgbImage, options: PreprocessOptions = {}): PreprocessedImage {
  const { mean = IMAGENET_MEAN, std = IMAGENET_STD } = options;
  if (mean.length !== 3 || !mean.every(Number.isFinite)) throw new MmError('ERR_ARGUMENT', `mean is [${mean.join(', ')}]; three finite numbers are needed`);
  if (std.length !== 3 || !std.every((s) => s > 0 && s < Infinity)) throw new MmError('ERR_ARGUMENT', `std is [${std.join(', ')}]; three positive numbers are needed`);
  const layout = tileLayout(image.width, image.height, options);
  const tiles = cutTiles(image, layout);
  return { pixelValues: normalize(tiles, layout.total, mean, std), tiles: layout.total, layout };
}
