import { ints, normal, type OpCase } from '../case.js';

interface Options {
  B?: number;
  L: number;
  H?: number;
  Hk?: number;
  D?: number;
  /** leading size of positionIds */
  P?: number;
  inverse?: boolean;
  order?: number[];
}

function make(name: string, { B = 1, L, H = 4, Hk = 2, D = 32, P = 1, inverse, order }: Options): OpCase {
  return {
    op: 'rope',
    name,
    inputs: {
      q: normal([B, H, L, D], 1, 0, { order }),
      k: normal([B, Hk, L, D], 1, 0, { order }),
      cos: normal([70, D], 1, 0, { dtype: 'f32' }),
      sin: normal([70, D], 1, 0, { dtype: 'f32' }),
      positionIds: ints([P, L], 0, 70),
    },
    ...(inverse && { attrs: { inverse } }),
  };
}
const table = (name: string, attrs: NonNullable<OpCase['attrs']>): OpCase => ({ op: 'ropeTable', name, inputs: {}, attrs });

export const cases: OpCase[] = [
  make('one token, two channels', { L: 1, D: 2 }),
  make('7 tokens', { B: 2, L: 7 }),
  make('positions by batch entry', { B: 3, L: 7, P: 3 }),
  make('65 tokens, one head, odd halves', { L: 65, H: 1, Hk: 1, D: 42 }),
  make('inverse', { B: 2, L: 9, D: 64, inverse: true }),
  make('memory ordered by token', { B: 2, L: 17, order: [0, 2, 1, 3] }),
  make('channels not the last axis in memory', { B: 2, L: 5, order: [0, 3, 1, 2] }),
  make('no batch', { B: 0, L: 5 }),
  make('no tokens', { L: 0 }),
  table('plain', { headDim: 16, maxPosition: 130, seqLen: 7, theta: 1e6 }),
  table('given length', { headDim: 32, maxPosition: 10, seqLen: 7, length: 65 }),
  table('linear', { headDim: 32, maxPosition: 64, seqLen: 65, scaling: 'linear', factor: 2.5 }),
  table('dynamic, short', { headDim: 16, maxPosition: 32, seqLen: 7, scaling: 'dynamic', factor: 2 }),
  table('dynamic, long', { headDim: 16, maxPosition: 32, seqLen: 65, scaling: 'dynamic', factor: 2 }),
  table('empty', { headDim: 2 }),
];
