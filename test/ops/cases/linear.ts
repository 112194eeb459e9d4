import { normal, type Draw, type OpCase } from '../case.js';

interface Options {
  bias?: boolean | 'T';
  residual?: boolean;
  activation?: 'none' | 'gelu' | 'silu';
}
const dense = (name: string, lead: number[], k: number, n: number, { bias, residual, activation = 'none' }: Options = {}): OpCase => {
  const inputs: Record<string, Draw> = { x: normal([...lead, k]), weight: normal([n, k], 1 / Math.sqrt(Math.max(k, 1))) };
  if (bias) inputs['bias'] = bias === 'T' ? normal([n], 0.5) : normal([n], 0.5, 0, { dtype: 'f32' });
  if (residual) inputs['residual'] = normal([...lead, n]);
  return { op: 'linear', name, inputs, attrs: { activation } };
};

export const cases: OpCase[] = [
  dense('a vector', [], 5, 3, { bias: true }),
  dense('one by one', [1], 1, 1, { bias: true, residual: true }),
  dense('one row, odd', [1], 131, 67),
  dense('one row, wide, everything', [1, 1], 192, 517, { bias: true, residual: true, activation: 'silu' }),
  dense('two rows', [2, 1], 65, 130, { bias: 'T' }),
  dense('three rows, everything', [3], 48, 33, { bias: true, residual: true, activation: 'gelu' }),
  dense('16 rows', [16], 100, 70, { bias: true }),
  dense('17 rows', [17], 100, 70, { activation: 'silu' }),
  dense('no bias', [2, 7], 65, 65),
  dense('gelu', [2, 33], 48, 80, { bias: true, activation: 'gelu' }),
  dense('silu with residual', [5, 13], 80, 48, { residual: true, activation: 'silu' }),
  dense('several blocks', [517], 33, 530, { bias: true, residual: true }),
  dense('K is cut in the weight gradient', [2, 1030], 20, 300, { bias: true, activation: 'gelu' }),
  dense('K of one', [65], 1, 7),
  dense('one output', [65], 130, 1, { bias: true }),
  dense('no rows', [0, 7], 16, 8, { bias: true }),
  dense('no inputs', [3], 0, 8, { bias: true }),
];
