import { backends } from '../lib/native/backends.js';
import type { Attrs } from '../lib/native/binding.js';
import { opSchema, run, type Operands, type Results } from '../lib/tensor/run.js';
import { Scope } from '../lib/tensor/scope.js';
import { byteSize, sync, Tensor } from '../lib/tensor/tensor.js';
import { benchCases, type BenchCase, type BenchInput, type Shapes } from './cases.js';
import { draw } from './draw.js';
import { listedPeers } from './listed.js';
import type { Ceilings } from './machine.js';
import { time, type Timing } from './measure.js';

export type BenchDtype = 'f32' | 'bf16' | 'f16';

/** Another implementation of the same op. */
export interface PeerTime {
  peer: string;
  ms: number;
  /** 'run': timed in turn with ours; 'listed': a figure of bench/listed.ts */
  from: 'run' | 'listed';
}

export interface KernelRow extends Timing {
  op: string;
  name: string;
  dtype: BenchDtype;
  bytes: number;
  flops: number;
  /** the larger of bytes over bandwidth and operations over peak, milliseconds */
  floorMs: number;
  /** floorMs / ms */
  share: number;
  gbPerSecond: number;
  gflopPerSecond: number;
  /** sets of operands that were taken in turn, so that they did not stay in the GPU's cache */
  sets: number;
  peers: PeerTime[];
}

function bytesOf(operands: Operands | Results): number {
  let total = 0;
  for (const value of Object.values(operands)) for (const t of value === null || value === undefined ? [] : value instanceof Tensor ? [value] : value) total += byteSize(t);
  return total;
}

export interface BenchOptions {
  dtype: BenchDtype;
  device: string;
  ceilings: Ceilings;
  seed: number;
}

/** What backends() says of a GPU; nothing of the CPU, whose caches hold no operands that matter. */
function gpu(device: string): Record<string, unknown> {
  const [name, index = '0'] = device.split(':');
  return (name === 'cpu' ? undefined : backends().find((b) => b.name === name)?.devices[Number(index)]) ?? {};
}

const most = 256; // sets of operands

/** A tensor's axes as they lie in memory, the outermost first: a gradient comes in its output's layout. */
function layout({ strides }: Tensor): number[] {
  return [...strides.keys()].sort((a, b) => strides[b]! - strides[a]! || a - b);
}

/** The operands of a case, as many sets as keep them out of the GPU's cache, and what its op returns for them. */
class Prepared implements Disposable {
  readonly #scope = new Scope();
  #seed: number;
  readonly sets: Operands[] = [];
  readonly #results: Results[] = [];
  /** bytes that the forward op moves */
  readonly bytes: number;

  constructor(
    readonly c: BenchCase,
    readonly options: Pick<BenchOptions, 'dtype' | 'device' | 'seed'>,
    l2Bytes = 0,
  ) {
    this.#seed = options.seed;
    this.#add();
    const schema = opSchema(c.op);
    const rewritten = schema.inputs.filter((i) => i.mutates).map((i) => this.sets[0]![i.name]);
    const written = rewritten.reduce((total, value) => total + bytesOf({ value }), 0); // what is written in place moves twice
    const bytes = (this.bytes = bytesOf(this.sets[0]!) + bytesOf(this.#results[0]!) + written);
    while (this.sets.length < most && this.sets.length * bytes < 2 * l2Bytes) this.#add();
  }

  #add(): void {
    const { c, options: { dtype, device } } = this;
    const one = (i: BenchInput): Tensor => draw(i, dtype, device, this.#seed++);
    const operands = this.#scope.run(() => Object.fromEntries(Object.entries(c.inputs).map(([name, i]) => [name, Array.isArray(i) ? i.map(one) : one(i)])));
    this.sets.push(operands);
    if (c.backward || this.sets.length === 1) this.#results.push(this.#scope.run(() => run(c.op, operands, c.attrs, device)));
  }

  /** Operands of the backward op for each set, and its attributes. */
  backward(): { name: string; given: Record<string, Tensor>[]; attrs: Attrs } {
    const { c, sets, options: { device } } = this;
    const schema = opSchema(c.op);
    const backward = opSchema(schema.backward!);
    const given = sets.map((operands, i) => {
      const all: Record<string, Tensor> = {};
      for (const { name, optional } of backward.inputs) {
        const value = operands[name] ?? this.#results[i]![name];
        if (value instanceof Tensor) all[name] = value;
        else {
          // The gradient of the first output, also where it may be absent: without it there is nothing to do.
          const nth = schema.outputs.findIndex((o) => `d${o.name[0]!.toUpperCase()}${o.name.slice(1)}` === name);
          if (nth < 0 || (nth > 0 && optional)) continue;
          const output = this.#results[i]![schema.outputs[nth]!.name]!;
          all[name] = this.#scope.run(() => draw({ shape: [...output.shape], order: layout(output) }, output.dtype, device, this.#seed++));
        }
      }
      return all;
    });
    const known = new Set(backward.attrs.map((a) => a.name));
    const attrs = Object.fromEntries(Object.entries(c.attrs ?? {}).filter(([name]) => known.has(name)));
    // As autograd asks: gradients of what the case gives, so of no bias where there is none.
    if (known.has('needs')) attrs['needs'] = schema.inputs.reduce((mask, { name }, i) => mask + (name in c.inputs ? 2 ** i : 0), 0);
    return { name: backward.name, given, attrs };
  }

  [Symbol.dispose](): void {
    this.#scope[Symbol.dispose]();
  }
}

/** Runs a case's op once, and its backward op where the case has one: a profiler sees those kernels and those that fill the operands. */
export async function runCase(c: BenchCase, options: Omit<BenchOptions, 'ceilings'>): Promise<void> {
  using prepared = new Prepared(c, options);
  if (c.backward) {
    const { name, given, attrs } = prepared.backward();
    using scope = new Scope();
    scope.run(() => run(name, given[0]!, attrs));
  }
  await sync(options.device);
}

/** Times one case forward and, where asked, its backward op. */
export async function benchCase(c: BenchCase, options: BenchOptions): Promise<KernelRow[]> {
  const { dtype, device, ceilings: top } = options;
  const about = gpu(device);
  using prepared = new Prepared(c, options, Number(about['l2Bytes'] ?? 0));
  const { sets, bytes } = prepared;

  const row = (op: string, timing: Timing, moved: number, flops: number): KernelRow => {
    const floorMs = 1e3 * Math.max(moved / top.bytesPerSecond, flops / top.flopsPerSecond[dtype]);
    const seconds = timing.ms / 1e3;
    const rates = { gbPerSecond: moved / seconds / 1e9, gflopPerSecond: flops / seconds / 1e9 };
    return { op, name: c.name, dtype, ...timing, bytes: moved, flops, floorMs, share: floorMs / timing.ms, ...rates, sets: sets.length, peers: [] };
  };
  const forward = await time((i) => run(c.op, sets[i]!, c.attrs, device), device, { sets: sets.length });
  const touched = c.moves === undefined ? bytes : c.moves * (dtype === 'f32' ? 4 : 2);
  const rows = [row(c.op, forward, touched, c.flops ?? 0)];
  if (c.backward) {
    const { name, given, attrs } = prepared.backward();
    const grads = run(name, given[0]!, attrs);
    const moved = bytesOf(given[0]!) + bytesOf(grads);
    for (const t of Object.values(grads)) t?.dispose();
    const timing = await time((i) => run(name, given[i]!, attrs), device, { sets: sets.length });
    rows.push(row(name, timing, moved, c.backwardFlops ?? 0));
    if (c.together) {
      const both: Timing = { ...timing, ms: forward.ms + timing.ms, min: forward.min + timing.min, max: forward.max + timing.max };
      rows.push(row(`${c.op} + ${name}`, both, bytes + moved, (c.flops ?? 0) + (c.backwardFlops ?? 0)));
    }
  }
  if (dtype === 'bf16') for (const r of rows) r.peers.push(...listedPeers(about['name'], r.op, r.name));
  return rows;
}

export function selectCases(shapes: Shapes, filter: string | undefined, quick: boolean): BenchCase[] {
  const seen = new Set<string>();
  return benchCases[shapes].filter((c) => {
    if (filter && !`${c.op} ${c.name}`.toLowerCase().includes(filter.toLowerCase())) return false;
    if (quick && seen.has(c.op)) return false;
    seen.add(c.op);
    return true;
  });
}
