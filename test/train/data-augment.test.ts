import test from 'ava';
import {
  checkAugment,
  defaultAugment,
  drawTransform,
  imagenetNormalisation,
  plainTransform,
  sampleImage,
} from '../../lib/train/data/emoji/index.js';
import type { AugmentOptions, ImageTransform, Normalisation } from '../../lib/train/data/emoji/index.js';
import { Rng } from '../../lib/train/data/rng.js';

const unit: Normalisation = { mean: [0, 0, 0], std: [1, 1, 1] };
const still: AugmentOptions = {
  rotation: 0,
  scale: [1, 1],
  shear: 0,
  translation: 0,
  flip: 0,
  brightness: 0,
  contrast: 0,
  saturation: 0,
  hue: 0,
  cutout: 0,
  cutoutSize: 0,
};

function noise(size: number, seed = 7): Uint8Array {
  const rng = new Rng(seed);
  return Uint8Array.from({ length: size * size * 3 }, () => rng.int(256));
}

function sample(pixels: Uint8Array, from: number, transform: ImageTransform, to: number, norm = unit): Float32Array {
  const out = new Float32Array(3 * to * to);
  sampleImage(pixels, 0, from, transform, norm, out, 0, to);
  return out;
}

/** The same mapping written plainly, in float64 and without the fast path. */
function reference(pixels: Uint8Array, from: number, transform: ImageTransform, to: number): number[] {
  const [a, b, c, d, e, f] = transform.affine as [number, number, number, number, number, number];
  const tap = (x: number, y: number, channel: number) =>
    x < 0 || y < 0 || x >= from || y >= from ? 255 : pixels[(y * from + x) * 3 + channel];
  const out = new Array<number>(3 * to * to);
  for (let y = 0; y < to; y++) {
    for (let x = 0; x < to; x++) {
      const u = (x + 0.5) / to - 0.5;
      const v = (y + 0.5) / to - 0.5;
      const sx = (a * u + b * v + c + 0.5) * from - 0.5;
      const sy = (d * u + e * v + f + 0.5) * from - 0.5;
      const ix = Math.floor(sx);
      const iy = Math.floor(sy);
      const rgb = [0, 1, 2].map((channel) => {
        const upper = tap(ix, iy, channel) * (1 - sx + ix) + tap(ix + 1, iy, channel) * (sx - ix);
        const lower = tap(ix, iy + 1, channel) * (1 - sx + ix) + tap(ix + 1, iy + 1, channel) * (sx - ix);
        return (upper * (1 - sy + iy) + lower * (sy - iy)) / 255;
      });
      for (let row = 0; row < 3; row++) {
        const m = transform.colour.slice(row * 4, row * 4 + 4);
        const value = m[0] * rgb[0] + m[1] * rgb[1] + m[2] * rgb[2] + m[3];
        out[(row * to + y) * to + x] = Math.min(1, Math.max(0, value));
      }
    }
  }
  return out;
}

test('unchanged at equal size is the image itself, planar and normalised', (t) => {
  const pixels = noise(9);
  const out = sample(pixels, 9, plainTransform, 9, imagenetNormalisation);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < 81; i++) {
      const { mean, std } = imagenetNormalisation;
      const due = (pixels[i * 3 + channel] / 255 - mean[channel]) / std[channel];
      t.true(Math.abs(out[channel * 81 + i] - due) < 1e-5);
    }
  }
});

test('an exact half is the mean of 2 x 2', (t) => {
  const pixels = noise(8);
  const out = sample(pixels, 8, plainTransform, 4);
  const at = (x: number, y: number) => pixels[(y * 8 + x) * 3] / 255;
  t.true(Math.abs(out[5] - (at(2, 2) + at(3, 2) + at(2, 3) + at(3, 3)) / 4) < 1e-6);
});

test('the fast path agrees with the plain formula under 300 drawn transforms', (t) => {
  const options = { ...defaultAugment, rotation: 180, scale: [0.3, 3], shear: 40, translation: 0.5, flip: 0.5 } as const;
  let worst = 0;
  for (let i = 0; i < 300; i++) {
    const rng = new Rng(11, i);
    const from = 2 + rng.int(20);
    const to = 1 + rng.int(20);
    const transform = drawTransform(rng, options, true);
    const out = sample(noise(from, i), from, transform, to);
    reference(noise(from, i), from, transform, to).forEach((due, k) => {
      worst = Math.max(worst, Math.abs(out[k] - due));
    });
  }
  t.true(worst < 1e-4, `worst ${worst}`);
});

test('output stays in range and finite, white stays white outside', (t) => {
  const { mean, std } = imagenetNormalisation;
  for (let i = 0; i < 50; i++) {
    const out = sample(noise(16), 16, drawTransform(new Rng(3, i), defaultAugment, true), 16, imagenetNormalisation);
    for (let channel = 0; channel < 3; channel++) {
      const low = -mean[channel] / std[channel] - 1e-5;
      const high = (1 - mean[channel]) / std[channel] + 1e-5;
      t.true(out.subarray(channel * 256, channel * 256 + 256).every((value) => value >= low && value <= high));
    }
  }
  const away = { ...plainTransform, affine: [1, 0, 5, 0, 1, 0] };
  t.true(sample(noise(16), 16, away, 16).every((value) => value === 1));
});

test('a mirror mirrors, only where it may', (t) => {
  const pixels = noise(6);
  const flip = { ...still, flip: 1 };
  const plain = sample(pixels, 6, plainTransform, 6);
  const mirrored = sample(pixels, 6, drawTransform(new Rng(1), flip, true), 6);
  for (let x = 0; x < 6; x++) t.true(Math.abs(mirrored[x] - plain[5 - x]) < 1e-6);
  const kept = sample(pixels, 6, drawTransform(new Rng(1), flip, false), 6);
  t.true(kept.every((value, i) => Math.abs(value - plain[i]) < 1e-6));
});

test('colour: grey stays grey under hue and saturation; brightness and contrast as written', (t) => {
  const grey = new Uint8Array(4 * 4 * 3).fill(102);
  const hue = sample(grey, 4, drawTransform(new Rng(5), { ...still, hue: 90, saturation: 0.9 }, false), 4);
  t.true(hue.every((value) => Math.abs(value - 0.4) < 1e-3));
  const rng = new Rng(6);
  const lit = drawTransform(rng, { ...still, brightness: 0.3, contrast: 0.3 }, false);
  const gain = lit.colour[0] + lit.colour[1] + lit.colour[2];
  const value = sample(grey, 4, lit, 4)[0];
  t.true(Math.abs(value - (gain * 0.4 + lit.colour[3])) < 1e-6);
});

test('cutout blanks a rectangle', (t) => {
  const black = new Uint8Array(16 * 16 * 3);
  const out = sample(black, 16, drawTransform(new Rng(8), { ...still, cutout: 1, cutoutSize: 0.5 }, false), 16);
  const white = out.filter((value) => value === 1).length;
  t.true(white > 0 && white <= 3 * 8 * 8);
  t.is(out.filter((value) => value === 0).length, out.length - white);
});

test('a transform depends on its keys alone', (t) => {
  const draw = (...keys: number[]) => drawTransform(new Rng(...keys), defaultAugment, true);
  t.deepEqual(draw(1, 2, 3), draw(1, 2, 3));
  const others = [[0, 2, 3], [1, 2, 4], [1, 3, 2], [1 + 2 ** 32, 2, 3]];
  for (const keys of others) t.notDeepEqual(draw(...keys), draw(1, 2, 3));
});

test('the generator is uniform enough and shuffles into permutations', (t) => {
  const rng = new Rng(42);
  const bins = new Array<number>(10).fill(0);
  for (let i = 0; i < 10000; i++) bins[rng.int(10)]++;
  t.true(bins.every((count) => Math.abs(count - 1000) < 150), String(bins));
  // Neighbouring keys must not give neighbouring first draws.
  const first = Array.from({ length: 1000 }, (_, key) => new Rng(0, key).uniform());
  t.true(Math.abs(first.reduce((sum, value) => sum + value, 0) / 1000 - 0.5) < 0.05);
  t.deepEqual(new Rng(1).shuffle([...Array(50).keys()]).sort((a, b) => a - b), [...Array(50).keys()]);
});

test('options out of range are named', (t) => {
  t.notThrows(() => checkAugment(defaultAugment));
  t.throws(() => checkAugment({ ...defaultAugment, hue: -1 }), { code: 'ERR_ARGUMENT', message: /augment\.hue/ });
  t.throws(() => checkAugment({ ...defaultAugment, scale: [1.2, 1] }), { message: /augment\.scale/ });
  t.throws(() => checkAugment({ ...defaultAugment, flip: NaN }), { message: /augment\.flip/ });
});
