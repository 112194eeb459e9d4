import { normal, values, type Draw, type OpCase } from '../case.js';

interface Options {
  bias?: boolean;
  silu?: boolean;
  states?: boolean;
  lengths?: number[];
  channelLast?: boolean;
  parameters?: 'f32';
}
const conv = (name: string, [batch, channels, length]: [number, number, number], width: number, o: Options = {}): OpCase => {
  const inputs: Record<string, Draw> = {
    x: normal([batch, channels, length], 1, 0, o.channelLast ? { order: [0, 2, 1] } : {}),
    weight: normal([channels, width], 0.5, 0, o.parameters ? { dtype: o.parameters } : {}),
  };
  if (o.bias) inputs['bias'] = normal([channels], 0.5, 0, o.parameters ? { dtype: o.parameters } : {});
  if (o.states) inputs['initialStates'] = normal([o.lengths?.length ?? batch, channels, width - 1]);
  if (o.lengths) inputs['cuSeqlens'] = values([o.lengths.length + 1], o.lengths.reduce((starts, n) => [...starts, starts.at(-1)! + n], [0]));
  return { op: 'causalConv1d', name, inputs, attrs: { activation: o.silu ? 'silu' : 'none' } };
};
const update = (name: string, x: number[], size: number, width: number, o: { silu?: boolean; bias?: boolean; ring?: number[]; parameters?: 'f32' } = {}): OpCase => {
  const extra = o.parameters ? { dtype: o.parameters } : {};
  const inputs: Record<string, Draw> = { x: normal(x), convState: normal([x[0]!, x[1]!, size]), weight: normal([x[1]!, width], 0.5, 0, extra) };
  if (o.bias) inputs['bias'] = normal([x[1]!], 0.5, 0, extra);
  if (o.ring) inputs['cacheSeqlens'] = values([x[0]!], o.ring);
  return { op: 'causalConv1dUpdate', name, inputs, attrs: { activation: o.silu ? 'silu' : 'none' } };
};

export const cases: OpCase[] = [
  conv('one token, one channel', [1, 1, 1], 2, { bias: true, silu: true }),
  conv('one token', [2, 6, 1], 4, { bias: true, silu: true, states: true }),
  conv('width 1', [2, 5, 7], 1, { bias: true }),
  conv('width 2', [2, 10, 17], 2, { bias: true, silu: true }),
  conv('width 3', [2, 8, 65], 3),
  conv('width 4, states', [2, 7, 130], 4, { bias: true, silu: true, states: true }),
  conv('width 7', [2, 5, 33], 7, { bias: true, silu: true, states: true }),
  conv('shorter than the width', [2, 5, 2], 4, { bias: true, states: true }),
  conv('several pieces', [1, 2, 2500], 4, { bias: true, silu: true }),
  conv('taps beyond a piece', [1, 2, 2100], 1030, { bias: true }),
  conv('f32 parameters', [1, 9, 20], 3, { bias: true, silu: true, parameters: 'f32' }),
  conv('channel-last', [2, 33, 65], 4, { bias: true, silu: true, states: true, channelLast: true }),
  conv('channel-last, width 2', [1, 130, 517], 2, { bias: true, silu: true, channelLast: true }),
  conv('channel-last, several column blocks', [1, 517, 7], 3, { channelLast: true }),
  conv('channel-last, width 6', [2, 17, 70], 6, { bias: true, silu: true, states: true, channelLast: true }),
  conv('channel-last, one token', [2, 33, 1], 4, { bias: true, states: true, channelLast: true }),
  conv('packed', [1, 8, 30], 4, { bias: true, silu: true, lengths: [1, 7, 2, 20] }),
  conv('packed, states', [1, 8, 18], 2, { bias: true, silu: true, states: true, lengths: [5, 1, 12] }),
  conv('packed, empty sequences', [1, 5, 20], 3, { bias: true, states: true, lengths: [0, 7, 0, 13] }),
  conv('packed, channel-last', [1, 17, 140], 4, { bias: true, silu: true, states: true, lengths: [1, 2, 0, 63, 70, 4], channelLast: true }),
  conv('no batch', [0, 5, 7], 4, { bias: true }),
  update('width 2', [2, 8], 1, 2, { bias: true, silu: true }),
  update('width 4, many channels', [3, 130], 3, 4, { bias: true, silu: true }),
  update('width 3, a longer buffer', [1, 33], 5, 3),
  update('width 1', [2, 5], 0, 1, { bias: true }),
  update('width 7', [2, 5], 6, 7, { bias: true, silu: true }),
  update('several tokens', [2, 6, 5], 2, 3, { bias: true, silu: true }),
  update('more tokens than the buffer holds', [1, 6, 9], 4, 4, { bias: true }),
  update('no tokens', [2, 6, 0], 3, 4, { bias: true }),
  update('ring', [3, 6], 7, 4, { bias: true, silu: true, ring: [0, 5, 23] }),
  update('ring, several tokens', [2, 6, 3], 5, 2, { bias: true, ring: [4, 12] }),
  update('ring, no slot to spare', [2, 6, 3], 3, 4, { silu: true, ring: [2, 7] }),
  update('f32 parameters', [2, 17], 3, 4, { bias: true, silu: true, parameters: 'f32' }),
  update('no batch', [0, 5], 3, 4),
];
