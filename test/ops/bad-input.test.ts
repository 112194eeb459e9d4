import test from 'ava';
import { MmError } from '../../lib/native/errors.js';
import { dtypeCode, type Dtype } from '../../lib/tensor/dtype.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import { opSchema, opSchemas, run, type Operands, type Results } from '../../lib/tensor/run.js';
import { Scope } from '../../lib/tensor/scope.js';
import { sync, Tensor } from '../../lib/tensor/tensor.js';
import type { OpCase } from './case.js';
import { backwardOps, loadCatalogue, smallestCases } from './catalogue.js';
import { hasGradients } from './check.js';
import { drawInputs, toTensor } from './draw.js';

/*
 * Every operator, every operand: what does not fit is refused with the operator's and the operand's name, or computes
 * something; nothing ends the process.
 */

const { cases } = await loadCatalogue();
const backward = backwardOps();

/** A call that is right. */
interface Call {
  op: string;
  operands: { [name: string]: Tensor | Tensor[] };
  attrs: OpCase['attrs'];
}

function forwardCall(c: OpCase): Call {
  const operands = Object.entries(drawInputs(c, 'f32')).map(([name, d]) => [name, Array.isArray(d) ? d.map((one) => toTensor(one)) : toTensor(d)]);
  return { op: c.op, operands: Object.fromEntries(operands) as Call['operands'], attrs: c.attrs };
}

/** The backward op of a call, with zeros for the gradients of its results. */
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
    else if (result) given[input.name] = Tensor.zeros(result.shape, { dtype: result.dtype });
  }
  return { op: name, operands: given, attrs: Object.fromEntries(Object.entries(attrs ?? {}).filter(([key]) => known.some((a) => a.name === key))) };
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

for (const { name: op } of opSchemas().filter((s) => !backward.has(s.name) && s.inputs.length > 0))
  test.serial(`${op} and its backward refuse what does not fit, by name`, async (t) => {
    const { tensors } = memoryStats();
    {
      using scope = new Scope();
      const small = smallestCases(cases.filter((c) => c.op === op));
      const call = scope.run(() => forwardCall(small.find(hasGradients) ?? small[0]!));
      for (const right of [call, scope.run(() => backwardCall(call))]) {
        if (!right) continue;
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
