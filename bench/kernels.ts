import { opSchema, run, type Operands, type Results } from '../lib/tensor/run.js';
import { permute } from '../lib/ops/views.js';
import { Scope } from '../lib/tensor/scope.js';
import { byteSize, Tensor } from '../lib/tensor/tensor.js';
import type { Dtype } from '../lib/tensor/dtype.js';
import { benchCases, type BenchCase, type BenchInput } from './cases.js';
import type { Ceilings } from './machine.js';
import { time, type Timing } from './measure.js';

export interface KernelRow extends Timing {
  op: string;
  name: string;
  dtype: 'f32' | 'bf16';
  bytes: number;
  flops: number;
  /** the larger of bytes over bandwidth and operations over peak, milliseconds */
  floorMs: number;
  /** floorMs / ms */
  share: number;
  gbPerSecond: number;
  gflopPerSecond: number;
}

/** A cheap deterministic generator: benchmarks need plausible numbers, not good ones. */
function draw(input: BenchInput, dtype: Dtype, device: string, seed: number): Tensor {
  const { shape, order } = input;
  if (input.values) return Tensor.from(Int32Array.from(input.values), shape, { device });
  const size = shape.reduce((a, b) => a * b, 1);
  let state = (seed * 2654435761 + 12345) >>> 0;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 4294967296;
  };
  if (input.ints !== undefined) return Tensor.from(Int32Array.from({ length: size }, () => Math.floor(next() * input.ints!)), shape, { device });
  const low = input.low ?? -1;
  const high = input.high ?? 1;
  const data = new Float32Array(size);
  for (let i = 0; i < size; i++) data[i] = low + (high - low) * next();
  const stored = order ? order.map((a) => shape[a]!) : shape;
  const tensor = Tensor.from(data, stored, { dtype: input.f32 ? 'f32' : dtype, device });
  return order ? permute(tensor, order.map((_, i) => order.indexOf(i))) : tensor;
}

function bytesOf(operands: Operands | Results): number {
  let total = 0;
  for (const value of Object.values(operands)) for (const t of value === null || value === undefined ? [] : value instanceof Tensor ? [value] : value) total += byteSize(t);
  return total;
}

function row(c: BenchCase, op: string, dtype: 'f32' | 'bf16', timing: Timing, bytes: number, flops: number, top: Ceilings): KernelRow {
  const floorMs = 1e3 * Math.max(bytes / top.bytesPerSecond, flops / top.flopsPerSecond[dtype]);
  const seconds = timing.ms / 1e3;
  return { op, name: c.name, dtype, ...timing, bytes, flops, floorMs, share: floorMs / timing.ms, gbPerSecond: bytes / seconds / 1e9, gflopPerSecond: flops / seconds / 1e9 };
}

/** Times one case forward and, where asked, its backward op. @param seed of the first operand; the next ones count on */
export async function benchCase(c: BenchCase, dtype: 'f32' | 'bf16', device: string, top: Ceilings, seed: number): Promise<KernelRow[]> {
  using scope = new Scope();
  const make = (i: BenchInput | BenchInput[]): Tensor | Tensor[] => (Array.isArray(i) ? i.map((one) => draw(one, dtype, device, seed++)) : draw(i, dtype, device, seed++));
  const operands: Operands = scope.run(() => Object.fromEntries(Object.entries(c.inputs).map(([name, input]) => [name, make(input)])));
  const results = scope.run(() => run(c.op, operands, c.attrs));
  const schema = opSchema(c.op);
  const rewritten = schema.inputs.filter((i) => i.mutates).map((i) => operands[i.name]);
  const written = rewritten.reduce((total, value) => total + bytesOf({ value }), 0); // what is written in place moves twice
  const forward = await time(() => void run(c.op, operands, c.attrs), device);
  const rows = [row(c, c.op, dtype, forward, bytesOf(operands) + bytesOf(results) + written, c.flops ?? 0, top)];
  if (c.backward) {
    const backward = opSchema(schema.backward!);
    const given: { [name: string]: Tensor } = {};
    for (const { name, optional } of backward.inputs) {
      const value = operands[name] ?? results[name];
      if (value instanceof Tensor) given[name] = value;
      else if (name.startsWith('d') && !optional) {
        const output = results[schema.outputs.find((o) => `d${o.name[0]!.toUpperCase()}${o.name.slice(1)}` === name)!.name]!;
        given[name] = scope.run(() => draw({ shape: [...output.shape] }, output.dtype, device, seed++));
      }
    }
    const known = new Set(backward.attrs.map((a) => a.name));
    const attrs = Object.fromEntries(Object.entries(c.attrs ?? {}).filter(([name]) => known.has(name)));
    const grads = scope.run(() => run(backward.name, given, attrs));
    const timing = await time(() => void run(backward.name, given, attrs), device);
    rows.push(row(c, backward.name, dtype, timing, bytesOf(given) + bytesOf(grads), c.backwardFlops ?? 0, top));
  }
  return rows;
}

export function selectCases(filter: string | undefined, quick: boolean): BenchCase[] {
  const seen = new Set<string>();
  return benchCases.filter((c) => {
    if (filter && !`${c.op} ${c.name}`.toLowerCase().includes(filter.toLowerCase())) return false;
    if (quick && seen.has(c.op)) return false;
    seen.add(c.op);
    return true;
  });
}
