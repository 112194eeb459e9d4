import { copy, permute } from '../lib/ops/index.js';
import type { Dtype } from '../lib/tensor/dtype.js';
import { scope } from '../lib/tensor/scope.js';
import { Tensor } from '../lib/tensor/tensor.js';
import type { BenchInput } from './cases.js';

/** Numbers that are drawn; larger tensors repeat them. A prime, so that rows of usual widths differ. */
const period = 1_048_573;

/** A cheap deterministic generator: benchmarks need plausible numbers, not good ones. */
function numbers(count: number, seed: number): () => number {
  let state = (seed * 2654435761 + 12345 + count) >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 4294967296;
  };
}

/** A tensor with the values that an operand asks for. What is large is repeated on the device, not sent to it. */
export function draw(input: BenchInput, dtype: Dtype, device: string, seed: number): Tensor {
  const { shape, order, ints, low = -1, high = 1 } = input;
  if (input.values) return Tensor.from(Int32Array.from(input.values), shape, { device });
  const size = shape.reduce((a, b) => a * b, 1);
  const next = numbers(size, seed);
  if (ints !== undefined) return Tensor.from(Int32Array.from({ length: size }, () => Math.floor(next() * ints)), shape, { device });
  const data = new Float32Array(Math.min(size, period));
  for (let i = 0; i < data.length; i++) data[i] = low + (high - low) * next();
  const stored = order ? order.map((a) => shape[a]!) : shape;
  const options = { dtype: input.f32 ? 'f32' : dtype, device } as const;
  const dense = scope(() => {
    if (size <= period) return Tensor.from(data, stored, options);
    const repeats = Math.ceil(size / period);
    const repeated = copy({ x: Tensor.from(data, [period], options).aliased([repeats, period], [0, 1], 0) });
    return repeated.aliased(stored, denseStrides(stored), 0);
  });
  return order ? permute(dense, order.map((_, i) => order.indexOf(i))) : dense;
}

function denseStrides(shape: readonly number[]): number[] {
  const strides: number[] = [];
  for (let i = shape.length - 1, step = 1; i >= 0; step *= shape[i--]!) strides[i] = step;
  return strides;
}
