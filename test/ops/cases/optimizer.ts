import { normal, uniform, values, type Draw, type OpCase } from '../case.js';

const adam = (name: string, shapes: number[][], attrs: OpCase['attrs'], extra: { compute?: boolean; scale?: boolean; floatGrads?: boolean } = {}): OpCase => {
  const f32 = { dtype: 'f32' } as const;
  const inputs: Record<string, Draw | Draw[]> = {
    params: shapes.map((s) => normal(s, 1, 0, f32)),
    grads: shapes.map((s) => normal(s, 1, 0, extra.floatGrads ? f32 : {})),
    expAvg: shapes.map((s) => normal(s, 0.1, 0, f32)),
    expAvgSq: shapes.map((s) => uniform(s, 0.01, 1, f32)),
  };
  if (extra.compute) inputs['compute'] = shapes.map((s) => normal(s));
  if (extra.scale) inputs['gradScale'] = values([], [0.25], 'f32');
  return { op: 'adamW', name, inputs, attrs: { lr: 1e-2, ...attrs } };
};
const norm = (name: string, shapes: number[][], maxNorm: number): OpCase => ({ op: 'gradNorm', name, inputs: { grads: shapes.map((s) => normal(s)) }, attrs: { maxNorm } });

export const cases: OpCase[] = [
  adam('one number', [[1]], { step: 1 }),
  adam('several tensors', [[13, 7], [11], [3, 5, 2]], { step: 3, weightDecay: 0.05 }),
  adam('a copy to compute with', [[65], [130, 3]], { step: 2 }, { compute: true }),
  adam('f32 gradients, scaled', [[65], [7, 16]], { step: 10, beta1: 0.8, beta2: 0.95, eps: 1e-6 }, { compute: true, scale: true, floatGrads: true }),
  adam('several blocks', [[5], [200, 130], [33]], { step: 7, weightDecay: 0 }),
  adam('an empty one', [[0], [17]], { step: 1 }),
  norm('one number', [[1]], 0),
  norm('several tensors', [[13, 7], [], [130, 65]], 0),
  norm('clipped', [[517, 33], [0], [11]], 2),
  norm('below the limit', [[7]], 1000),
];
