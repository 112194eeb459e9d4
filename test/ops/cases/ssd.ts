import { normal, uniform, values, type Draw, type OpCase } from '../case.js';

interface Options {
  B?: number;
  L: number;
  H?: number;
  G?: number;
  P?: number;
  N?: number;
  D?: 'h' | 'hp';
  z?: boolean;
  bias?: boolean;
  initial?: boolean;
  cu?: number[];
  softplus?: boolean;
  /** A in [-strength, -strength/2) */
  strength?: number;
  extra?: Record<string, Draw>;
}
const f32: Partial<Draw> = { dtype: 'f32' };

function make(name: string, o: Options): OpCase {
  const { B = 1, L, H = 2, G = 1, P = 16, N = 16, D, z, bias = true, initial, cu, softplus = true, strength = 1.5, extra } = o;
  return {
    op: 'ssd',
    name,
    inputs: {
      x: normal([B, L, H, P]),
      dt: softplus ? normal([B, L, H], 0.5, -1) : uniform([B, L, H], 0.01, 0.5),
      A: uniform([H], -strength, -strength / 2, f32),
      B: normal([B, L, G, N], N ** -0.5),
      C: normal([B, L, G, N]),
      ...(D && { D: normal(D === 'h' ? [H] : [H, P], 1, 0, f32) }),
      ...(z && { z: normal([B, L, H, P]) }),
      ...(bias && { dtBias: uniform([H], 0, 0.3, f32) }),
      ...(initial && { initialStates: normal([cu ? cu.length - 1 : B, H, P, N], 1, 0, f32) }),
      ...(cu && { cuSeqlens: values([cu.length], cu) }),
      ...extra,
    },
    attrs: { dtSoftplus: softplus },
  };
}

export const cases: OpCase[] = [
  make('one step', { B: 2, L: 1, H: 4, P: 32 }),
  make('one step with everything', { L: 1, D: 'h', z: true, initial: true }),
  make('7 steps, two groups', { B: 2, L: 7, H: 4, G: 2, P: 8, N: 32, bias: false, softplus: false }),
  make('one head, odd widths', { L: 33, H: 1, P: 5, N: 7, D: 'hp', z: true, initial: true }),
  make('one exact chunk', { L: 64, H: 2, G: 2, P: 64 }),
  make('two exact chunks', { L: 128, H: 3, G: 1, D: 'h' }),
  make('65 steps', { L: 65, H: 3, G: 3, P: 16, N: 24, initial: true }),
  make('130 steps with everything', { B: 2, L: 130, H: 4, G: 2, P: 17, N: 19, D: 'hp', z: true, initial: true }),
  make('517 steps, one head', { L: 517, H: 1, P: 16, N: 8, initial: true }),
  make('517 steps, many heads', { L: 517, H: 8, G: 8, P: 4, N: 4, D: 'h' }),
  make('wide heads, two to a group', { L: 300, P: 64, N: 128, D: 'h', initial: true }),
  make('wide heads with everything', { B: 2, L: 130, G: 2, P: 128, N: 128, D: 'hp', z: true, initial: true }),
  make('wide heads, short and many, gated', { B: 2, L: 40, H: 20, P: 64, N: 128, D: 'h', z: true }),
  make('no sequences', { B: 0, L: 9 }),
  make('no steps', { B: 2, L: 0, initial: true }),
  make('packed', { L: 150, D: 'h', z: true, cu: [0, 3, 67, 68, 68, 150] }),
  make('packed with initial states', { L: 100, H: 4, G: 2, initial: true, cu: [0, 0, 66, 100] }),
  make('packed, one sequence', { L: 70, H: 1, initial: true, cu: [0, 70] }),
  make('strong decay', { L: 130, strength: 60, extra: { dt: normal([1, 130, 2], 1, 1) } }),
  make('decay beyond the range of exp', { L: 70, strength: 4000, initial: true, extra: { dt: normal([1, 70, 2], 1, 3) } }),
  make('hardly any decay', { L: 130, strength: 1e-4 }),
  make('memory ordered by head', {
    B: 2, L: 37, H: 3, G: 3, z: true,
    extra: {
      x: normal([2, 37, 3, 16], 1, 0, { order: [0, 2, 1, 3] }),
      z: normal([2, 37, 3, 16], 1, 0, { order: [2, 0, 1, 3] }),
      B: normal([2, 37, 3, 16], 0.25, 0, { order: [0, 2, 1, 3] }),
      C: normal([2, 37, 3, 16], 1, 0, { order: [1, 0, 2, 3] }),
      dt: normal([2, 37, 3], 0.5, -1, { order: [1, 0, 2] }),
    },
  }),
  make('memory ordered by channel', { L: 37, extra: { x: normal([1, 37, 2, 16], 1, 0, { order: [0, 3, 2, 1] }), dt: normal([1, 37, 2], 0.5, -1, { order: [0, 2, 1] }) } }),
  make('parameters in the dtype of x', {
    L: 40, extra: { A: uniform([2], -1.5, -0.5), D: normal([2, 16]), dtBias: uniform([2], 0, 0.3) },
  }),
  make('dt in f32', { L: 40, extra: { dt: normal([1, 40, 2], 0.5, -1, f32) } }),
];
