import { normal, type OpCase } from '../case.js';

const patches = (name: string, image: number[], features: number, p: number, bias: boolean | 'T' = true): OpCase => ({
  op: 'patchEmbed',
  name,
  inputs: {
    x: normal(image),
    weight: normal([features, image[1]!, p, p], 0.1),
    ...(bias && { bias: bias === 'T' ? normal([features]) : normal([features], 1, 0, { dtype: 'f32' }) }),
  },
});

export const cases: OpCase[] = [
  patches('one pixel', [1, 1, 1, 1], 1, 1),
  patches('one patch', [1, 3, 7, 7], 16, 7),
  patches('two images', [2, 3, 28, 28], 16, 7, 'T'),
  patches('oblong image, no bias', [1, 3, 6, 10], 5, 2, false),
  patches('one channel, many patches', [2, 1, 48, 44], 33, 4),
  patches('no images', [0, 3, 8, 8], 4, 4),
];
