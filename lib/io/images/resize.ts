import { MmError } from '../../native/errors.js';

/** 8-bit RGB, row-major, interleaved: `data` is (height, width, 3). */
export interface RgbImage {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

/*
 * Pillow's resize, bit for bit: bicubic with a = -0.5, widened when shrinking (antialias), weights in 22-bit fixed point, the
 * horizontal pass first, rounded to 8 bits between the passes. The model was trained on images made this way.
 */
const A = -0.5;
const SUPPORT = 2;
const PRECISION_BITS = 32 - 8 - 2; // 8 bits of pixel, 2 of headroom for weights beyond 1
const HALF = 1 << (PRECISION_BITS - 1);

function bicubic(x: number): number {
  x = Math.abs(x);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * A;
  return 0;
}

interface Weights {
  /** Taps per output position; positions near the border use fewer. */
  readonly taps: number;
  /** Per output position: first input position and number of taps. */
  readonly first: Int32Array;
  readonly count: Int32Array;
  /** (outSize, taps), fixed point. */
  readonly fixed: Int32Array;
}

function weights(inSize: number, outSize: number): Weights {
  const scale = inSize / outSize;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const fixed = new Int32Array(outSize * taps);
  const row = new Float64Array(taps);
  for (let out = 0; out < outSize; out++) {
    const center = (out + 0.5) * scale;
    const from = Math.max(0, Math.trunc(center - support + 0.5));
    const n = Math.min(inSize, Math.trunc(center + support + 0.5)) - from;
    const perPixel = 1 / stretch;
    let sum = 0;
    for (let i = 0; i < n; i++) {
      row[i] = bicubic((i + from - center + 0.5) * perPixel);
      sum += row[i];
    }
    first[out] = from;
    count[out] = n;
    for (let i = 0; i < n; i++) {
      const weight = (sum === 0 ? row[i] : row[i] / sum) * (1 << PRECISION_BITS);
      fixed[out * taps + i] = Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  return { taps, first, count, fixed };
}

function clip8(sum: number): number {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** (height, width, 3) → (height, outWidth, 3) */
function resizeRows({ width, height, data }: RgbImage, outWidth: number): RgbImage {
  const { taps, first, count, fixed } = weights(width, outWidth);
  const out = new Uint8Array(outWidth * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++) {
      let r = HALF;
      let g = HALF;
      let b = HALF;
      let source = (y * width + first[x]) * 3;
      const end = x * taps + count[x];
      for (let k = x * taps; k < end; k++, source += 3) {
        const weight = fixed[k];
        r += data[source] * weight;
        g += data[source + 1] * weight;
        b += data[source + 2] * weight;
      }
      const target = (y * outWidth + x) * 3;
      out[target] = clip8(r);
      out[target + 1] = clip8(g);
      out[target + 2] = clip8(b);
    }
  }
  return { width: outWidth, height, data: out };
}

/** (height, width, 3) → (outHeight, width, 3). A row is a run of independent bytes here, so channels need no loop of their own. */
function resizeColumns({ width, height, data }: RgbImage, outHeight: number): RgbImage {
  const { taps, first, count, fixed } = weights(height, outHeight);
  const stride = width * 3;
  const out = new Uint8Array(stride * outHeight);
  const sums = new Int32Array(stride);
  for (let y = 0; y < outHeight; y++) {
    sums.fill(HALF);
    for (let k = 0; k < count[y]; k++) {
      const weight = fixed[y * taps + k];
      const source = (first[y] + k) * stride;
      for (let i = 0; i < stride; i++) sums[i] += data[source + i] * weight;
    }
    const target = y * stride;
    for (let i = 0; i < stride; i++) out[target + i] = clip8(sums[i]);
  }
  return { width, height: outHeight, data: out };
}

/**
 * Resizes as Pillow's `Image.resize((width, height))` does, bit for bit. An image that has the size already is returned as it is.
 * @param image (h, w, 3) u8; @returns (height, width, 3) u8
 * @throws MmError ERR_ARGUMENT, ERR_SHAPE where `data` is not width * height * 3 long
 */
export function resizeBicubic(image: RgbImage, width: number, height: number): RgbImage {
  for (const [name, value] of Object.entries({ width, height, 'image.width': image.width, 'image.height': image.height })) {
    if (!Number.isSafeInteger(value) || value < 1) throw new MmError('ERR_ARGUMENT', `${name} is ${value}; an integer of at least 1 is needed`);
  }
  const needed = image.width * image.height * 3;
  if (image.data.length !== needed) {
    throw new MmError('ERR_SHAPE', `an RGB image of ${image.width} x ${image.height} needs ${needed} bytes, its data has ${image.data.length}`);
  }
  const narrow = width === image.width ? image : resizeRows(image, width);
  return height === image.height ? narrow : resizeColumns(narrow, height);
}
