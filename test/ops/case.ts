/** How one operand of a case is drawn; everything is deterministic from the case's name. */
export interface Draw {
  shape: number[];
  /** normal: shift + scale * N(0,1); uniform: [low, high); ints: i32 in [low, high); values: as given. */
  kind: 'normal' | 'uniform' | 'ints' | 'values';
  scale?: number;
  shift?: number;
  low?: number;
  high?: number;
  values?: number[];
  /** Fixed dtype; without it a float operand takes the dtype of the run (f32, bf16, f16). */
  dtype?: 'f32' | 'i32' | 'u8';
  /** Memory order: the operand is stored dense in this order of axes, e.g. [0, 2, 1] = channel-last of (B, D, L). */
  order?: number[];
}

/** One call of one op: serves the tests (against the float64 reference, finite differences) and the benchmarks. */
export interface OpCase {
  op: string;
  name: string;
  inputs: Record<string, Draw | Draw[]>;
  attrs?: Record<string, number | boolean | string>;
  /** Names of inputs whose gradients are checked; default: every float input that the backward op knows. */
  grads?: string[];
  /** Outputs that take no upstream gradient in the gradient check (and are ignored there). */
  noGrad?: string[];
}

export const normal = (shape: number[], scale = 1, shift = 0, extra: Partial<Draw> = {}): Draw =>
  ({ kind: 'normal', shape, scale, shift, ...extra });
export const uniform = (shape: number[], low: number, high: number, extra: Partial<Draw> = {}): Draw => ({ kind: 'uniform', shape, low, high, ...extra });
export const ints = (shape: number[], low: number, high: number): Draw => ({ kind: 'ints', shape, low, high, dtype: 'i32' });
export const values = (shape: number[], list: number[], dtype: 'f32' | 'i32' | 'u8' = 'i32'): Draw =>
  ({ kind: 'values', shape, values: list, dtype });

/** A dense float64 array: what references take and return. */
export interface NdArray {
  shape: number[];
  data: Float64Array;
}
export type Reference = (
  inputs: Record<string, NdArray | undefined> & { [list: `${string}[]`]: NdArray[] | undefined },
  attrs: Record<string, number | boolean | string>,
) => Record<string, NdArray>;

/** Row-major array of zeros. */
export function zeros(shape: number[]): NdArray {
  return { shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) };
}
