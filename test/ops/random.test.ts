import test from 'ava';
import fc from 'fast-check';
import { normal, uniform, values, type Draw, type OpCase } from './case.js';
import { loadCatalogue } from './catalogue.js';
import { checkFinite, checkForward } from './check.js';

const { references } = await loadCatalogue();

/** Checks cases of random shapes and options; a failure is shrunk to a small one and printed. */
function property(op: string, runs: number, arbitrary: fc.Arbitrary<Omit<OpCase, 'op' | 'name'>>): void {
  test.serial(`${op}: random shapes`, async (t) => {
    const reference = references.get(op);
    if (!reference) return t.fail(`test/ops/reference has no export '${op}'`);
    await fc.assert(
      fc.asyncProperty(arbitrary, fc.constantFrom('f32', 'bf16', 'f16'), async (body, dtype) => {
        const c: OpCase = { op, name: JSON.stringify(body), ...body };
        const problems = [...(await checkForward(c, reference, dtype)), ...(dtype === 'f32' ? await checkFinite(c, reference) : [])];
        if (problems.length) throw new Error(problems.join('\n'));
      }),
      { seed: 2502, numRuns: runs },
    );
    t.pass();
  });
}

const size = (low: number, high: number): fc.Arbitrary<number> => fc.integer({ min: low, max: high });
/** Lengths around the kernels' chunk sizes as well as small ones. */
const length = fc.oneof(size(1, 20), size(60, 70), size(126, 140));
const f32: Partial<Draw> = { dtype: 'f32' };

/** Starts of packed sequences that fill `total`, empty ones included. */
function starts(total: number, cuts: readonly number[]): number[] {
  return [0, ...cuts.map((c) => Math.min(total, Math.floor(c * (total + 1)))).sort((a, b) => a - b), total];
}
const fractions = fc.option(fc.array(fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), { maxLength: 4 }), { nil: undefined, freq: 2 });

property(
  'ssd',
  25,
  fc
    .record({
      batch: size(1, 2), L: length, groups: size(1, 3), perGroup: size(1, 2), P: size(1, 40), N: size(1, 40), packed: fractions,
      D: fc.constantFrom('none', 'h', 'hp'), z: fc.boolean(), bias: fc.boolean(), initial: fc.boolean(), softplus: fc.boolean(),
    })
    .map(({ batch, L, groups, perGroup, P, N, packed, D, z, bias, initial, softplus }) => {
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
    }),
);

property(
  'attention',
  30,
  fc
    .record({
      batch: size(1, 2), Lq: length, Lk: length, heads: size(1, 3), perHead: size(1, 3), D: fc.constantFrom(1, 8, 24, 32, 64, 80),
      causal: fc.boolean(), left: fc.constantFrom(-1, -1, 0, 5, 30), right: fc.constantFrom(-1, -1, 0, 7), packed: fractions,
    })
    .map(({ batch, Lq, Lk, heads, perHead, D, causal, left, right, packed }) => {
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
    }),
);

property(
  'causalConv1d',
  30,
  fc
    .record({
      batch: size(1, 3), D: size(1, 40), L: length, W: size(2, 5), bias: fc.boolean(), initial: fc.boolean(), silu: fc.boolean(),
      channelLast: fc.boolean(), packed: fractions,
    })
    .map(({ batch, D, L, W, bias, initial, silu, channelLast, packed }) => {
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
    }),
);

property(
  'linear',
  30,
  fc
    .record({
      rows: fc.oneof(size(0, 4), size(1, 70), size(120, 140)), K: size(1, 100), N: size(1, 100), bias: fc.boolean(), residual: fc.boolean(),
      activation: fc.constantFrom('none', 'gelu', 'silu'),
    })
    .map(({ rows, K, N, bias, residual, activation }) => ({
      inputs: {
        x: normal([rows, K]),
        weight: normal([N, K], K ** -0.5),
        ...(bias && { bias: normal([N]) }),
        ...(residual && { residual: normal([rows, N]) }),
      },
      attrs: { activation },
    })),
);
