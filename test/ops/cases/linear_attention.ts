import { normal, uniform, values, type Draw, type OpCase } from '../case.js';

interface Options {
  B?: number;
  T: number;
  H?: number;
  K?: number;
  V?: number;
  initial?: boolean;
  cu?: number[];
  attrs?: OpCase['attrs'];
  extra?: Record<string, Draw>;
}
const f32: Partial<Draw> = { dtype: 'f32' };

function make(op: string, name: string, o: Options, decay: (shape: number[], K: number) => Record<string, Draw> = () => ({})): OpCase {
  const { B = 1, T, H = 2, K = 16, V = 16, initial, cu, attrs, extra } = o;
  return {
    op,
    name,
    inputs: {
      q: normal([B, T, H, K]),
      k: normal([B, T, H, K]),
      v: normal([B, T, H, V]),
      ...decay([B, T, H], K),
      ...(initial && { initialState: normal([cu ? cu.length - 1 : B, H, K, V], 1, 0, f32) }),
      ...(cu && { cuSeqlens: values([cu.length], cu) }),
      ...extra,
    },
    ...(attrs && { attrs }),
  };
}

/** Shapes that every op of the family is tried with. */
const shapes: [string, Options][] = [
  ['one step', { B: 2, T: 1 }],
  ['one step with a state', { T: 1, initial: true }],
  ['7 steps, given scale', { B: 2, T: 7, H: 3, K: 8, V: 24, attrs: { scale: 0.5 } }],
  ['one head, odd widths', { T: 33, H: 1, K: 7, V: 5, initial: true }],
  ['one exact chunk', { T: 64, K: 32, V: 16 }],
  ['65 steps', { T: 65, H: 3, V: 24, initial: true }],
  ['130 steps', { B: 2, T: 130, H: 2, K: 19, V: 17, initial: true }],
  ['517 steps, one head', { T: 517, H: 1, K: 8, V: 16, initial: true }],
  ['517 steps, many heads', { T: 517, H: 8, K: 4, V: 4 }],
  ['300 steps, wide heads', { T: 300, K: 128, V: 128, initial: true }],
  ['no sequences', { B: 0, T: 5 }],
  ['no steps', { B: 2, T: 0, initial: true }],
  ['packed', { T: 150, cu: [0, 3, 67, 68, 68, 150] }],
  ['packed with initial states', { T: 100, H: 3, initial: true, cu: [0, 0, 66, 100] }],
  [
    'memory ordered by head',
    {
      B: 2, T: 37, H: 3,
      extra: {
        q: normal([2, 37, 3, 16], 1, 0, { order: [0, 2, 1, 3] }),
        k: normal([2, 37, 3, 16], 1, 0, { order: [2, 0, 1, 3] }),
        v: normal([2, 37, 3, 16], 1, 0, { order: [0, 3, 2, 1] }),
      },
    },
  ],
];
/** normalize divides by a sum of products, so q and k are positive. */
function normalized(name: string, o: Options): OpCase {
  const c = make('linearAttention', `normalize, ${name}`, { ...o, attrs: { ...o.attrs, normalize: true } });
  const shape = (c.inputs['q'] as Draw).shape;
  // over one step o = v, whatever q and k
  return { ...c, inputs: { ...c.inputs, q: uniform(shape, 0.1, 1), k: uniform(shape, 0.1, 1) }, ...(o.T === 1 && !o.initial && { grads: ['v'] }) };
}

const perHead = (shape: number[]): Record<string, Draw> => ({ g: uniform(shape, -1, 0) });
const perChannel = (shape: number[], K: number): Record<string, Draw> => ({ gk: uniform([...shape, K], -1, 0) });

export const cases: OpCase[] = [
  ...shapes.map(([name, o]) => make('linearAttention', name, o)),
  ...shapes.filter(([name]) => !name.startsWith('memory')).map(([name, o]) => normalized(name, o)),
  ...shapes.map(([name, o]) => make('simpleGla', name, o, perHead)),
  make('simpleGla', 'strong decay', { T: 130, extra: { g: uniform([1, 130, 2], -60, -10) } }),
  make('simpleGla', 'decay beyond the range of exp', { T: 70, initial: true, extra: { g: uniform([1, 70, 2], -9000, -2000) } }),
  // the finite differences' step, a share of the operand's size, is too large for the weak decays
  {
    ...make('simpleGla', 'no decay, then all of it', { T: 70, initial: true, extra: { g: values([1, 70, 2], Array.from({ length: 140 }, (_, i) => (i % 30 ? 0 : -2000)), 'f32') } }),
    grads: ['q', 'k', 'v', 'initialState'],
  },
  make('simpleGla', 'log-decays in f32, by head', { B: 2, T: 40, extra: { g: uniform([2, 40, 2], -1, 0, { dtype: 'f32', order: [0, 2, 1] }) } }),
  ...shapes.map(([name, o]) => make('gla', name, o, perChannel)),
  make('gla', 'strong decay', { T: 130, extra: { gk: uniform([1, 130, 2, 16], -60, -10) } }),
  make('gla', 'decay beyond the range of exp', { T: 70, initial: true, extra: { gk: uniform([1, 70, 2, 16], -9000, -2000) } }),
  make('gla', 'strong and weak decays side by side', {
    T: 70, initial: true, extra: { gk: values([1, 70, 2, 16], Array.from({ length: 70 * 32 }, (_, i) => ((i * 7) % 11 ? -0.01 : -50)), 'f32') },
  }),
  make('gla', 'log-decays in f32, by head', { B: 2, T: 40, extra: { gk: uniform([2, 40, 2, 16], -1, 0, { dtype: 'f32', order: [0, 2, 1, 3] }) } }),
];
