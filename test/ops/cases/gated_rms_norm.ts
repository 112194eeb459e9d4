import { normal, type OpCase } from '../case.js';

const make = (name: string, shape: number[], order?: number[], scale = 1): OpCase => ({
  op: 'gatedRmsNorm',
  name,
  inputs: { x: normal(shape, scale, 0, { order }), gate: normal(shape, 2, 0, { order }), weight: normal([shape.at(-1)!], 0.1, 1, { dtype: 'f32' }) },
  attrs: { eps: 1e-5 },
});

export const cases: OpCase[] = [
  // the gradient in x is 0 up to eps: all cancellation
  { ...make('one element', [1, 1]), grads: ['gate', 'weight'] },
  make('odd width', [3, 5, 7]),
  make('heads of 16', [2, 5, 4, 16]),
  make('heads of 128', [1, 3, 2, 128]),
  make('width 130', [65, 130]),
  make('many rows', [517, 33]),
  make('values smaller than eps', [4, 32], undefined, 1e-3),
  make('memory ordered by head', [2, 17, 3, 32], [0, 2, 1, 3]),
  make('channels not the last axis in memory', [2, 5, 16], [0, 2, 1]),
  make('no rows', [0, 64]),
  { ...make('weight in the dtype of x', [7, 48]), inputs: { x: normal([7, 48]), gate: normal([7, 48]), weight: normal([48], 0.1, 1) } },
];
