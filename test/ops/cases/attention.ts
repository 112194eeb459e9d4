import { normal, values, type OpCase } from '../case.js';

interface Options {
  B?: number;
  L: number;
  Lk?: number;
  H?: number;
  Hk?: number;
  D?: number;
  cuQ?: number[];
  cuK?: number[];
  attrs?: OpCase['attrs'];
  /** memory order of q, k and v, which are (B, L, H, D) */
  order?: number[];
}

function make(name: string, { B = 1, L, Lk = L, H = 2, Hk = H, D = 32, cuQ, cuK = cuQ, attrs, order }: Options): OpCase {
  return {
    op: 'attention',
    name,
    inputs: {
      q: normal([B, L, H, D], 1, 0, { order }),
      k: normal([B, Lk, Hk, D], 1, 0, { order }),
      v: normal([B, Lk, Hk, D], 1, 0, { order }),
      ...(cuQ && cuK && { cuSeqlensQ: values([cuQ.length], cuQ), cuSeqlensK: values([cuK.length], cuK) }),
    },
    ...(attrs && { attrs }),
  };
}
const causal = { causal: true };

export const cases: OpCase[] = [
  make('one token', { B: 2, L: 1, H: 4, Hk: 2, attrs: causal }),
  make('one channel', { L: 7, D: 1 }),
  make('7 tokens, three heads a group', { B: 2, L: 7, H: 6, Hk: 2, D: 24, attrs: causal }),
  make('no mask, given scale', { B: 2, L: 9, Lk: 21, attrs: { scale: 0.3 } }),
  make('65 tokens', { L: 65, Hk: 1, D: 64, attrs: causal }),
  make('130 tokens, odd channels', { L: 130, H: 3, D: 20, attrs: causal }),
  make('130 tokens, 8 heads a group', { L: 130, H: 8, Hk: 1, D: 16, attrs: causal }),
  make('517 tokens, one head', { L: 517, H: 1, D: 16, attrs: causal }),
  make('128 channels', { L: 200, H: 2, Hk: 1, D: 128, attrs: causal }),
  make('256 channels', { L: 40, Lk: 70, H: 2, Hk: 1, D: 256, attrs: causal }),
  make('1100 keys in pieces', { L: 40, Lk: 1100, H: 2, Hk: 1, D: 8, attrs: causal }),
  make('more keys than queries', { L: 5, Lk: 137, H: 4, Hk: 2, D: 33, attrs: causal }),
  make('more queries than keys: rows without a key', { L: 90, Lk: 40, H: 2, Hk: 1, attrs: causal }),
  make('sliding window', { L: 150, Hk: 1, attrs: { causal: true, windowLeft: 8 } }),
  make('window of the token itself', { L: 20, attrs: { causal: true, windowLeft: 0 } }),
  make('window to both sides', { L: 140, attrs: { windowLeft: 6, windowRight: 3 } }),
  make('window to the right', { L: 70, Lk: 90, attrs: { windowRight: 2 } }),
  make('sliding window over a longer past', { L: 7, Lk: 300, H: 4, Hk: 2, attrs: { causal: true, windowLeft: 10, scale: 0.2 } }),
  make('packed', { L: 150, H: 4, Hk: 2, cuQ: [0, 3, 67, 68, 68, 150], attrs: causal }),
  make('packed, keys of other lengths', { L: 41, Lk: 160, H: 2, Hk: 1, cuQ: [0, 1, 5, 5, 41], cuK: [0, 9, 29, 40, 160], attrs: causal }),
  make('packed, a sequence without keys', { L: 10, Lk: 4, cuQ: [0, 6, 10], cuK: [0, 0, 4] }),
  make('large scores', { L: 33, attrs: { causal: true, scale: 2 } }),
  make('no batch', { B: 0, L: 5, attrs: causal }),
  make('no queries', { L: 0, Lk: 5 }),
  make('no keys', { L: 5, Lk: 0 }),
  make('memory ordered by head', { B: 2, L: 37, H: 4, Hk: 2, order: [0, 2, 1, 3], attrs: causal }),
  make('channels not the last axis in memory', { B: 2, L: 20, H: 2, Hk: 1, order: [0, 3, 1, 2], attrs: causal }),
];
