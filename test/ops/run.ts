import { Tape } from '../../lib/autograd/tape.js';
import { apply } from '../../lib/ops/apply.js';
import { opSchema } from '../../lib/tensor/run.js';
import { Scope } from '../../lib/tensor/scope.js';
import { isFloat } from '../../lib/tensor/dtype.js';
import { byteSize, Tensor } from '../../lib/tensor/tensor.js';
import type { OpCase } from './case.js';
import { drawNormal, toTensor, type Drawn, type DrawnInputs } from './draw.js';
import { poison } from './poison.js';

/** An output or a gradient as it came back. */
export interface Result {
  shape: readonly number[];
  dtype: Tensor['dtype'];
  data: ArrayLike<number>;
}
export type ResultMap = Map<string, Result>;

type Operands = Record<string, Tensor | Tensor[]>;

/** Where and how a case runs. */
export interface Target {
  device: string;
  /** fill the memory that a call gets with NaNs first */
  poison?: boolean;
  /** run everything twice and ask for the same bits */
  twice?: boolean;
}
export const cpu: Target = { device: 'cpu' };

function operandsOf(drawn: DrawnInputs, device: string): Operands {
  const placed = (a: Drawn): Tensor => toTensor(a, device);
  return Object.fromEntries(Object.entries(drawn).map(([name, a]) => [name, Array.isArray(a) ? a.map(placed) : placed(a)]));
}

/** Fills the memory that the next call gets with NaNs, where the target says so. */
async function poisonFor(operands: Operands, target: Target): Promise<void> {
  if (!target.poison) return;
  const largest = Object.values(operands).flat().reduce((bytes, t) => Math.max(bytes, byteSize(t)), 0);
  await poison(target.device, Math.max(2 ** 18, 4 * largest));
}

async function fetched(t: Tensor): Promise<Result> {
  return { shape: t.shape, dtype: t.dtype, data: isFloat(t.dtype) ? await t.toFloat32() : await t.data() };
}

/** Runs a case on drawn operands: its outputs by name, and operands written in place by theirs (`name[i]` in a list). */
export async function runForward(c: OpCase, drawn: DrawnInputs, target = cpu): Promise<ResultMap> {
  using scope = new Scope();
  const { device } = target;
  const operands = scope.run(() => operandsOf(drawn, device));
  await poisonFor(operands, target);
  const results = scope.run(() => apply(c.op, operands, c.attrs, device));
  const out: ResultMap = new Map();
  for (const [name, t] of Object.entries(results)) if (t) out.set(name, await fetched(t));
  for (const { name, mutates } of opSchema(c.op).inputs) {
    const t = operands[name];
    if (!mutates || !t) continue;
    if (Array.isArray(t)) for (const [i, item] of t.entries()) out.set(`${name}[${i}]`, await fetched(item));
    else out.set(name, await fetched(t));
  }
  return out;
}

const gradName = (name: string): string => `d${name[0]!.toUpperCase()}${name.slice(1)}`;

/** Names of the inputs whose gradients a case checks; none for an op without a backward. */
export function gradInputs(c: OpCase): string[] {
  const backward = opSchema(c.op).backward;
  if (!backward || backward.startsWith('none')) return [];
  const known = new Set(opSchema(backward).outputs.map((o) => o.name));
  const float = (name: string): boolean => {
    const d = c.inputs[name]!;
    return (Array.isArray(d) ? d : [d]).every((x) => x.kind !== 'ints' && (x.dtype === undefined || isFloat(x.dtype)));
  };
  return c.grads ?? Object.keys(c.inputs).filter((name) => known.has(gradName(name)) && float(name));
}

/** Names of the outputs that take an upstream gradient. */
export function upstreamOutputs(c: OpCase): string[] {
  const schema = opSchema(c.op);
  const backward = opSchema(schema.backward!);
  return schema.outputs.map((o) => o.name).filter((name) => backward.inputs.some((i) => i.name === gradName(name)) && !c.noGrad?.includes(name));
}

/** Upstream gradients of a case by output, exact in the output's dtype and 0 where `finite` says that the output is not. */
export type Upstream = Map<string, Drawn>;

export function drawUpstream(c: OpCase, outputs: ResultMap): Upstream {
  const upstream: Upstream = new Map();
  for (const name of upstreamOutputs(c)) {
    const output = outputs.get(name);
    if (!output) continue;
    const drawn = drawNormal(output.shape, `${c.op} ${c.name} upstream ${name}`, output.dtype);
    for (let i = 0; i < drawn.data.length; i++) if (!Number.isFinite(output.data[i])) drawn.data[i] = 0;
    upstream.set(name, drawn);
  }
  return upstream;
}

/** The analytic gradients of sum(output * upstream), by input (`x`, or `x[i]` in a list); absent where the tape gives none. */
export async function runGradients(c: OpCase, drawn: DrawnInputs, upstream: Upstream, target = cpu): Promise<ResultMap> {
  using scope = new Scope();
  const { device } = target;
  const operands = scope.run(() => operandsOf(drawn, device));
  const leaves = new Map<Tensor, string>();
  for (const name of gradInputs(c)) {
    const t = operands[name]!;
    if (Array.isArray(t)) t.forEach((item, i) => leaves.set(item, `${name}[${i}]`));
    else leaves.set(t, name);
  }
  for (const t of leaves.keys()) t.requiresGrad = true;
  using tape = new Tape();
  const results = scope.run(() => tape.record(() => apply(c.op, operands, c.attrs, device)));
  const roots = scope.run(() => [...upstream].map(([name, a]) => [results[name]!, toTensor({ ...a, dtype: results[name]!.dtype }, device)] as const));
  await poisonFor(operands, target);
  const grads = scope.run(() => tape.backwardAll(roots));
  const out: ResultMap = new Map();
  for (const [t, g] of grads) out.set(leaves.get(t)!, await fetched(g));
  return out;
}
