import { run } from '../tensor/run.js';
import type { Tensor } from '../tensor/tensor.js';

/** Gradients to be joined, in one dtype: f32 where they differ, as linear gives a bf16 weight's in f32 and other ops in bf16. */
export function inOneDtype(grads: readonly Tensor[]): readonly Tensor[] {
  if (grads.every((g) => g.dtype === grads[0]!.dtype)) return grads;
  return grads.map((g) => (g.dtype === 'f32' ? g : run('cast', { x: g }, { dtype: 'f32' })['y']!));
}
