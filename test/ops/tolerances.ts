import type { Dtype } from '../../lib/tensor/dtype.js';

/** Limits of maxrel for the outputs and the gradients of one op. */
export interface Tolerance {
  f32: { out: number; grad: number };
  bf16: { out: number; grad: number };
  /** single gradients that are sums with cancellation */
  grads?: Record<string, { f32: number; bf16: number }>;
}

const of = (out: number, grad: number, bf16Out: number, bf16Grad: number, grads?: Tolerance['grads']): Tolerance => ({
  f32: { out, grad },
  bf16: { out: bf16Out, grad: bf16Grad },
  ...(grads && { grads }),
});
const decay = { f32: 1e-3, bf16: 0.1 };
const exact = of(0, 0, 0, 0);

/** By op: the limits that test/golden/data/index.json gives for the reference implementation's op. */
const table: Record<string, Tolerance> = {
  selectiveScan: of(1e-5, 5e-5, 0.03, 0.05),
  selectiveStateUpdate: of(1e-5, 0, 0.02, 0),
  ssd: of(2e-5, 1e-4, 0.02, 0.04, { dA: decay, dDtBias: decay }),
  linearAttention: of(1e-5, 2e-5, 0.02, 0.03),
  simpleGla: of(1e-5, 2e-5, 0.02, 0.03),
  gla: of(1e-5, 2e-5, 0.02, 0.03),
  attention: of(1e-5, 2e-5, 0.04, 0.04),
  attentionKvCache: of(1e-5, 0, 0.04, 0),
  causalConv1d: of(5e-6, 1e-5, 0.02, 0.02),
  causalConv1dUpdate: of(5e-6, 0, 0.02, 0),
  rmsNorm: of(5e-6, 1e-5, 0.02, 0.02),
  gatedRmsNorm: of(5e-6, 1e-5, 0.02, 0.03),
  swiglu: of(2e-6, 5e-6, 0.02, 0.02),
  crossEntropy: of(5e-6, 1e-5, 0.01, 0.02),
  klDiv: of(5e-6, 1e-5, 0.01, 0.03),
  mse: of(5e-6, 5e-6, 0.01, 0.02),
  pixelShuffle: exact,
  posEmbedBicubic: of(5e-6, 1e-5, 0.01, 0.01),
  patchEmbed: of(5e-6, 1e-5, 0.01, 0.02),
  gelu: of(2e-6, 2e-6, 0.01, 0.01),
  adamW: of(5e-6, 0, 0.01, 0),
  copy: exact,
  copyInto: exact,
  concat: exact,
  gatherRows: of(0, 1e-6, 0, 0.01),
  scatterRows: exact,
  kvCacheAppend: exact,
  embedding: of(0, 1e-6, 0, 0.01),
};
const usual = of(1e-5, 2e-5, 0.02, 0.03);

/** The limit for an output of `op` computed in `dtype`. */
export function outputLimit(op: string, dtype: Dtype): number {
  const t = table[op] ?? usual;
  return dtype === 'f32' ? t.f32.out : dtype === 'f16' ? t.bf16.out / 4 : t.bf16.out;
}
/** The limit for gradient `name` (`dX`) of `op` computed in `dtype`. */
export function gradientLimit(op: string, name: string, dtype: Dtype): number {
  const t = table[op] ?? usual;
  const f32 = t.grads?.[name]?.f32 ?? t.f32.grad;
  const bf16 = t.grads?.[name]?.bf16 ?? t.bf16.grad;
  return dtype === 'f32' ? f32 : dtype === 'f16' ? bf16 / 4 : bf16;
}
