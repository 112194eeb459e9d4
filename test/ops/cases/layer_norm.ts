import { normal, type OpCase } from '../case.js';

function make(name: string, shape: number[], parameters: 'both' | 'weight' | 'bias' | 'none' = 'both', shift = 0): OpCase {
  const n = shape.at(-1)!;
  return {
    op: 'layerNorm',
    name,
    inputs: {
      x: normal(shape, 1, shift),
      ...((parameters === 'both' || parameters === 'weight') && { weight: normal([n], 0.1, 1, { dtype: 'f32' }) }),
      ...((parameters === 'both' || parameters === 'bias') && { bias: normal([n], 1, 0, { dtype: 'f32' }) }),
    },
    attrs: { eps: 1e-5 },
  };
}

export const cases: OpCase[] = [
  // x is its own mean, so that its gradient is all cancellation
  { ...make('one element', [1, 1]), grads: ['weight', 'bias'] },
  make('odd width', [3, 5, 7]),
  make('width 64', [2, 5, 64]),
  make('width 130', [65, 130]),
  make('width 2048', [3, 2048]),
  make('many rows', [517, 33]),
  make('mean far from 0', [9, 17], 'both', 20),
  make('no bias', [9, 48], 'weight'),
  make('no weight', [9, 48], 'bias'),
  make('neither', [9, 31], 'none'),
  make('no rows', [0, 64]),
  { ...make('parameters in the dtype of x', [7, 48]), inputs: { x: normal([7, 48]), weight: normal([48], 0.1, 1), bias: normal([48]) } },
];
