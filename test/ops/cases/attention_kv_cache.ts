import { normal, values, type OpCase } from '../case.js';

interface Options {
  Lq?: number;
  Lmax: number;
  lengths: number[];
  H?: number;
  Hk?: number;
  D?: number;
  attrs?: OpCase['attrs'];
  order?: number[];
}

function make(name: string, { Lq = 1, Lmax, lengths, H = 4, Hk = 2, D = 32, attrs, order }: Options): OpCase {
  const B = lengths.length;
  return {
    op: 'attentionKvCache',
    name,
    inputs: {
      q: normal([B, Lq, H, D]),
      kCache: normal([B, Lmax, Hk, D], 1, 0, { order }),
      vCache: normal([B, Lmax, Hk, D], 1, 0, { order }),
      lengths: values([B], lengths),
    },
    ...(attrs && { attrs }),
  };
}

function append(name: string, shape: [number, number, number, number], added: number, positions: number[], order?: number[]): OpCase {
  const [B, , Hk, D] = shape;
  return {
    op: 'kvCacheAppend',
    name,
    inputs: { cache: normal(shape), x: normal([B, added, Hk, D], 1, 0, { order }), positions: values([B], positions) },
  };
}

export const cases: OpCase[] = [
  make('one key', { Lmax: 1, lengths: [1] }),
  make('one query, other lengths', { Lmax: 130, lengths: [130, 7, 65, 0] }),
  make('three splits', { Lmax: 1100, lengths: [1100, 517], H: 3, Hk: 1 }),
  make('odd channels', { Lmax: 70, lengths: [33, 70], D: 20 }),
  make('128 channels', { Lmax: 300, lengths: [300, 70], H: 4, Hk: 2, D: 128 }),
  make('256 channels, 8 heads a group', { Lmax: 65, lengths: [65], H: 8, Hk: 1, D: 256 }),
  make('three queries', { Lq: 3, Lmax: 40, lengths: [40, 17, 2] }),
  make('three queries, no mask, given scale', { Lq: 3, Lmax: 40, lengths: [40, 17, 2], attrs: { causal: false, scale: 0.3 } }),
  make('many queries', { Lq: 37, Lmax: 150, lengths: [150, 37, 20] }),
  make('window', { Lmax: 700, lengths: [700, 600], attrs: { windowLeft: 100 } }),
  make('window, many queries', { Lq: 20, Lmax: 150, lengths: [150, 60], attrs: { windowLeft: 10 } }),
  make('cache ordered by head', { Lmax: 90, lengths: [90, 30], order: [0, 2, 1, 3] }),
  make('a cache without room', { Lmax: 0, lengths: [0, 0] }),
  make('no batch', { Lmax: 9, lengths: [] }),
  append('one token', [3, 40, 2, 32], 1, [0, 7, 39]),
  append('a prompt', [2, 150, 3, 20], 130, [0, 20]),
  append('tokens ordered by head', [2, 20, 3, 8], 5, [3, 0], [0, 2, 1, 3]),
  append('no tokens', [1, 5, 2, 8], 0, [5]),
  append('no batch', [0, 5, 2, 8], 1, []),
];
