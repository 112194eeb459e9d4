import { normal, uniform, type Draw, type OpCase } from '../case.js';

interface Options {
  B?: 'constant' | 'plain' | number;
  C?: 'constant' | 'plain' | number;
  skip?: boolean;
  gate?: boolean;
  bias?: boolean;
  softplus?: boolean;
  channelLast?: boolean;
}
const f32 = { dtype: 'f32' } as const;
const scan = (name: string, [batch, channels, length, states]: [number, number, number, number], o: Options = {}): OpCase => {
  const projection = (kind: Options['B'] = 1): Draw =>
    kind === 'constant' ? normal([channels, states], 1, 0, f32)
    : kind === 'plain' ? normal([batch, states, length])
    : normal([batch, kind, states, length]);
  const order = o.channelLast ? { order: [0, 2, 1] } : {};
  const shape = [batch, channels, length];
  const inputs: Record<string, Draw> = {
    u: normal(shape, 1, 0, order),
    delta: o.softplus ? normal(shape, 0.5, -1, order) : uniform(shape, 0.05, 0.5, order),
    A: uniform([channels, states], -2, -0.1, f32),
    B: projection(o.B),
    C: projection(o.C),
  };
  if (o.skip) inputs['D'] = normal([channels], 1, 0, f32);
  if (o.gate) inputs['z'] = normal(shape, 1, 0, order);
  if (o.bias) inputs['deltaBias'] = uniform([channels], 0, 0.3, f32);
  return { op: 'selectiveScan', name, inputs, attrs: { deltaSoftplus: o.softplus ?? false } };
};
const everything: Options = { skip: true, gate: true, bias: true, softplus: true };

export const cases: OpCase[] = [
  scan('one of everything', [1, 1, 1, 1], everything),
  scan('one step', [2, 6, 1, 8], everything),
  scan('plain', [2, 8, 7, 16], { B: 'plain', C: 'plain' }),
  scan('everything', [2, 8, 65, 16], { ...everything, B: 2, C: 2 }),
  scan('a whole chunk', [1, 16, 64, 4], { gate: true, softplus: true }),
  scan('constant B and C', [2, 6, 33, 5], { ...everything, gate: false, B: 'constant', C: 'constant' }),
  scan('constant B', [1, 8, 20, 8], { B: 'constant', C: 2, skip: true, softplus: true }),
  scan('constant C', [1, 10, 20, 3], { B: 'plain', C: 'constant', gate: true }),
  scan('several chunks', [1, 3, 517, 16], everything),
  scan('several channel blocks', [2, 37, 130, 4], { ...everything, bias: false }),
  scan('uneven groups of lanes', [1, 54, 20, 3], { ...everything, B: 3, C: 3 }),
  scan('bias without softplus', [1, 12, 130, 8], { bias: true, skip: true }),
  scan('channel-last', [2, 21, 70, 8], { ...everything, channelLast: true }),
  scan('channel-last, one step', [2, 17, 1, 16], { ...everything, channelLast: true }),
  scan('no batch', [0, 4, 7, 8], everything),
  { ...scan('transposed gate only', [1, 5, 19, 4], everything), inputs: { ...scan('', [1, 5, 19, 4], everything).inputs, z: normal([1, 5, 19], 1, 0, { order: [2, 0, 1] }) } },
];
