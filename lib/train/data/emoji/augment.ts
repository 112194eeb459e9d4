import { IMAGENET_MEAN, IMAGENET_STD } from '../../../io/images/preprocess.js';
import { MmError } from '../../../native/errors.js';
import type { Rng } from '../rng.js';

/** How far an image may be changed. Ranges are symmetric about "unchanged" unless two ends are given. */
export interface AugmentOptions {
  /** degrees either way; above 15 the hands of a clock and slanted arrows would change their name */
  rotation: number;
  /** factor, from and to */
  scale: readonly [number, number];
  /** degrees either way, both axes */
  shear: number;
  /** part of the image side, either way */
  translation: number;
  /**
   * probability of a mirrored image, for names that allow it; 0 by default: the held-out artist mirrors 39 of 920 such
   * names against the others, and mirrored copies lower a nearest-neighbour classifier from 31.8 % to 31.0 %
   */
  flip: number;
  /** factor 1 ± this */
  brightness: number;
  /** factor 1 ± this, about middle grey */
  contrast: number;
  /** factor 1 ± this */
  saturation: number;
  /** degrees either way; colours are part of many names, so little */
  hue: number;
  /** probability that a rectangle is blanked */
  cutout: number;
  /** largest side of that rectangle, part of the image side */
  cutoutSize: number;
}

export const defaultAugment: AugmentOptions = {
  rotation: 15,
  scale: [0.75, 1.15],
  shear: 8,
  translation: 0.08,
  flip: 0,
  brightness: 0.15,
  contrast: 0.2,
  saturation: 0.35,
  hue: 10,
  cutout: 0,
  cutoutSize: 0.3,
};

/** Per channel RGB: the model sees (v / 255 - mean) / std. */
export interface Normalisation {
  mean: readonly [number, number, number];
  std: readonly [number, number, number];
}

/** ImageNet's, as HoVLE and mmMamba use them. */
export const imagenetNormalisation: Normalisation = { mean: IMAGENET_MEAN, std: IMAGENET_STD };

/** What one image goes through; `drawTransform` draws one, `plainTransform` changes nothing. */
export interface ImageTransform {
  /**
   * [a, b, c, d, e, f]: the output point (x, y) shows the source point (a x + b y + c, d x + e y + f); both measured
   * from the centre, in parts of the image side
   */
  affine: readonly number[];
  /** 3 rows of 4: out = M rgb + offset, channels in [0, 1], clamped afterwards */
  colour: readonly number[];
  /** [left, top, right, bottom], parts of the image side; blanked to white */
  cutout?: readonly [number, number, number, number];
}

export const plainTransform: ImageTransform = {
  affine: [1, 0, 0, 0, 1, 0],
  colour: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
};

/** @throws MmError ERR_ARGUMENT naming the option that is out of range */
export function checkAugment(options: AugmentOptions): void {
  const within = (key: keyof AugmentOptions, value: number, low: number, high: number) => {
    if (!(value >= low && value <= high)) {
      throw new MmError('ERR_ARGUMENT', `augment.${key}: expected ${low} to ${high}, got ${value}`);
    }
  };
  within('rotation', options.rotation, 0, 180);
  within('scale', options.scale[0], 0.1, options.scale[1]);
  within('scale', options.scale[1], options.scale[0], 10);
  within('shear', options.shear, 0, 45);
  within('translation', options.translation, 0, 1);
  within('hue', options.hue, 0, 180);
  for (const key of ['flip', 'brightness', 'contrast', 'saturation', 'cutout', 'cutoutSize'] as const) {
    within(key, options[key], 0, 1);
  }
}

/** Draws a transform; the number of draws is fixed, so that switching one option off leaves the others as they were. */
export function drawTransform(rng: Rng, options: AugmentOptions, mayFlip: boolean): ImageTransform {
  const degrees = Math.PI / 180;
  const both = (range: number) => rng.uniform(-range, range);
  const angle = both(options.rotation) * degrees;
  // Log-uniform: as much smaller as larger.
  const scale = Math.exp(rng.uniform(Math.log(options.scale[0]), Math.log(options.scale[1])));
  const shearX = Math.tan(both(options.shear) * degrees);
  const shearY = Math.tan(both(options.shear) * degrees);
  const moveX = both(options.translation);
  const moveY = both(options.translation);
  const mirror = rng.chance(options.flip) && mayFlip ? -1 : 1;
  const brightness = 1 + both(options.brightness);
  const contrast = 1 + both(options.contrast);
  const saturation = 1 + both(options.saturation);
  const hue = both(options.hue) * degrees;
  const blank = rng.chance(options.cutout);
  const width = options.cutoutSize * rng.uniform(0.3, 1);
  const height = options.cutoutSize * rng.uniform(0.3, 1);
  const left = rng.uniform(0, 1 - width);
  const top = rng.uniform(0, 1 - height);

  // Output to source: undo the move, then rotate and shear, shrink by the scale, mirror last.
  const cos = Math.cos(angle) / scale;
  const sin = Math.sin(angle) / scale;
  const a = mirror * (cos - sin * shearY);
  const b = mirror * (cos * shearX - sin);
  const d = sin + cos * shearY;
  const e = sin * shearX + cos;
  return {
    affine: [a, b, -a * moveX - b * moveY, d, e, -d * moveX - e * moveY],
    colour: colourMatrix(brightness, contrast, saturation, hue),
    ...(blank && { cutout: [left, top, left + width, top + height] as const }),
  };
}

/** Hue, saturation, brightness and contrast are linear in RGB, so they make one 3x4 matrix. */
function colourMatrix(brightness: number, contrast: number, saturation: number, hue: number): number[] {
  const luma = [0.299, 0.587, 0.114];
  const cos = Math.cos(hue) * saturation;
  const sin = Math.sin(hue) * saturation;
  // Rotation of the two chroma axes (YIQ) about the luma axis; every row sums to 0, so grey stays grey.
  const chromaCos = [0.701, -0.587, -0.114, -0.299, 0.413, -0.114, -0.299, -0.587, 0.886];
  const chromaSin = [0.168, 0.33, -0.498, -0.328, 0.035, 0.293, 1.25, -1.047, -0.203];
  const gain = brightness * contrast;
  const offset = 0.5 * (1 - contrast);
  const matrix: number[] = [];
  for (let row = 0; row < 3; row++) {
    for (let column = 0; column < 3; column++) {
      const at = row * 3 + column;
      matrix.push(gain * (luma[column] + cos * chromaCos[at] + sin * chromaSin[at]));
    }
    matrix.push(offset);
  }
  return matrix;
}

/**
 * Writes one image, transformed and normalised, as (3, size, size) f32 at `out[outOffset]`: affine sampling (bilinear,
 * white outside), colour and normalisation in one pass over the output.
 * @param pixels u8 RGB rows; the image begins at `offset` and is (sourceSize, sourceSize, 3)
 */
export function sampleImage(
  pixels: Uint8Array,
  offset: number,
  sourceSize: number,
  transform: ImageTransform,
  normalisation: Normalisation,
  out: Float32Array,
  outOffset: number,
  size: number,
): void {
  const [ta, tb, tc, td, te, tf] = transform.affine as [number, number, number, number, number, number];
  // From pixel indices to pixel indices: pixel i has its centre at (i + 0.5) / side - 0.5.
  const ratio = sourceSize / size;
  const half = 0.5 / size - 0.5;
  const a = ta * ratio;
  const b = tb * ratio;
  const c = ((ta + tb) * half + tc + 0.5) * sourceSize - 0.5;
  const d = td * ratio;
  const e = te * ratio;
  const f = ((td + te) * half + tf + 0.5) * sourceSize - 0.5;

  const m = transform.colour;
  const m00 = m[0] / 255, m01 = m[1] / 255, m02 = m[2] / 255, m03 = m[3];
  const m10 = m[4] / 255, m11 = m[5] / 255, m12 = m[6] / 255, m13 = m[7];
  const m20 = m[8] / 255, m21 = m[9] / 255, m22 = m[10] / 255, m23 = m[11];
  const [meanR, meanG, meanB] = normalisation.mean;
  const gainR = 1 / normalisation.std[0];
  const gainG = 1 / normalisation.std[1];
  const gainB = 1 / normalisation.std[2];

  const plane = size * size;
  const stride = sourceSize * 3;
  const last = sourceSize - 1;
  for (let y = 0; y < size; y++) {
    const rowX = b * y + c;
    const rowY = e * y + f;
    // [from, to): output columns whose four taps all lie inside, so that the long run needs no tests.
    let from = Math.max(0, Math.ceil(Math.max(firstInside(a, rowX, last), firstInside(d, rowY, last))));
    let to = Math.min(size, Math.floor(Math.min(lastInside(a, rowX, last), lastInside(d, rowY, last))) + 1);
    while (from < to && !inside(a * from + rowX, d * from + rowY, last)) from++;
    while (to > from && !inside(a * (to - 1) + rowX, d * (to - 1) + rowY, last)) to--;
    let at = outOffset + y * size;
    for (let x = 0; x < size; x++, at++) {
      const sx = a * x + rowX;
      const sy = d * x + rowY;
      let red = 255;
      let green = 255;
      let blue = 255;
      if (x >= from && x < to) {
        const ix = sx | 0;
        const iy = sy | 0;
        const fx = sx - ix;
        const fy = sy - iy;
        const p = offset + iy * stride + ix * 3;
        const q = p + stride;
        const w11 = fx * fy;
        const w10 = fy - w11;
        const w01 = fx - w11;
        const w00 = 1 - fx - w10;
        red = w00 * pixels[p] + w01 * pixels[p + 3] + w10 * pixels[q] + w11 * pixels[q + 3];
        green = w00 * pixels[p + 1] + w01 * pixels[p + 4] + w10 * pixels[q + 1] + w11 * pixels[q + 4];
        blue = w00 * pixels[p + 2] + w01 * pixels[p + 5] + w10 * pixels[q + 2] + w11 * pixels[q + 5];
      } else if (sx > -1 && sy > -1 && sx < sourceSize && sy < sourceSize) {
        const ix = Math.floor(sx);
        const iy = Math.floor(sy);
        for (let tap = 0; tap < 4; tap++) {
          const px = ix + (tap & 1);
          const py = iy + (tap >> 1);
          if (px < 0 || py < 0 || px > last || py > last) continue;
          const weight = (1 - Math.abs(sx - px)) * (1 - Math.abs(sy - py));
          const p = offset + py * stride + px * 3;
          red -= weight * (255 - pixels[p]);
          green -= weight * (255 - pixels[p + 1]);
          blue -= weight * (255 - pixels[p + 2]);
        }
      }
      const r = m00 * red + m01 * green + m02 * blue + m03;
      const g = m10 * red + m11 * green + m12 * blue + m13;
      const v = m20 * red + m21 * green + m22 * blue + m23;
      out[at] = ((r < 0 ? 0 : r > 1 ? 1 : r) - meanR) * gainR;
      out[at + plane] = ((g < 0 ? 0 : g > 1 ? 1 : g) - meanG) * gainG;
      out[at + 2 * plane] = ((v < 0 ? 0 : v > 1 ? 1 : v) - meanB) * gainB;
    }
  }
  if (transform.cutout) blank(transform.cutout, normalisation, out, outOffset, size);
}

/** Smallest x with 0 <= slope x + start < last, as far as this axis says; the caller corrects rounding. */
function firstInside(slope: number, start: number, last: number): number {
  if (slope > 0) return -start / slope;
  if (slope < 0) return (last - start) / slope;
  return start >= 0 && start < last ? -Infinity : Infinity;
}

function lastInside(slope: number, start: number, last: number): number {
  if (slope > 0) return (last - start) / slope;
  if (slope < 0) return -start / slope;
  return Infinity;
}

function inside(x: number, y: number, last: number): boolean {
  return x >= 0 && y >= 0 && x < last && y < last;
}

function blank(
  [left, top, right, bottom]: readonly [number, number, number, number],
  { mean, std }: Normalisation,
  out: Float32Array,
  outOffset: number,
  size: number,
): void {
  for (let channel = 0; channel < 3; channel++) {
    const white = (1 - mean[channel]) / std[channel];
    for (let y = Math.round(top * size); y < Math.round(bottom * size); y++) {
      const row = outOffset + (channel * size + y) * size;
      out.fill(white, row + Math.round(left * size), row + Math.round(right * size));
    }
  }
}
