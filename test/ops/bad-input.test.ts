import test from 'ava';
import { MmError } from '../../lib/native/errors.js';
import { dtypeCode, isFloat, type Dtype } from '../../lib/tensor/dtype.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import { opSchema, opSchemas, run, type Operands, type Results } from '../../lib/tensor/run.js';
import { Scope } from '../../lib/tensor/scope.js';
import { sync, Tensor } from '../../lib/tensor/tensor.js';
import type { OpCase } from './case.js';
import { backwardOps, loadCatalogue, smallestCases } from './catalogue.js';
import { hasGradients } from './check.js';
import { compare } from './compare.js';
import { drawInputs, drawNormal, toTensor, type Drawn } from './draw.js';

/*
 * Every operator, every operand: what does not fit is refused with the operator's and the operand's name, or computes
 * something; nothing ends the process. An operand in a dtype of its own is refused or read as what it is.
 */

const { cases } = await loadCatalogue();
const backward = backwardOps();

/** A call that is right. */
interface Call {
  op: string;
  operands: { [name: string]: Tensor | Tensor[] };
  attrs: OpCase['attrs'];
}

/** A call with the numbers of a case, which are exact in bf16; `float` is the dtype of the operands that name none. */
function forwardCall(c: OpCase, float: Dtype): Call {
  const tensor = (d: Drawn): Tensor => toTensor(d.dtype === 'bf16' ? { ...d, dtype: float } : d);
  const operands = Object.entries(drawInputs(c, 'bf16')).map(([name, d]) => [name, Array.isArray(d) ? d.map(tensor) : tensor(d)]);
  return { op: c.op, operands: Object.fromEntries(operands) as Call['operands'], attrs: c.attrs };
}

/** The backward op of a call, with normal numbers for the gradients of its results. */
function backwardCall({ op, operands, attrs }: Call): Call | null {
  const schema = opSchema(op);
  if (!backward.has(schema.backward ?? '')) return null;
  const results: Results = run(op, operands, attrs);
  const { name, inputs, attrs: known } = opSchema(schema.backward!);
  const given: Call['operands'] = {};
  for (const input of inputs) {
    const value = operands[input.name] ?? results[input.name];
    const output = schema.outputs.find((o) => `d${o.name[0]!.toUpperCase()}${o.name.slice(1)}` === input.name);
    const result = output && results[output.name];
    if (value) given[input.name] = value;
    else if (result) given[input.name] = toTensor({ ...drawNormal(result.shape, input.name, 'bf16'), dtype: result.dtype });
  }
  return { op: name, operands: given, attrs: Object.fromEntries(Object.entries(attrs ?? {}).filter(([key]) => known.some((a) => a.name === key))) };
}

/** The forward and, where there is one, the backward call of the first of an operator's small cases that has one. */
function callsOf(op: string, float: Dtype, smallestFirst = true): Call[] {
  const small = smallestCases(cases.filter((c) => c.op === op));
  if (!smallestFirst) small.reverse();
  const call = forwardCall(small.find(hasGradients) ?? small[0]!, float);
  const back = backwardCall(call);
  return back ? [call, back] : [call];
}

const dtypes: Dtype[] = ['u8', 'i32', 'f16', 'bf16', 'f32'];
const shapesBut = (shape: readonly number[]): number[][] => [
  [],
  [0],
  [2, ...shape],
  [...shape, 2],
  shape.slice(1),
  ...shape.flatMap((n, axis) => [n + 1, Math.max(0, n - 1)].map((other) => shape.map((m, i) => (i === axis ? other : m)))),
];

/** What came of a call: null where it computed something, else its error, which must be one of ours. */
async function outcome(op: string, operands: Operands, attrs: OpCase['attrs']): Promise<MmError | null> {
  using scope = new Scope();
  try {
    const results = scope.run(() => run(op, operands, attrs));
    await Promise.all(Object.values(results).map((t) => t?.data()));
    await sync();
    return null;
  } catch (error) {
    await sync().catch(() => undefined);
    if (error instanceof MmError) return error;
    throw error;
  }
}

const forwardOps = opSchemas().filter((s) => !backward.has(s.name) && s.inputs.length > 0);

for (const { name: op } of forwardOps)
  test.serial(`${op} and its backward refuse what does not fit, by name`, async (t) => {
    const { tensors } = memoryStats();
    {
      using scope = new Scope();
      for (const right of scope.run(() => callsOf(op, 'f32'))) {
        const { inputs } = opSchema(right.op);
        for (const { name, optional, dtypes: allowed } of inputs) {
          const value = right.operands[name];
          if (!value) continue;
          const first = Array.isArray(value) ? value[0]! : value;
          const attempt = async (other: Tensor | undefined): Promise<MmError | null> => {
            const replaced = Array.isArray(value) && other ? [other, ...value.slice(1)] : other;
            const error = await outcome(right.op, { ...right.operands, [name]: replaced }, right.attrs);
            other?.dispose();
            return error;
          };
          const refused = (error: MmError | null, code: string, message: string): void => {
            t.is(error?.code, code as MmError['code'], `${right.op}: ${name}: ${error?.message}`);
            t.true(error!.message.startsWith(message), error!.message);
          };

          const wrong = dtypes.find((d) => !(allowed & (1 << dtypeCode(d))));
          const start = `${right.op}: ${name} is`;
          if (wrong) refused(await attempt(Tensor.zeros(first.shape, { dtype: wrong })), 'ERR_DTYPE', `${start} ${wrong}; expected one of `);
          const gone = Tensor.zeros(first.shape, { dtype: first.dtype });
          gone.dispose();
          refused(await attempt(gone), 'ERR_DISPOSED', `a tensor of shape [${first.shape.join(', ')}] was used after dispose()`);
          if (!optional && !Array.isArray(value)) refused(await attempt(undefined), 'ERR_ARGUMENT', `${start} missing`);
          for (const shape of shapesBut(first.shape)) {
            const error = await attempt(Tensor.zeros(shape, { dtype: first.dtype }));
            t.true(!error || error.message.startsWith(`${right.op}: `), `${name} of shape [${shape.join(', ')}]: ${error?.message}`);
          }
        }
        t.is(await outcome(right.op, right.operands, right.attrs), null, 'the right call works as before');
      }
    }
    t.is(memoryStats().tensors, tensors, 'live tensors');
  });

/** Everything that a call writes: its results and the operands that it changes in place. */
async function written({ op, operands, attrs }: Call): Promise<[name: string, shape: readonly number[], data: ArrayLike<number>][]> {
  const results = Object.entries(run(op, operands, attrs));
  const changed = opSchema(op).inputs.filter((i) => i.mutates && operands[i.name]).flatMap((i) => [operands[i.name]!].flat().map((t) => [i.name, t] as const));
  const all = [...results, ...changed].filter((entry): entry is [string, Tensor] => entry[1] !== null);
  return Promise.all(all.map(async ([name, t]) => [name, t.shape, await t.toFloat32()] as [string, readonly number[], ArrayLike<number>]));
}

for (const { name: op } of forwardOps)
  test.serial(`${op} and its backward refuse an operand of another float dtype, or read it as what it is`, async (t) => {
    const { tensors } = memoryStats();
    for (const float of ['f32', 'bf16'] as const) {
      using scope = new Scope();
      // a case with more than an element or two; and operands that no call before wrote to
      const calls = (): Call[] => scope.run(() => callsOf(op, float, false));
      for (const [which, right] of calls().entries()) {
        const expected = await scope.run(() => written(right));
        for (const { name, dtypes: allowed } of opSchema(right.op).inputs)
          for (const other of dtypes.filter((d) => isFloat(d) && d !== float && allowed & (1 << dtypeCode(d)))) {
            const call = calls()[which]!;
            const [first, ...rest] = [call.operands[name] ?? []].flat();
            if (first?.dtype !== float) continue;
            const cast = scope.run(() => run('cast', { x: first }, { dtype: other })['y']!);
            call.operands[name] = Array.isArray(call.operands[name]) ? [cast, ...rest] : cast;
            const what = `${call.op} of ${float}, ${name} in ${other}`;
            try {
              const actual = await scope.run(() => written(call));
              for (const [i, [result, shape, data]] of expected.entries()) {
                const { maxrel, text } = compare(actual[i]![2], data, shape);
                t.true(maxrel < 0.02, `${what}: ${result}: ${text}`);
              }
            } catch (error) {
              t.true(error instanceof MmError && error.code === 'ERR_DTYPE' && error.message.startsWith(`${call.op}: `), `${what}: ${String(error)}`);
            }
          }
      }
    }
    t.is(memoryStats().tensors, tensors, 'live tensors');
  });

test.serial('ropeBackward refuses gradients of two batch sizes, though one row of positionIds serves any', async (t) => {
  using scope = new Scope();
  const operands = scope.run(() => ({
    cos: Tensor.zeros([5, 8]),
    sin: Tensor.zeros([5, 8]),
    positionIds: Tensor.zeros([1, 5], { dtype: 'i32' }),
    dQEmbed: Tensor.zeros([2, 4, 5, 8]),
    dKEmbed: Tensor.zeros([1, 2, 5, 8]),
  }));
  const error = await outcome('ropeBackward', operands, {});
  t.is(error?.message, 'ropeBackward: dKEmbed has shape [1, 2, 5, 8]; expected (B, Hk, L, D) = [2, 2, 5, 8]');
});

test.serial('packed calls without a sequence are refused where there are steps, and compute nothing where there are none', async (t) => {
  using scope = new Scope();
  const zeros = (...shape: number[]): Tensor => scope.run(() => Tensor.zeros(shape));
  const none = (): Tensor => scope.run(() => Tensor.from(Int32Array.of(0), [1]));
  const calls = (steps: number): [op: string, name: string, operands: Operands][] => {
    const heads = (): Tensor => zeros(1, steps, 2, 8);
    const linear = { q: heads(), k: heads(), v: heads(), cuSeqlens: none() };
    return [
      ['ssd', 'cuSeqlens', { x: heads(), dt: zeros(1, steps, 2), A: zeros(2), B: zeros(1, steps, 1, 8), C: zeros(1, steps, 1, 8), cuSeqlens: none() }],
      ['linearAttention', 'cuSeqlens', linear],
      ['simpleGla', 'cuSeqlens', { ...linear, g: zeros(1, steps, 2) }],
      ['gla', 'cuSeqlens', { ...linear, gk: heads() }],
      ['attention', 'cuSeqlensQ', { q: heads(), k: heads(), v: heads(), cuSeqlensQ: none(), cuSeqlensK: none() }],
    ];
  };
  for (const [op, name, operands] of calls(5)) {
    const error = await outcome(op, operands, {});
    t.is(error?.message, `${op}: ${name} has shape [1]; expected (S + 1), the starts of S packed sequences and their end, 5`);
  }
  for (const [op, , operands] of calls(0)) t.is(await outcome(op, operands, {}), null, op);
});
