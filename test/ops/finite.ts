import type { NdArray, OpCase, Reference } from './case.js';
import { Random, referenceInputs, type DrawnInputs } from './draw.js';
import { gradInputs, type ResultMap, type Upstream } from './run.js';
import { gradientLimit } from './tolerances.js';

const step = 1e-4; // of the operand's size: the truncation error is step^2, the rounding error of float64 1e-16 / step
const singles = 2;

/** Central differences of loss = sum(output * upstream) over the float64 reference, along a direction of one operand. */
function derivative(
  reference: Reference, drawn: DrawnInputs, c: OpCase, upstream: Upstream, name: string, direction: Float64Array, h: number,
): number {
  const loss = (sign: number): number => {
    const inputs = referenceInputs(drawn);
    const x = operand(inputs, name).data;
    for (let i = 0; i < x.length; i++) x[i]! += sign * h * direction[i]!;
    const outputs = reference(inputs, c.attrs ?? {});
    let sum = 0;
    for (const [output, { data }] of upstream) for (let i = 0; i < data.length; i++) if (data[i] !== 0) sum += data[i]! * outputs[output]!.data[i]!;
    return sum;
  };
  return (loss(1) - loss(-1)) / (2 * h);
}

/** `x`, or `x[1]` of a list. */
function operand(inputs: Record<string, NdArray | NdArray[]>, name: string): NdArray {
  const at = /^(.*)\[(\d+)\]$/.exec(name);
  return at ? (inputs[`${at[1]!}[]`] as NdArray[])[Number(at[2])]! : (inputs[name] as NdArray);
}

/**
 * Holds analytic gradients in f32 against finite differences of the reference: for each operand one random direction and
 * some single entries. Returns what is wrong.
 */
export function compareFinite(c: OpCase, reference: Reference, drawn: DrawnInputs, upstream: Upstream, analytic: ResultMap): string[] {
  const problems: string[] = [];
  const names = gradInputs(c).flatMap((name) => (Array.isArray(drawn[name]) ? drawn[name].map((_, i) => `${name}[${i}]`) : [name]));
  for (const name of names) {
    const x = operand(referenceInputs(drawn), name).data;
    if (x.length === 0) continue;
    const grad = analytic.get(name);
    if (!grad) {
      problems.push(`${name}: the tape gave no gradient`);
      continue;
    }
    const base = name.replace(/\[\d+\]$/, '');
    const limit = Math.max(2 * gradientLimit(c.op, `d${base[0]!.toUpperCase()}${base.slice(1)}`, 'f32'), 1e-4);
    const random = new Random(`${c.op} ${c.name} direction ${name}`);
    const size = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / x.length) || 1;
    let most = 0;
    for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(grad.data[i]!));
    const check = (direction: Float64Array, what: string): void => {
      const expected = derivative(reference, drawn, c, upstream, name, direction, step * size);
      let actual = 0;
      let length = 0;
      for (let i = 0; i < x.length; i++) {
        actual += grad.data[i]! * direction[i]!;
        length += direction[i]! ** 2;
      }
      const scale = Math.max(most, Math.abs(expected) / Math.sqrt(length)) * Math.sqrt(length) || 1;
      const error = Math.abs(actual - expected) / scale;
      const figures = `error ${error.toExponential(2)}, limit ${limit.toExponential(1)}`;
      if (!(error <= limit)) problems.push(`${name} ${what}: ${actual} where finite differences give ${expected} (${figures})`);
    };
    check(Float64Array.from(x, () => random.normal()), 'along a random direction');
    for (let n = 0; n < Math.min(singles, x.length); n++) {
      const at = random.integer(0, x.length);
      check(Float64Array.from(x, (_, i) => (i === at ? 1 : 0)), `at flat index ${at}`);
    }
  }
  return problems;
}
