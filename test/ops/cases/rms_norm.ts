import { normal, type OpCase } from '../case.js';

const rows = (name: string, shape: number[], eps: number, scale = 1): OpCase => ({
  op: 'rmsNorm',
  name,
  inputs: { x: normal(shape, scale), weight: normal([shape.at(-1)!], 0.1, 1, { dtype: 'f32' }) },
  attrs: { eps },
});

export const cases: OpCase[] = [
  // its gradient in x is 0 up to eps: all cancellation
  { ...rows('one element', [1, 1], 1e-5), grads: ['weight'] },
  rows('odd width', [3, 5, 7], 1e-6),
  rows('width 64', [2, 5, 64], 1e-5),
  rows('width 130', [65, 130], 1e-5),
  rows('width 2048', [3, 2048], 1e-6),
  rows('many rows', [517, 33], 1e-5),
  rows('values smaller than eps', [4, 32], 1e-5, 1e-3),
  rows('no rows', [0, 64], 1e-5),
  { ...rows('weight in the dtype of x', [7, 48], 1e-5), inputs: { x: normal([7, 48]), weight: normal([48], 0.1, 1) } },
];
