import type { Attrs, OpSchema } from '../native/binding.js';
import { opSchema, run, type Operand, type Operands, type Results } from '../tensor/run.js';
import { Tensor } from '../tensor/tensor.js';
import type { BackwardFn } from './tape.js';

interface Recorded {
  inputs: Tensor[];
  saved: Tensor[];
  backward: BackwardFn;
}
type Rule = (operands: Operands, results: Results, attrs: Attrs | undefined) => Recorded;

const rules = new Map<string, Rule | null>();

/** The gradient rule of an operator, derived from its schema's backward; null when it has none. */
export function ruleOf(op: string): Rule | null {
  let rule = rules.get(op);
  if (rule === undefined) {
    const schema = opSchema(op);
    rule = schema.backward && !schema.backward.startsWith('none') ? schemaRule(schema, opSchema(schema.backward)) : null;
    rules.set(op, rule);
  }
  return rule;
}

const gradName = (name: string): string => `d${name[0]!.toUpperCase()}${name.slice(1)}`;

/**
 * The backward op's operands by name: an input or output of the forward op, or the upstream gradient of an output.
 * Lists of inputs (concat) spread over the node's inputs in order, and their gradients come back as a list.
 */
function schemaRule(forward: OpSchema, backward: OpSchema): Rule {
  const inputNames = forward.inputs.map((i) => i.name);
  const outputNames = forward.outputs.map((o) => o.name);
  const upstream = new Map(outputNames.map((name, i) => [gradName(name), i]));
  const copied = backward.attrs.map((a) => a.name).filter((name) => name !== 'needs');
  const masked = backward.attrs.some((a) => a.name === 'needs');

  return (operands, results, attrs) => {
    const inputs: Tensor[] = [];
    const slots: { slot: number; grad: string }[] = []; // of each input: bit of `needs`, name of its gradient
    inputNames.forEach((name, slot) => {
      const value = operands[name];
      const list = value instanceof Tensor ? [value] : (value ?? []);
      list.forEach((t, i) => {
        inputs.push(t);
        slots.push({ slot, grad: list.length > 1 ? `${gradName(name)}[${i}]` : gradName(name) });
      });
    });
    const saved: Tensor[] = [];
    const fixed: { [name: string]: Operand } = {};
    for (const { name } of backward.inputs) {
      const value = inputNames.includes(name) ? operands[name] : outputNames.includes(name) ? results[name] : null;
      if (!value) continue;
      fixed[name] = value;
      saved.push(...(value instanceof Tensor ? [value] : value));
    }
    const shapes = outputNames.map((name) => results[name]);
    return {
      inputs,
      saved,
      backward: (up, needs) => {
        const given: { [name: string]: Operand } = { ...fixed };
        for (const { name, optional } of backward.inputs) {
          const index = upstream.get(name);
          if (index === undefined || given[name]) continue;
          const output = shapes[index];
          const g = up[index];
          if (g && output) given[name] = asComputed(g, output, saved);
          else given[name] = optional || !output ? null : Tensor.zeros(output.shape, { dtype: output.dtype, device: output.device });
        }
        const options: { [name: string]: number | boolean | string | undefined } = {};
        for (const name of copied) options[name] = attrs?.[name];
        if (masked) options['needs'] = [...new Set(slots.filter((_, i) => needs[i]).map(({ slot }) => slot))].reduce((mask, slot) => mask + 2 ** slot, 0);
        const grads = run(backward.name, given, options);
        return slots.map(({ grad }) => grads[grad] ?? null);
      },
    };
  };
}

/**
 * An upstream gradient as the backward op takes it. linear gives the gradient of a bf16 weight in f32; where the weight is a result
 * itself, an op that computed in bf16 wants it in bf16, and one without such operands takes it as it is.
 */
function asComputed(g: Tensor, output: Tensor, operands: readonly Tensor[]): Tensor {
  if (g.dtype === output.dtype || !operands.some((t) => t.dtype === output.dtype)) return g;
  return run('cast', { x: g }, { dtype: output.dtype })['y']!;
}
