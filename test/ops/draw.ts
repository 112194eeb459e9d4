import { bf16Bits, bf16Value, f16Bits, f16Value, type Dtype } from '../../lib/tensor/dtype.js';
import { permute } from '../../lib/ops/views.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import type { Draw, NdArray, OpCase } from './case.js';

/** A deterministic source of numbers: seeded by text, the same on every machine. */
export class Random {
  #state: number;
  #spare: number | null = null;

  constructor(seed: string) {
    let h = 0x811c9dc5; // FNV-1a
    for (const c of Buffer.from(seed)) h = Math.imul(h ^ c, 0x01000193);
    this.#state = h >>> 0;
  }
  /** [0, 1) with 32 bits (mulberry32). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  /** N(0, 1) (Box-Muller). */
  normal(): number {
    if (this.#spare !== null) {
      const spare = this.#spare;
      this.#spare = null;
      return spare;
    }
    const r = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spare = r * Math.sin(angle);
    return r * Math.cos(angle);
  }
  /** An integer in [low, high). */
  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low));
  }
}

/** A drawn operand: its values are exact in `dtype`, so that the reference and the op see the same numbers. */
export interface Drawn extends NdArray {
  dtype: Dtype;
  order?: number[];
}
export type DrawnInputs = Record<string, Drawn | Drawn[]>;

/** The nearest number that `dtype` holds. */
export function rounded(x: number, dtype: Dtype): number {
  if (dtype === 'bf16') return bf16Value(bf16Bits(x));
  if (dtype === 'f16') return f16Value(f16Bits(x));
  return dtype === 'f32' ? Math.fround(x) : x;
}

function drawOne(draw: Draw, random: Random, float: Dtype): Drawn {
  const size = draw.shape.reduce((a, b) => a * b, 1);
  const dtype = draw.dtype ?? (draw.kind === 'ints' ? 'i32' : float);
  const data = new Float64Array(size);
  const { kind, scale = 1, shift = 0, low = 0, high = 1, values = [] } = draw;
  if (kind === 'values' && values.length !== size) throw new Error(`${values.length} values for shape [${draw.shape.join(', ')}]`);
  for (let i = 0; i < size; i++) {
    const x =
      kind === 'normal' ? shift + scale * random.normal()
      : kind === 'uniform' ? low + (high - low) * random.uniform()
      : kind === 'ints' ? random.integer(low, high)
      : values[i]!;
    data[i] = rounded(x, dtype);
  }
  return { shape: draw.shape, data, dtype, order: draw.order };
}

/** All operands of a case; `float` is the dtype of the float operands that name none. */
export function drawInputs(c: OpCase, float: Dtype): DrawnInputs {
  const drawn: DrawnInputs = {};
  for (const [name, draw] of Object.entries(c.inputs)) {
    // Each operand has its own seed, so that one more operand does not change the others.
    const random = new Random(`${c.op} ${c.name} ${name}`);
    drawn[name] = Array.isArray(draw) ? draw.map((d) => drawOne(d, random, float)) : drawOne(draw, random, float);
  }
  return drawn;
}

/** Normal numbers of a shape, exact in `dtype`: upstream gradients. */
export function drawNormal(shape: readonly number[], seed: string, dtype: Dtype): Drawn {
  return drawOne({ shape: [...shape], kind: 'normal' }, new Random(seed), dtype);
}

/** Row-major data of a permuted array: result axis i is axis order[i]. */
function reordered(a: NdArray, order: readonly number[]): Float64Array {
  const strides = new Array<number>(a.shape.length).fill(1);
  for (let i = a.shape.length - 2; i >= 0; i--) strides[i] = strides[i + 1]! * a.shape[i + 1]!;
  const out = new Float64Array(a.data.length);
  const index = new Array<number>(order.length).fill(0);
  for (let n = 0; n < out.length; n++) {
    out[n] = a.data[order.reduce((at, axis, i) => at + index[i]! * strides[axis]!, 0)]!;
    for (let i = order.length - 1; i >= 0 && ++index[i]! === a.shape[order[i]!]; i--) index[i] = 0;
  }
  return out;
}

/** The tensor of a drawn operand; with `order` a permuted view of a dense tensor in that memory order. */
export function toTensor(a: Drawn, device = 'cpu'): Tensor {
  if (!a.order) return Tensor.from(a.data, a.shape, { dtype: a.dtype, device });
  const { order } = a;
  using stored = Tensor.from(reordered(a, order), order.map((axis) => a.shape[axis]!), { dtype: a.dtype, device });
  return permute(stored, order.map((_, i) => order.indexOf(i)));
}

/** What a reference takes: float64 arrays by name, lists under `name[]`. */
export function referenceInputs(drawn: DrawnInputs): Record<string, NdArray> & { [list: `${string}[]`]: NdArray[] } {
  const out: Record<string, unknown> = {};
  for (const [name, a] of Object.entries(drawn)) {
    const copied = (x: Drawn): NdArray => ({ shape: [...x.shape], data: x.data.slice() });
    out[Array.isArray(a) ? `${name}[]` : name] = Array.isArray(a) ? a.map(copied) : copied(a);
  }
  return out as Record<string, NdArray> & { [list: `${string}[]`]: NdArray[] };
}
