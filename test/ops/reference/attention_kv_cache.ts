import type { Reference } from '../case.js';
import { softmaxAttention } from './attention.js';

export const attentionKvCache: Reference = ({ q, kCache, vCache, lengths }, { scale = 0, causal = true, windowLeft = -1 }) => {
  const sequences = Array.from(lengths!.data, (keys, batch) => ({ batch, firstQuery: 0, queries: q!.shape[1]!, firstKey: 0, keys }));
  const { o } = softmaxAttention(q!, kCache!, vCache!, sequences, Number(scale), { causal: Boolean(causal), left: Number(windowLeft), right: -1 });
  return { o };
};

export const kvCacheAppend: Reference = ({ cache, x, positions }) => {
  const [batch, added, heads, dim] = x!.shape as [number, number, number, number];
  const capacity = cache!.shape[1]!;
  const row = heads * dim;
  const written = { shape: cache!.shape, data: cache!.data.slice() };
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < added; t++)
      for (let i = 0; i < row; i++) written.data[(b * capacity + positions!.data[b]! + t) * row + i] = x!.data[(b * added + t) * row + i]!;
  return { cache: written };
};
