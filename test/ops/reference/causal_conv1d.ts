import { zeros, type NdArray, type Reference } from '../case.js';

const activated = (x: number, activation: unknown): number => (activation === 'silu' ? x / (1 + Math.exp(-x)) : x);

export const causalConv1d: Reference = ({ x, weight, bias, initialStates, cuSeqlens }, { activation }) => {
  const [batch, channels, length] = x!.shape as [number, number, number];
  const width = weight!.shape[1]!;
  const sequences = cuSeqlens
    ? Array.from({ length: cuSeqlens.data.length - 1 }, (_, s) => ({ b: 0, begin: cuSeqlens.data[s]!, end: cuSeqlens.data[s + 1]! }))
    : Array.from({ length: batch }, (_, b) => ({ b, begin: 0, end: length }));
  const y = zeros(x!.shape);
  const finalStates = zeros([sequences.length, channels, width - 1]);
  sequences.forEach(({ b, begin, end }, s) => {
    for (let d = 0; d < channels; d++) {
      // the sequence with the W-1 inputs before it
      const before = Array.from({ length: width - 1 }, (_, k) => initialStates?.data[(s * channels + d) * (width - 1) + k] ?? 0);
      const all = [...before, ...x!.data.subarray((b * channels + d) * length + begin, (b * channels + d) * length + end)];
      for (let t = begin; t < end; t++) {
        let sum = bias ? bias.data[d]! : 0;
        for (let j = 0; j < width; j++) sum += weight!.data[d * width + j]! * all[t - begin + j]!;
        y.data[(b * channels + d) * length + t] = activated(sum, activation);
      }
      all.slice(all.length - (width - 1)).forEach((v, k) => (finalStates.data[(s * channels + d) * (width - 1) + k] = v));
    }
  });
  return { y, finalStates };
};

export const causalConv1dUpdate: Reference = ({ x, convState, weight, bias, cacheSeqlens }, { activation }) => {
  const [batch, channels, tokens = 1] = x!.shape as [number, number, number?];
  const width = weight!.shape[1]!;
  const size = convState!.shape[2]!;
  const y = zeros(x!.shape);
  const state: NdArray = { shape: convState!.shape, data: convState!.data.slice() };
  for (let b = 0; b < batch; b++)
    for (let d = 0; d < channels; d++) {
      const row = state.data.subarray((b * channels + d) * size, (b * channels + d + 1) * size);
      for (let t = 0; t < tokens; t++) {
        const value = x!.data[(b * channels + d) * tokens + t]!;
        const at = cacheSeqlens ? cacheSeqlens.data[b]! + t : 0;
        // the W-1 inputs before this one, oldest first
        const history = Array.from({ length: width - 1 }, (_, k) =>
          cacheSeqlens ? row[(((at - (width - 1) + k) % size) + size) % size]! : row[size - (width - 1) + k]!,
        );
        const taps = [...history, value];
        const sum = taps.reduce((total, v, j) => total + weight!.data[d * width + j]! * v, bias ? bias.data[d]! : 0);
        y.data[(b * channels + d) * tokens + t] = activated(sum, activation);
        if (cacheSeqlens) row[at % size] = value;
        else if (size > 0) {
          row.copyWithin(0, 1);
          row[size - 1] = value;
        }
      }
    }
  return { y, convState: state };
};
