import type fc from 'fast-check';
import { ints, normal, uniform, values, type Draw, type OpCase } from './case.js';

/** Cases of random shapes and options of one op. */
export interface RandomCases {
  op: string;
  /** how many of them the tests try */
  runs: number;
  arbitrary: fc.Arbitrary<Omit<OpCase, 'op' | 'name'>>;
}
type Body = Omit<OpCase, 'op' | 'name'>;
type FastCheck = typeof fc;

const f32: Partial<Draw> = { dtype: 'f32' };

/** Starts of packed sequences that fill `total`, empty ones included. */
function starts(total: number, cuts: readonly number[]): number[] {
  return [0, ...cuts.map((c) => Math.min(total, Math.floor(c * (total + 1)))).sort((a, b) => a - b), total];
}

/**
 * Random cases by op. `small` ones are within reach of the float64 references; the others have the sizes of a model's
 * tensors, up to some hundreds of positions and 256 channels, whole tiles as well as ragged ones.
 * @param check the module fast-check
 */
export function randomCases(check: FastCheck, small: boolean): RandomCases[] {
  const size = (low: number, high: number): fc.Arbitrary<number> => check.integer({ min: low, max: high });
  const yes = check.boolean();
  const one = <T>(...list: T[]): fc.Arbitrary<T> => check.constantFrom(...list);
  /** Lengths around the kernels' chunk sizes as well as small ones. */
  const length = small
    ? check.oneof(size(1, 20), size(60, 70), size(126, 140))
    : check.oneof(size(1, 300), one(64, 128, 256, 512), size(500, 700));
  const width = small ? size(1, 40) : one(16, 32, 48, 64, 80, 128);
  const channels = small ? one(1, 8, 24, 32, 64, 80) : one(32, 40, 64, 80, 96, 128, 160, 192, 256);
  const rows = small ? check.oneof(size(0, 4), size(1, 70), size(120, 140)) : check.oneof(size(1, 64), one(128, 512, 1024), size(300, 1100));
  const columns = small ? size(1, 100) : check.oneof(size(1, 500), one(192, 512, 2048), size(1000, 3000));
  const batches = small ? size(1, 2) : size(1, 3);
  const fractions = check.option(
    check.array(check.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), { maxLength: 4 }),
    { nil: undefined, freq: 2 },
  );
  const list: RandomCases[] = [];
  const family = <T extends Record<string, unknown>>(op: string, runs: number, parts: { [K in keyof T]: fc.Arbitrary<T[K]> }, make: (drawn: T) => Body): void =>
    void list.push({ op, runs, arbitrary: check.record(parts).map((drawn) => make(drawn as T)) });

  family(
    'ssd', 25,
    {
      batch: batches, L: length, groups: size(1, 3), perGroup: size(1, 2), P: width, N: width, packed: fractions,
      D: one('none', 'h', 'hp'), z: yes, bias: yes, initial: yes, softplus: yes,
    },
    ({ batch, L, groups, perGroup, P, N, packed, D, z, bias, initial, softplus }) => {
      const H = groups * perGroup;
      const B = packed ? 1 : batch;
      const cu = packed && starts(L, packed);
      return {
        inputs: {
          x: normal([B, L, H, P]),
          dt: softplus ? normal([B, L, H], 0.5, -1) : uniform([B, L, H], 0.01, 0.5),
          A: uniform([H], -2, -0.2, f32),
          B: normal([B, L, groups, N], N ** -0.5),
          C: normal([B, L, groups, N]),
          ...(D !== 'none' && { D: normal(D === 'h' ? [H] : [H, P], 1, 0, f32) }),
          ...(z && { z: normal([B, L, H, P]) }),
          ...(bias && { dtBias: uniform([H], 0, 0.3, f32) }),
          ...(initial && { initialStates: normal([cu ? cu.length - 1 : B, H, P, N], 1, 0, f32) }),
          ...(cu && { cuSeqlens: values([cu.length], cu) }),
        },
        attrs: { dtSoftplus: softplus },
      };
    },
  );

  for (const op of ['linearAttention', 'simpleGla', 'gla'])
    family(op, 10, { batch: batches, T: length, H: size(1, 3), K: width, V: width, initial: yes, packed: fractions }, ({ batch, T, H, K, V, initial, packed }) => {
      const B = packed ? 1 : batch;
      const cu = packed && starts(T, packed);
      return {
        inputs: {
          q: normal([B, T, H, K]),
          k: normal([B, T, H, K]),
          v: normal([B, T, H, V]),
          ...(op === 'simpleGla' && { g: uniform([B, T, H], -1, 0) }),
          ...(op === 'gla' && { gk: uniform([B, T, H, K], -1, 0) }),
          ...(initial && { initialState: normal([cu ? cu.length - 1 : B, H, K, V], 1, 0, f32) }),
          ...(cu && { cuSeqlens: values([cu.length], cu) }),
        },
      };
    });

  family(
    'selectiveScan', 10,
    { batch: batches, D: width, L: length, N: small ? size(1, 20) : one(4, 16, 17), skip: yes, gate: yes, softplus: yes, groups: size(1, 2), last: yes },
    ({ batch, D, L, N, skip, gate, softplus, groups, last }) => {
      const C = D * groups;
      const shape = [batch, C, L];
      const order = last ? { order: [0, 2, 1] } : {};
      return {
        inputs: {
          u: normal(shape, 1, 0, order),
          delta: softplus ? normal(shape, 0.5, -1, order) : uniform(shape, 0.05, 0.5, order),
          A: uniform([C, N], -2, -0.1, f32),
          B: normal([batch, groups, N, L]),
          C: normal([batch, groups, N, L]),
          ...(skip && { D: normal([C], 1, 0, f32) }),
          ...(gate && { z: normal(shape, 1, 0, order) }),
        },
        attrs: { deltaSoftplus: softplus },
      };
    },
  );

  family(
    'selectiveStateUpdate', 10,
    { batch: size(1, 4), groups: size(1, 3), perGroup: size(1, 2), P: width, N: width, gate: yes, softplus: yes },
    ({ batch, groups, perGroup, P, N, gate, softplus }) => {
      const H = groups * perGroup;
      return {
        inputs: {
          state: normal([batch, H, P, N], 1, 0, f32), x: normal([batch, H, P]), dt: uniform([batch, H], 0.05, 0.5), A: uniform([H], -2, -0.1, f32),
          B: normal([batch, groups, N]), C: normal([batch, groups, N]), ...(gate && { z: normal([batch, H, P]) }),
        },
        attrs: { dtSoftplus: softplus },
      };
    },
  );

  family(
    'attention', 30,
    {
      batch: batches, Lq: length, Lk: length, heads: size(1, 3), perHead: size(1, 3), D: channels, causal: yes, left: one(-1, -1, 0, 5, 30),
      right: one(-1, -1, 0, 7), packed: fractions,
    },
    ({ batch, Lq, Lk, heads, perHead, D, causal, left, right, packed }) => {
      const B = packed ? 1 : batch;
      const cuQ = packed && starts(Lq, packed);
      return {
        inputs: {
          q: normal([B, Lq, heads * perHead, D]),
          k: normal([B, Lk, heads, D]),
          v: normal([B, Lk, heads, D]),
          ...(cuQ && { cuSeqlensQ: values([cuQ.length], cuQ), cuSeqlensK: values([cuQ.length], starts(Lk, packed)) }),
        },
        attrs: { causal, windowLeft: left, windowRight: right },
      };
    },
  );

  family(
    'attentionKvCache', 10,
    { lengths: check.array(length, { minLength: 1, maxLength: 3 }), Lq: one(1, 1, 3, 20), spare: size(0, 20), Hk: size(1, 2), perHead: size(1, 4), D: channels },
    ({ lengths, Lq, spare, Hk, perHead, D }) => {
      const B = lengths.length;
      const held = lengths.map((n) => n + Lq - 1);
      const Lmax = Math.max(...held) + spare;
      return { inputs: { q: normal([B, Lq, Hk * perHead, D]), kCache: normal([B, Lmax, Hk, D]), vCache: normal([B, Lmax, Hk, D]), lengths: values([B], held) } };
    },
  );

  family(
    'causalConv1d', 30,
    { batch: size(1, 3), D: small ? size(1, 40) : size(1, 300), L: length, W: size(2, 5), bias: yes, initial: yes, silu: yes, channelLast: yes, packed: fractions },
    ({ batch, D, L, W, bias, initial, silu, channelLast, packed }) => {
      const B = packed ? 1 : batch;
      const cu = packed && starts(L, packed);
      return {
        inputs: {
          x: normal([B, D, L], 1, 0, channelLast ? { order: [0, 2, 1] } : {}),
          weight: normal([D, W], 0.5),
          ...(bias && { bias: normal([D], 0.5) }),
          ...(initial && { initialStates: normal([cu ? cu.length - 1 : B, D, W - 1]) }),
          ...(cu && { cuSeqlens: values([cu.length], cu) }),
        },
        attrs: { activation: silu ? 'silu' : 'none' },
      };
    },
  );

  family(
    'linear', 30,
    { rows, K: columns, N: small ? columns : size(1, 700), bias: yes, residual: yes, activation: one('none', 'gelu', 'silu') },
    ({ rows: M, K, N, bias, residual, activation }) => ({
      inputs: {
        x: normal([M, K]),
        weight: normal([N, K], K ** -0.5),
        ...(bias && { bias: normal([N]) }),
        ...(residual && { residual: normal([M, N]) }),
      },
      attrs: { activation },
    }),
  );

  family('matmul', 10, { batch: size(0, 3), M: length, K: length, N: length, transposeA: yes, transposeB: yes }, ({ batch, M, K, N, transposeA, transposeB }) => {
    const lead = batch ? [batch] : [];
    return {
      inputs: { a: normal([...lead, ...(transposeA ? [K, M] : [M, K])]), b: normal([...lead, ...(transposeB ? [N, K] : [K, N])], K ** -0.5) },
      attrs: { transposeA, transposeB },
    };
  });

  // one channel has no spread: its gradient is all cancellation
  const norms = { rows, n: columns.map((n) => n + 1), typed: yes };
  const parameter = (n: number, typed: boolean): Draw => normal([n], 0.1, 1, typed ? {} : f32);
  family('rmsNorm', 10, norms, ({ rows: M, n, typed }) => ({ inputs: { x: normal([M, n]), weight: parameter(n, typed) }, attrs: { eps: 1e-5 } }));
  family('layerNorm', 10, norms, ({ rows: M, n, typed }) => ({
    inputs: { x: normal([M, n]), weight: parameter(n, typed), bias: normal([n], 1, 0, typed ? {} : f32) },
    attrs: { eps: 1e-5 },
  }));
  family('gatedRmsNorm', 10, { ...norms, heads: size(1, 4), n: channels.map((n) => n + 1) }, ({ rows: M, heads, n, typed }) => ({
    inputs: { x: normal([M, heads, n]), gate: normal([M, heads, n], 2), weight: parameter(n, typed) },
    attrs: { eps: 1e-5 },
  }));
  for (const op of ['gelu', 'silu']) family(op, 5, { rows, n: columns }, ({ rows: M, n }) => ({ inputs: { x: normal([M, n], 3) } }));
  family('swiglu', 5, { rows, n: columns, turned: yes }, ({ rows: M, n, turned }) => ({
    inputs: { a: normal([M, n], 3), b: normal([M, n], 1, 0, turned ? { order: [1, 0] } : {}) },
  }));

  /** A shape and another that broadcasts to it. */
  const broadcast = { shape: check.array(small ? size(1, 12) : size(1, 40), { minLength: 1, maxLength: 4 }), kept: check.array(yes, { minLength: 4, maxLength: 4 }), lead: size(0, 3) };
  for (const op of ['add', 'mul', 'div'])
    family(op, 10, broadcast, ({ shape, kept, lead }) => {
      const other = shape.map((d, i) => (kept[i] ? d : 1)).slice(Math.min(lead, shape.length));
      return { inputs: { a: normal(shape), b: op === 'div' ? uniform(other, 0.5, 2) : normal(other) } };
    });
  family('copy', 10, { shape: check.array(small ? size(1, 20) : size(1, 40), { minLength: 1, maxLength: 4 }), seed: size(0, 23) }, ({ shape, seed }) => {
    const order = shape.map((_, i) => i);
    for (let i = order.length - 1, s = seed; i > 0; i--) {
      const j = s % (i + 1);
      s = Math.floor(s / (i + 1));
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return { inputs: { x: normal(shape, 1, 0, { order }) } };
  });
  for (const op of ['sum', 'mean', 'max'])
    family(op, 5, { a: rows.map((n) => n + 1), b: columns, axis: one(0, 1) }, ({ a, b, axis }) => ({ inputs: { x: normal([a, b], 1, 0.5) }, attrs: { axis } }));

  family('crossEntropy', 10, { rows, n: columns, smoothing: one(0, 0.1) }, ({ rows: M, n, smoothing }) => ({
    inputs: { logits: normal([M, n], 2), labels: ints([M], 0, n) },
    attrs: { labelSmoothing: smoothing },
  }));
  family('klDiv', 10, { rows, n: columns.map((n) => n + 1), temperature: one(1, 2) }, ({ rows: M, n, temperature }) => ({
    inputs: { student: normal([M, n], 1.5), teacher: normal([M, n], 1.5) },
    attrs: { temperature },
  }));
  family('mse', 5, { rows, n: columns }, ({ rows: M, n }) => ({ inputs: { pred: normal([M, n]), target: normal([M, n]) } }));
  family('embedding', 5, { vocabulary: size(1, 300), n: columns, count: rows }, ({ vocabulary, n, count }) => ({
    inputs: { weight: normal([vocabulary, n]), ids: ints([count], 0, vocabulary) },
  }));
  family('gatherRows', 5, { count: rows, from: size(1, 200), n: columns }, ({ count, from, n }) => ({ inputs: { x: normal([from, n]), index: ints([count], 0, from) } }));
  family('concat', 5, { parts: check.array(size(0, 40), { minLength: 1, maxLength: 4 }), rows, axis: one(0, 1) }, ({ parts, rows: M, axis }) => ({
    inputs: { x: parts.map((n) => normal(axis === 0 ? [n, M] : [M, n])) },
    attrs: { axis },
  }));
  family('rope', 10, { B: batches, L: length, H: size(1, 3), Hk: size(1, 2), D: channels.map((d) => 2 * Math.ceil(d / 2)), each: yes, turned: yes }, ({ B, L, H, Hk, D, each, turned }) => {
    const order = turned ? { order: [0, 2, 1, 3] } : {};
    return {
      inputs: {
        q: normal([B, H, L, D], 1, 0, order), k: normal([B, Hk, L, D], 1, 0, order), cos: normal([70, D], 1, 0, f32), sin: normal([70, D], 1, 0, f32),
        positionIds: ints([each ? B : 1, L], 0, 70),
      },
    };
  });
  return list;
}
