import { normal, uniform, type Draw, type OpCase } from '../case.js';

const f32 = { dtype: 'f32' } as const;
interface Options {
  skip?: boolean;
  gate?: boolean;
  bias?: boolean;
  softplus?: boolean;
}
const mamba1 = (name: string, batch: number, channels: number, states: number, o: Options = {}): OpCase => {
  const inputs: Record<string, Draw> = {
    state: normal([batch, channels, states], 1, 0, f32),
    x: normal([batch, channels]),
    dt: uniform([batch, channels], 0.05, 0.5),
    A: uniform([channels, states], -2, -0.1, f32),
    B: normal([batch, states]),
    C: normal([batch, states]),
  };
  if (o.skip) inputs['D'] = normal([channels], 1, 0, f32);
  if (o.gate) inputs['z'] = normal([batch, channels]);
  if (o.bias) inputs['dtBias'] = uniform([channels], 0, 0.3, f32);
  return { op: 'selectiveStateUpdate', name, inputs, attrs: { dtSoftplus: o.softplus ?? false } };
};
const heads = (name: string, [batch, H, P, N, G]: [number, number, number, number, number], tied: boolean, o: Options & { wideSkip?: boolean } = {}): OpCase => {
  const per = tied ? [H] : [H, P];
  const inputs: Record<string, Draw> = {
    state: normal([batch, H, P, N], 1, 0, f32),
    x: normal([batch, H, P]),
    dt: uniform([batch, ...per], 0.05, 0.5),
    A: uniform(tied ? [H] : [H, P, N], -2, -0.1, f32),
    B: normal([batch, G, N]),
    C: normal([batch, G, N]),
  };
  if (o.skip) inputs['D'] = normal(o.wideSkip ? [H, P] : per, 1, 0, f32);
  if (o.gate) inputs['z'] = normal([batch, H, P]);
  if (o.bias) inputs['dtBias'] = uniform(per, 0, 0.3, f32);
  return { op: 'selectiveStateUpdate', name, inputs, attrs: { dtSoftplus: o.softplus ?? false } };
};
const everything: Options = { skip: true, gate: true, bias: true, softplus: true };

export const cases: OpCase[] = [
  mamba1('one of everything', 1, 1, 1, everything),
  mamba1('mamba1', 3, 12, 16, everything),
  mamba1('mamba1, plain', 2, 65, 5),
  heads('heads, untied', [2, 4, 8, 16, 2], false, everything),
  heads('heads, untied, odd', [2, 3, 7, 17, 1], false, { gate: true }),
  heads('heads, tied', [2, 4, 33, 16, 1], true, everything),
  heads('heads, tied, a skip of its own a channel', [1, 2, 17, 16, 2], true, { ...everything, wideSkip: true }),
  heads('heads, tied, square', [1, 8, 64, 64, 8], true, { softplus: true, bias: true }),
  heads('heads, tied, large', [1, 4, 130, 65, 2], true, everything),
  heads('one head', [5, 1, 1, 7, 1], true),
  heads('no batch', [0, 2, 4, 8, 1], true, everything),
];
