import type { Attrs, OpSchema, Wrapped } from '../native/binding.js';
import { resolveDevice } from '../native/backends.js';
import { MmError } from '../native/errors.js';
import { adopt, binding } from '../native/loader.js';
import { Tensor } from './tensor.js';

export type Operand = Tensor | readonly Tensor[] | null | undefined;
export type Operands = { readonly [name: string]: Operand };
export type Results = { [name: string]: Tensor | null };

interface Entry {
  id: number;
  schema: OpSchema;
}
let table: Map<string, Entry> | undefined;

function entries(): Map<string, Entry> {
  table ??= new Map(
    binding()
      .schemas()
      .map((schema, id) => [schema.name, { id, schema }]),
  );
  return table;
}

/** All operators, as csrc/ops declares them. */
export function opSchemas(): OpSchema[] {
  return [...entries().values()].map((e) => e.schema);
}
export function opSchema(op: string): OpSchema {
  const entry = entries().get(op);
  if (!entry) throw new MmError('ERR_ARGUMENT', `unknown operator '${op}'`);
  return entry.schema;
}

/**
 * Runs one operator by name, without any tape: operands and results by the schema's names; a result that the op did not
 * produce is null, several under one name (the gradients of a list) are `name[0]`, `name[1]`, ... Only lib/ops and
 * lib/autograd call this.
 */
export function run(op: string, operands: Operands, attrs?: Attrs, device?: string): Results {
  const entry = entries().get(op);
  if (!entry) throw new MmError('ERR_ARGUMENT', `unknown operator '${op}'`);
  const { id, schema } = entry;
  let where = device === undefined ? undefined : resolveDevice(device);
  const slots = schema.inputs.map(({ name }) => {
    const value = operands[name];
    if (value === null || value === undefined) return null;
    if (value instanceof Tensor) {
      where ??= value.device;
      return value.handle;
    }
    if (!Array.isArray(value)) throw notATensor(`${op}: ${name}`, value, schema.inputs.find((i) => i.name === name)?.list ? 'tensor list' : 'tensor');
    return value.map((t: unknown, i) => {
      if (!(t instanceof Tensor)) throw notATensor(`${op}: ${name}[${i}]`, t, 'tensor');
      where ??= t.device;
      return t.handle;
    });
  });
  for (const name in operands)
    if (!schema.inputs.some((i) => i.name === name))
      throw new MmError('ERR_ARGUMENT', `${op}: unknown operand '${name}'; it takes ${schema.inputs.map((i) => i.name).join(', ') || 'none'}`);
  try {
    const out = binding().run(id, slots, attrs, where);
    const results: Results = {};
    schema.outputs.forEach(({ name }, i) => {
      const w = out[i];
      if (isList(w)) w.forEach((item, k) => (results[`${name}[${k}]`] = new Tensor(item, where ?? 'cpu')));
      else results[name] = w ? new Tensor(w, where ?? 'cpu') : null;
    });
    return results;
  } catch (error) {
    throw adopt(error);
  }
}

/** The error for an operand of a wrong kind. Two versions of this package in one process each have their own tensors. */
function notATensor(what: string, value: unknown, wanted: string): MmError {
  const foreign = (value as { constructor?: { name?: string } } | undefined)?.constructor?.name === 'Tensor';
  const hint = foreign ? ' of this copy of mmmamba; another copy in this process made it (npm ls mmmamba shows where they come from)' : '';
  return new MmError('ERR_ARGUMENT', `${what} must be a ${wanted}${hint}`);
}

function isList(result: Wrapped | Wrapped[] | null | undefined): result is Wrapped[] {
  return Array.isArray(result?.[0]);
}
