// Generated from the schemas in csrc/ops by scripts/generate-ops.mjs. Do not edit: change the schema and run `npm run generate`.
import type { Attrs } from '../native/binding.js';
import type { Operands } from '../tensor/run.js';
import type { Tensor } from '../tensor/tensor.js';
import { apply } from './apply.js';

export interface RmsNormInputs extends Operands {
  /** (..., C); f32, bf16, f16 */
  x: Tensor;
  /** (C), f32 or x's dtype; f32, bf16, f16 */
  weight: Tensor;
}
export interface RmsNormOptions extends Attrs {
  /** added to the mean square; default 0.000001 */
  eps?: number;
}
/**
 * Root-mean-square norm over the last axis: `y = x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).
 * @returns y: (..., C), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function rmsNorm(inputs: RmsNormInputs, options?: RmsNormOptions): Tensor {
  return apply('rmsNorm', inputs, options)['y']!;
}

export interface CopyInputs extends Operands {
  /** any shape and strides; f32, bf16, f16, i32, u8 */
  x: Tensor;
}
/**
 * A dense copy of a tensor of any layout.
 * @returns y: x's shape and dtype, dense
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function copy(inputs: CopyInputs): Tensor {
  return apply('copy', inputs, undefined)['y']!;
}

export interface CopyIntoInputs extends Operands {
  /** any shape and strides; f32, bf16, f16, i32, u8; written in place */
  dst: Tensor;
  /** dst's shape and dtype; f32, bf16, f16, i32, u8 */
  src: Tensor;
}
/**
 * Overwrites dst with src, both of any layout; they must not overlap in memory.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function copyInto(inputs: CopyIntoInputs): void {
  apply('copyInto', inputs, undefined);
}

export interface CastInputs extends Operands {
  /** any shape and strides; f32, bf16, f16, i32, u8 */
  x: Tensor;
}
export interface CastOptions extends Attrs {
  /** of the result */
  dtype: 'f32' | 'bf16' | 'f16' | 'i32' | 'u8';
}
/**
 * Converts to another dtype: to 16 bits with round to nearest even; to integers towards zero, saturated, NaN -> 0.
 * @returns y: x's shape, dense
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function cast(inputs: CastInputs, options: CastOptions): Tensor {
  return apply('cast', inputs, options)['y']!;
}

export interface FillInputs extends Operands {
  /** any shape and strides; f32, bf16, f16, i32, u8; written in place */
  x: Tensor;
}
export interface FillOptions extends Attrs {
  /** converted to x's dtype; default 0 */
  value?: number;
}
/**
 * Sets every element of x to one value, in place.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function fill(inputs: FillInputs, options?: FillOptions): void {
  apply('fill', inputs, options);
}

export interface AddInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  a: Tensor;
  /** a's dtype, broadcast against a; f32, bf16, f16 */
  b: Tensor;
}
/**
 * `y = a + b` with NumPy broadcasting.
 * @returns y: the broadcast shape
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function add(inputs: AddInputs): Tensor {
  return apply('add', inputs, undefined)['y']!;
}

export interface SubInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  a: Tensor;
  /** a's dtype, broadcast against a; f32, bf16, f16 */
  b: Tensor;
}
/**
 * `y = a - b` with NumPy broadcasting.
 * @returns y: the broadcast shape
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function sub(inputs: SubInputs): Tensor {
  return apply('sub', inputs, undefined)['y']!;
}

export interface MulInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  a: Tensor;
  /** a's dtype, broadcast against a; f32, bf16, f16 */
  b: Tensor;
}
/**
 * `y = a * b` with NumPy broadcasting.
 * @returns y: the broadcast shape
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function mul(inputs: MulInputs): Tensor {
  return apply('mul', inputs, undefined)['y']!;
}

export interface DivInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  a: Tensor;
  /** a's dtype, broadcast against a; f32, bf16, f16 */
  b: Tensor;
}
/**
 * `y = a / b` with NumPy broadcasting.
 * @returns y: the broadcast shape
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function div(inputs: DivInputs): Tensor {
  return apply('div', inputs, undefined)['y']!;
}

export interface ScaleInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
export interface ScaleOptions extends Attrs {
  /** ; default 1 */
  factor?: number;
  /** ; default 0 */
  shift?: number;
}
/**
 * `y = x * factor + shift`.
 * @returns y: x's shape and dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function scale(inputs: ScaleInputs, options?: ScaleOptions): Tensor {
  return apply('scale', inputs, options)['y']!;
}

export interface UnaryInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
export interface UnaryOptions extends Attrs {
  /** the function */
  kind: 'neg' | 'exp' | 'log' | 'sqrt' | 'sigmoid' | 'tanh' | 'softplus' | 'square' | 'abs';
}
/**
 * An elementary function of every element.
 * @returns y: x's shape and dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function unary(inputs: UnaryInputs, options: UnaryOptions): Tensor {
  return apply('unary', inputs, options)['y']!;
}

export interface SumInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
export interface SumOptions extends Attrs {
  /** the reduced axis, negative from the end; -1000: all; default -1000 */
  axis?: number;
  /** keep reduced axes with size 1; default false */
  keepDims?: boolean;
}
/**
 * Sum over an axis or over all elements.
 * @returns y: x's dtype, accumulated in f32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function sum(inputs: SumInputs, options?: SumOptions): Tensor {
  return apply('sum', inputs, options)['y']!;
}

export interface MeanInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
export interface MeanOptions extends Attrs {
  /** the reduced axis, negative from the end; -1000: all; default -1000 */
  axis?: number;
  /** keep reduced axes with size 1; default false */
  keepDims?: boolean;
}
/**
 * Mean over an axis or over all elements.
 * @returns y: x's dtype, accumulated in f32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function mean(inputs: MeanInputs, options?: MeanOptions): Tensor {
  return apply('mean', inputs, options)['y']!;
}

export interface MaxInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
export interface MaxOptions extends Attrs {
  /** the reduced axis, negative from the end; -1000: all; default -1000 */
  axis?: number;
  /** keep reduced axes with size 1; default false */
  keepDims?: boolean;
}
/**
 * Maximum over an axis or over all elements; NaN wins.
 * @returns y: x's dtype, accumulated in f32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function max(inputs: MaxInputs, options?: MaxOptions): Tensor {
  return apply('max', inputs, options)['y']!;
}

export interface GatherRowsInputs extends Operands {
  /** (N, ...); f32, bf16, f16, i32, u8 */
  x: Tensor;
  /** (M), each in [0, N); i32 */
  index: Tensor;
}
/**
 * `y[m] = x[index[m]]`: picks rows, an index may repeat.
 * @returns y: (M, ...), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function gatherRows(inputs: GatherRowsInputs): Tensor {
  return apply('gatherRows', inputs, undefined)['y']!;
}

export interface ScatterRowsInputs extends Operands {
  /** (N, ...); f32, bf16, f16 */
  x: Tensor;
  /** (M), each in [0, N); i32 */
  index: Tensor;
  /** (M, ...), x's dtype; f32, bf16, f16 */
  src: Tensor;
}
/**
 * A copy of x with `y[index[m]] = src[m]`; of rows with the same index the last one stays.
 * @returns y: (N, ...), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function scatterRows(inputs: ScatterRowsInputs): Tensor {
  return apply('scatterRows', inputs, undefined)['y']!;
}

export interface ScatterAddRowsInputs extends Operands {
  /** (N, ...); f32, bf16, f16 */
  x: Tensor;
  /** (M), each in [0, N); i32 */
  index: Tensor;
  /** (M, ...), x's dtype; f32, bf16, f16 */
  src: Tensor;
}
/**
 * `y = x`, then `y[index[m]] += src[m]` in the order of m, accumulated in f32.
 * @returns y: (N, ...), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function scatterAddRows(inputs: ScatterAddRowsInputs): Tensor {
  return apply('scatterAddRows', inputs, undefined)['y']!;
}

export interface ConcatInputs extends Operands {
  /** tensors of one dtype and, except along axis, one shape; f32, bf16, f16, i32, u8 */
  x: readonly Tensor[];
}
export interface ConcatOptions extends Attrs {
  /** negative from the end; default 0 */
  axis?: number;
}
/**
 * Joins tensors along one axis.
 * @returns y: the inputs one after the other
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function concat(inputs: ConcatInputs, options?: ConcatOptions): Tensor {
  return apply('concat', inputs, options)['y']!;
}

export interface SliceBackwardInputs extends Operands {
  /** the slice; f32, bf16, f16 */
  dY: Tensor;
}
export interface SliceBackwardOptions extends Attrs {
  /** negative from the end; default 0 */
  axis?: number;
  /** first index of the slice; default 0 */
  start?: number;
  /** of the whole axis */
  length: number;
}
/**
 * Gradient of a slice along one axis: dY between zeros.
 * @returns dX: dY's shape with `length` along axis
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function sliceBackward(inputs: SliceBackwardInputs, options: SliceBackwardOptions): Tensor {
  return apply('sliceBackward', inputs, options)['dX']!;
}

export interface CrossEntropyInputs extends Operands {
  /** (..., V); f32, bf16, f16 */
  logits: Tensor;
  /** (...), in [0, V) or ignoreIndex; i32 */
  labels: Tensor;
  /** (...), takes no gradient; f32 */
  lossWeight?: Tensor | null;
}
export interface CrossEntropyOptions extends Attrs {
  /** label of positions that do not count; default -100 */
  ignoreIndex?: number;
  /** e: the target is (1 - e) onehot + e / V; default 0 */
  labelSmoothing?: number;
}
export interface CrossEntropyOutputs {
  /** (), f32 */
  loss: Tensor;
  /** (...), f32, unweighted */
  perToken: Tensor;
  /** (...), f32, log-sum-exp of the logits; takes no gradient */
  lse: Tensor;
}
/**
 * Cross entropy of softmax(logits) with the labels; `loss` = sum(perToken) / counted positions, or with weights sum(w perToken) / sum(w) over all positions; 0 when the divisor is 0. Ignored positions have perToken 0.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function crossEntropy(inputs: CrossEntropyInputs, options?: CrossEntropyOptions): CrossEntropyOutputs {
  return apply('crossEntropy', inputs, options) as unknown as CrossEntropyOutputs;
}

export interface KlDivInputs extends Operands {
  /** (..., V) logits; f32, bf16, f16 */
  student: Tensor;
  /** (..., V) logits, takes no gradient; f32, bf16, f16 */
  teacher: Tensor;
  /** (...), weight of each position, takes no gradient; f32 */
  mask?: Tensor | null;
}
export interface KlDivOptions extends Attrs {
  /** T; default 1 */
  temperature?: number;
  /** of the sum over positions; 0: the size of axis 0 (batchmean), 1 for a single row; default 0 */
  divisor?: number;
}
export interface KlDivOutputs {
  /** (), f32 */
  loss: Tensor;
  /** (...), f32, unmasked */
  perPosition: Tensor;
  /** (...), f32, of logits / T; takes no gradient */
  lseStudent: Tensor;
  /** (...), f32, likewise */
  lseTeacher: Tensor;
}
/**
 * KL divergence of the student from the teacher: `perPosition = T^2 sum_v p_t (log p_t - log p_s)`, p = softmax(logits / T); `loss = sum(mask perPosition) / divisor`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function klDiv(inputs: KlDivInputs, options?: KlDivOptions): KlDivOutputs {
  return apply('klDiv', inputs, options) as unknown as KlDivOutputs;
}

export interface MseInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  pred: Tensor;
  /** the shape and dtype of pred; f32, bf16, f16 */
  target: Tensor;
}
export interface MseOptions extends Attrs {
  /** ; default 1 */
  factor?: number;
}
/**
 * `loss = factor * mean((pred - target)^2)`.
 * @returns loss: (), f32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function mse(inputs: MseInputs, options?: MseOptions): Tensor {
  return apply('mse', inputs, options)['loss']!;
}

export interface AdamWInputs extends Operands {
  /** master weights, any shapes; f32; written in place */
  params: readonly Tensor[];
  /** gradients, in the order of params; f32, bf16, f16 */
  grads: readonly Tensor[];
  /** first moments m, zeros before step 1; f32; written in place */
  expAvg: readonly Tensor[];
  /** second moments v, likewise; f32; written in place */
  expAvgSq: readonly Tensor[];
  /** copies of params to compute with, usually 16-bit, rewritten; f32, bf16, f16; written in place */
  compute?: readonly Tensor[] | null;
  /** (), factor of all gradients, such as gradNorm's scale; f32 */
  gradScale?: Tensor | null;
}
export interface AdamWOptions extends Attrs {
  /** learning rate */
  lr: number;
  /** ; default 0.9 */
  beta1?: number;
  /** ; default 0.999 */
  beta2?: number;
  /** ; default 1e-8 */
  eps?: number;
  /** ; default 0.01 */
  weightDecay?: number;
  /** number of this update, counted from 1 */
  step: number;
}
/**
 * One step of AdamW with decoupled weight decay, in place (torch.optim.AdamW): p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^step) m / (sqrt(v) / sqrt(1 - b2^step) + eps), g = grad * gradScale.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function adamW(inputs: AdamWInputs, options: AdamWOptions): void {
  apply('adamW', inputs, options);
}

export interface GradNormInputs extends Operands {
  /** any shapes and float dtypes; f32, bf16, f16 */
  grads: readonly Tensor[];
}
export interface GradNormOptions extends Attrs {
  /** 0: no limit; default 0 */
  maxNorm?: number;
}
export interface GradNormOutputs {
  /** (), f32 */
  norm: Tensor;
  /** (), f32 */
  scale: Tensor;
}
/**
 * The Euclidean norm of all gradients as one vector, and the factor that clips it: `scale = min(1, maxNorm / (norm + 1e-6))`, 1 without a limit (torch.nn.utils.clip_grad_norm_).
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function gradNorm(inputs: GradNormInputs, options?: GradNormOptions): GradNormOutputs {
  return apply('gradNorm', inputs, options) as unknown as GradNormOutputs;
}

export interface ArgmaxInputs extends Operands {
  /** (..., V); f32, bf16, f16 */
  x: Tensor;
}
/**
 * Index of the largest element of each row, the first one of equals; NaN is never chosen.
 * @returns index: (...), i32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function argmax(inputs: ArgmaxInputs): Tensor {
  return apply('argmax', inputs, undefined)['index']!;
}

export interface SampleInputs extends Operands {
  /** (B, V); f32, bf16, f16 */
  logits: Tensor;
}
export interface SampleOptions extends Attrs {
  /** 0: greedy; default 1 */
  temperature?: number;
  /** 0: no limit; default 0 */
  topK?: number;
  /** 1: no limit; default 1 */
  topP?: number;
  /** the generator's key; default 0 */
  seed?: number;
  /** number of the draw in its sequence; default 0 */
  offset?: number;
}
/**
 * Draws one token a row from softmax(logits / temperature), limited first to the topK largest logits (of equal ones the first), then to the fewest most probable tokens that reach topP of the rest. Temperature 0 is argmax. The token is the first, by index, at which the cumulated probability of the kept tokens exceeds u (Philox4x32-10 of seed, offset and row).
 * @returns token: (B), i32
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function sample(inputs: SampleInputs, options?: SampleOptions): Tensor {
  return apply('sample', inputs, options)['token']!;
}

export interface LinearInputs extends Operands {
  /** (..., K); f32, bf16, f16 */
  x: Tensor;
  /** (N, K), x's dtype; f32, bf16, f16 */
  weight: Tensor;
  /** (N), f32 or x's dtype; f32, bf16, f16 */
  bias?: Tensor | null;
  /** (..., N), x's dtype; added last; f32, bf16, f16 */
  residual?: Tensor | null;
}
export interface LinearOptions extends Attrs {
  /** applied before the residual is added; default 'none' */
  activation?: 'none' | 'gelu' | 'silu';
}
/**
 * Dense layer over the last axis: `y = act(x weight^T + bias) + residual`. gelu is the exact one (erf).
 * @returns y: (..., N), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function linear(inputs: LinearInputs, options?: LinearOptions): Tensor {
  return apply('linear', inputs, options)['y']!;
}

export interface MatmulInputs extends Operands {
  /** (..., M, K), or (..., K, M) with transposeA; f32, bf16, f16 */
  a: Tensor;
  /** (..., K, N), or (..., N, K) with transposeB; a's dtype; f32, bf16, f16 */
  b: Tensor;
}
export interface MatmulOptions extends Attrs {
  /** a is stored transposed; default false */
  transposeA?: boolean;
  /** b is stored transposed; default false */
  transposeB?: boolean;
}
/**
 * Matrix product over the last two axes, `y = a b`; the axes before them are batches, equal or broadcast from 1.
 * @returns y: (..., M, N), a's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function matmul(inputs: MatmulInputs, options?: MatmulOptions): Tensor {
  return apply('matmul', inputs, options)['y']!;
}

export interface EmbeddingInputs extends Operands {
  /** (V, C); f32, bf16, f16 */
  weight: Tensor;
  /** (...), each in [0, V); i32 */
  ids: Tensor;
}
/**
 * Looks rows up: `y[...] = weight[ids[...]]`. An id outside [0, V) fails.
 * @returns y: (..., C), weight's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function embedding(inputs: EmbeddingInputs): Tensor {
  return apply('embedding', inputs, undefined)['y']!;
}

export interface PatchEmbedInputs extends Operands {
  /** (n, c, H, W), H and W multiples of p; f32, bf16, f16 */
  x: Tensor;
  /** (E, c, p, p), x's dtype; f32, bf16, f16 */
  weight: Tensor;
  /** (E), f32 or x's dtype; f32, bf16, f16 */
  bias?: Tensor | null;
}
/**
 * Patch embedding of images: a convolution with stride p and kernel p x p, its patches in row-major order as tokens.
 * @returns y: (n, H/p * W/p, E), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function patchEmbed(inputs: PatchEmbedInputs): Tensor {
  return apply('patchEmbed', inputs, undefined)['y']!;
}

export interface PixelShuffleInputs extends Operands {
  /** (n, h*h, c), h even, row-major; f32, bf16, f16 */
  x: Tensor;
}
/**
 * Joins 2 x 2 neighbours of a square grid of tokens: token (r, q) holds the channels of (2r, 2q), (2r, 2q+1), (2r+1, 2q), (2r+1, 2q+1).
 * @returns y: (n, h*h/4, 4c), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function pixelShuffle(inputs: PixelShuffleInputs): Tensor {
  return apply('pixelShuffle', inputs, undefined)['y']!;
}

export interface PosEmbedBicubicInputs extends Operands {
  /** (1, g*g, c), row-major grid; f32, bf16, f16 */
  posEmbed: Tensor;
}
export interface PosEmbedBicubicOptions extends Attrs {
  /** rows of the new grid */
  outH: number;
  /** columns of the new grid */
  outW: number;
}
/**
 * Bicubic resize of position embeddings (A = -0.75, half-pixel centres, clamped border, no antialiasing), as in PyTorch.
 * @returns y: (1, outH*outW, c), posEmbed's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function posEmbedBicubic(inputs: PosEmbedBicubicInputs, options: PosEmbedBicubicOptions): Tensor {
  return apply('posEmbedBicubic', inputs, options)['y']!;
}

export interface CausalConv1dInputs extends Operands {
  /** (B, D, L), any layout; fastest dense or channel-last (memory B, L, D); f32, bf16, f16 */
  x: Tensor;
  /** (D, W), f32 or x's dtype; f32, bf16, f16 */
  weight: Tensor;
  /** (D), f32 or x's dtype; f32, bf16, f16 */
  bias?: Tensor | null;
  /** (B or S, D, W-1): the inputs before the first, oldest first; absent: zeros; f32, bf16, f16 */
  initialStates?: Tensor | null;
  /** (S + 1) starts of packed sequences, from 0 to L; B = 1; i32 */
  cuSeqlens?: Tensor | null;
}
export interface CausalConv1dOptions extends Attrs {
  /** act; default 'none' */
  activation?: 'none' | 'silu';
}
export interface CausalConv1dOutputs {
  /** (B, D, L), laid out in memory like x */
  y: Tensor;
  /** (B or S, D, W-1): the last inputs of each sequence, x's dtype */
  finalStates: Tensor;
}
/**
 * Depthwise causal convolution: `y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j})`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function causalConv1d(inputs: CausalConv1dInputs, options?: CausalConv1dOptions): CausalConv1dOutputs {
  return apply('causalConv1d', inputs, options) as unknown as CausalConv1dOutputs;
}

export interface CausalConv1dUpdateInputs extends Operands {
  /** (B, D) or (B, D, S); f32, bf16, f16 */
  x: Tensor;
  /** (B, D, stateLen), x's dtype, stateLen >= W-1; f32, bf16, f16; written in place */
  convState: Tensor;
  /** (D, W), f32 or x's dtype; f32, bf16, f16 */
  weight: Tensor;
  /** (D), f32 or x's dtype; f32, bf16, f16 */
  bias?: Tensor | null;
  /** (B): tokens seen so far; makes convState a ring; i32 */
  cacheSeqlens?: Tensor | null;
}
export interface CausalConv1dUpdateOptions extends Attrs {
  /** act; default 'none' */
  activation?: 'none' | 'silu';
}
/**
 * causalConv1d of one or a few new tokens over a buffer of earlier inputs, which is updated in place: shifted left and appended to, or with cacheSeqlens used as a ring, where token t is written at (cacheSeqlens + t) mod stateLen.
 * @returns y: like x
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function causalConv1dUpdate(inputs: CausalConv1dUpdateInputs, options?: CausalConv1dUpdateOptions): Tensor {
  return apply('causalConv1dUpdate', inputs, options)['y']!;
}

export interface SelectiveScanInputs extends Operands {
  /** (B, D, L), any layout; fastest dense or channel-last; f32, bf16, f16 */
  u: Tensor;
  /** (B, D, L); f32, bf16, f16 */
  delta: Tensor;
  /** (D, N), negative, f32 or u's dtype; f32, bf16, f16 */
  A: Tensor;
  /** (D, N), (B, N, L) or (B, G, N, L); f32, bf16, f16 */
  B: Tensor;
  /** (D, N), (B, N, L) or (B, G, N, L); f32, bf16, f16 */
  C: Tensor;
  /** (D), skip connection; f32, bf16, f16 */
  D?: Tensor | null;
  /** (B, D, L), gate; f32, bf16, f16 */
  z?: Tensor | null;
  /** (D); f32, bf16, f16 */
  deltaBias?: Tensor | null;
}
export interface SelectiveScanOptions extends Attrs {
  /** step = softplus(delta + deltaBias); default false */
  deltaSoftplus?: boolean;
}
export interface SelectiveScanOutputs {
  /** (B, D, L), laid out like u */
  out: Tensor;
  /** (B, D, N), f32 */
  lastState: Tensor;
}
/**
 * Mamba's selective scan: `d = delta + deltaBias` (softplus of it with deltaSoftplus), `s_t = exp(d_t A) s_{t-1} + d_t B_t u_t`, `out_t = (<C_t, s_t> + D u_t) * silu(z_t)` (arXiv 2312.00752).
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function selectiveScan(inputs: SelectiveScanInputs, options?: SelectiveScanOptions): SelectiveScanOutputs {
  return apply('selectiveScan', inputs, options) as unknown as SelectiveScanOutputs;
}

export interface SelectiveStateUpdateInputs extends Operands {
  /** (B, D, N) or (B, H, P, N); f32; written in place */
  state: Tensor;
  /** (B, D) or (B, H, P); f32, bf16, f16 */
  x: Tensor;
  /** like x, or (B, H); f32, bf16, f16 */
  dt: Tensor;
  /** (D, N), (H, P, N) or (H), negative; f32, bf16, f16 */
  A: Tensor;
  /** (B, N) or (B, G, N), x's dtype; f32, bf16, f16 */
  B: Tensor;
  /** like B; f32, bf16, f16 */
  C: Tensor;
  /** (D), (H, P) or (H); f32, bf16, f16 */
  D?: Tensor | null;
  /** like x, gate; f32, bf16, f16 */
  z?: Tensor | null;
  /** (D), (H, P) or (H); f32, bf16, f16 */
  dtBias?: Tensor | null;
}
export interface SelectiveStateUpdateOptions extends Attrs {
  /** step = softplus(dt + dtBias); default false */
  dtSoftplus?: boolean;
}
/**
 * One decoding step of a selective scan: `d = dt + dtBias` (softplus of it with dtSoftplus), `state = exp(d A) state + d x B`, `out = (<C, state> + D x) * silu(z)`. The state is updated in place. Mamba-1: state (B, D, N); heads: (B, H, P, N), with per-channel parameters or, where dt is (B, H), one dt, A and dtBias a head.
 * @returns out: like x
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function selectiveStateUpdate(inputs: SelectiveStateUpdateInputs, options?: SelectiveStateUpdateOptions): Tensor {
  return apply('selectiveStateUpdate', inputs, options)['out']!;
}

export interface SsdInputs extends Operands {
  /** (B, L, H, P); f32, bf16, f16 */
  x: Tensor;
  /** (B, L, H), x's dtype or f32; f32, bf16, f16 */
  dt: Tensor;
  /** (H), negative, x's dtype or f32; f32, bf16, f16 */
  A: Tensor;
  /** (B, L, G, N), G divides H; f32, bf16, f16 */
  B: Tensor;
  /** (B, L, G, N); f32, bf16, f16 */
  C: Tensor;
  /** (H) or (H, P), x's dtype or f32; f32, bf16, f16 */
  D?: Tensor | null;
  /** (B, L, H, P), gate; f32, bf16, f16 */
  z?: Tensor | null;
  /** (H), x's dtype or f32; f32, bf16, f16 */
  dtBias?: Tensor | null;
  /** (B, H, P, N), or (S, H, P, N) with cuSeqlens; f32 */
  initialStates?: Tensor | null;
  /** (S + 1), starts of the packed sequences, from 0 to L; B must be 1; i32 */
  cuSeqlens?: Tensor | null;
}
export interface SsdOptions extends Attrs {
  /** apply softplus to dt + dtBias; default true */
  dtSoftplus?: boolean;
}
export interface SsdOutputs {
  /** (B, L, H, P), x's dtype */
  y: Tensor;
  /** (B or S, H, P, N), f32 */
  finalStates: Tensor;
}
/**
 * Mamba-2's scan in its state-space-dual form (arXiv 2405.21060): `d = softplus(dt + dtBias)` (or without softplus), `s_t = exp(d_t A) s_{t-1} + d_t x_t B_t^T`, `y_t = (s_t C_t + D x_t) * silu(z_t)`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function ssd(inputs: SsdInputs, options?: SsdOptions): SsdOutputs {
  return apply('ssd', inputs, options) as unknown as SsdOutputs;
}

export interface LinearAttentionInputs extends Operands {
  /** (B, T, H, K); f32, bf16, f16 */
  q: Tensor;
  /** (B, T, H, K); f32, bf16, f16 */
  k: Tensor;
  /** (B, T, H, V); f32, bf16, f16 */
  v: Tensor;
  /** (B, H, K, V), or (S, H, K, V) with cuSeqlens; f32 */
  initialState?: Tensor | null;
  /** (S + 1), starts of the packed sequences, from 0 to T; B must be 1; i32 */
  cuSeqlens?: Tensor | null;
}
export interface LinearAttentionOptions extends Attrs {
  /** of q; 0: 1/sqrt(K); default 0 */
  scale?: number;
  /** divide by the sum of the weights (of this call's keys); default false */
  normalize?: boolean;
}
export interface LinearAttentionOutputs {
  /** (B, T, H, V), q's dtype */
  o: Tensor;
  /** (B or S, H, K, V), f32 */
  finalState: Tensor;
}
/**
 * Causal linear attention (arXiv 2006.16236): `S_t = S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`; with normalize `o_t /= scale <q_t, sum_{s<=t} k_s> + 1e-10`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function linearAttention(inputs: LinearAttentionInputs, options?: LinearAttentionOptions): LinearAttentionOutputs {
  return apply('linearAttention', inputs, options) as unknown as LinearAttentionOutputs;
}

export interface SimpleGlaInputs extends Operands {
  /** (B, T, H, K); f32, bf16, f16 */
  q: Tensor;
  /** (B, T, H, K); f32, bf16, f16 */
  k: Tensor;
  /** (B, T, H, V); f32, bf16, f16 */
  v: Tensor;
  /** (B, T, H), log-decay, q's dtype or f32; f32, bf16, f16 */
  g: Tensor;
  /** (B, H, K, V), or (S, H, K, V) with cuSeqlens; f32 */
  initialState?: Tensor | null;
  /** (S + 1), starts of the packed sequences, from 0 to T; B must be 1; i32 */
  cuSeqlens?: Tensor | null;
}
export interface SimpleGlaOptions extends Attrs {
  /** of q; 0: 1/sqrt(K); default 0 */
  scale?: number;
}
export interface SimpleGlaOutputs {
  /** (B, T, H, V), q's dtype */
  o: Tensor;
  /** (B or S, H, K, V), f32 */
  finalState: Tensor;
}
/**
 * Linear attention with a decay per head and step: `S_t = exp(g_t) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function simpleGla(inputs: SimpleGlaInputs, options?: SimpleGlaOptions): SimpleGlaOutputs {
  return apply('simpleGla', inputs, options) as unknown as SimpleGlaOutputs;
}

export interface GlaInputs extends Operands {
  /** (B, T, H, K); f32, bf16, f16 */
  q: Tensor;
  /** (B, T, H, K); f32, bf16, f16 */
  k: Tensor;
  /** (B, T, H, V); f32, bf16, f16 */
  v: Tensor;
  /** (B, T, H, K), log-decay, q's dtype or f32; f32, bf16, f16 */
  gk: Tensor;
  /** (B, H, K, V), or (S, H, K, V) with cuSeqlens; f32 */
  initialState?: Tensor | null;
  /** (S + 1), starts of the packed sequences, from 0 to T; B must be 1; i32 */
  cuSeqlens?: Tensor | null;
}
export interface GlaOptions extends Attrs {
  /** of q; 0: 1/sqrt(K); default 0 */
  scale?: number;
}
export interface GlaOutputs {
  /** (B, T, H, V), q's dtype */
  o: Tensor;
  /** (B or S, H, K, V), f32 */
  finalState: Tensor;
}
/**
 * Gated linear attention, with a decay per key channel (arXiv 2312.06635): `S_t = diag(exp(gk_t)) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function gla(inputs: GlaInputs, options?: GlaOptions): GlaOutputs {
  return apply('gla', inputs, options) as unknown as GlaOutputs;
}

export interface AttentionInputs extends Operands {
  /** (B, Lq, H, D), D up to 256; f32, bf16, f16 */
  q: Tensor;
  /** (B, Lk, Hk, D), Hk divides H; f32, bf16, f16 */
  k: Tensor;
  /** (B, Lk, Hk, D); f32, bf16, f16 */
  v: Tensor;
  /** (S + 1) starts of packed query sequences and the end; B is 1; i32 */
  cuSeqlensQ?: Tensor | null;
  /** (S + 1) the same of keys and values; i32 */
  cuSeqlensK?: Tensor | null;
}
export interface AttentionOptions extends Attrs {
  /** factor of the scores; 0 is 1 / sqrt(D); default 0 */
  scale?: number;
  /** a query sees the keys up to its own position; default false */
  causal?: boolean;
  /** keys this far before the query are seen; -1 is unlimited; default -1 */
  windowLeft?: number;
  /** keys this far behind the query are seen; -1 is unlimited, causal makes it 0; default -1 */
  windowRight?: number;
}
export interface AttentionOutputs {
  /** (B, Lq, H, D), q's dtype */
  o: Tensor;
  /** (B, H, Lq) f32, natural logarithm */
  lse: Tensor;
}
/**
 * Softmax attention without the matrix of scores: `o = softmax(scale q k^T) v` and `lse = log sum exp` of the scores (FlashAttention, arXiv 2307.08691). Query i stands at key position `i + Lk - Lq`. A query without any allowed key gives o = 0 and lse = -inf.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function attention(inputs: AttentionInputs, options?: AttentionOptions): AttentionOutputs {
  return apply('attention', inputs, options) as unknown as AttentionOutputs;
}

export interface AttentionKvCacheInputs extends Operands {
  /** (B, Lq, H, D), D up to 256; f32, bf16, f16 */
  q: Tensor;
  /** (B, Lmax, Hk, D), Hk divides H; f32, bf16, f16 */
  kCache: Tensor;
  /** (B, Lmax, Hk, D); f32, bf16, f16 */
  vCache: Tensor;
  /** (B) valid keys, the newest included; i32 */
  lengths: Tensor;
}
export interface AttentionKvCacheOptions extends Attrs {
  /** factor of the scores; 0 is 1 / sqrt(D); default 0 */
  scale?: number;
  /** a query sees the keys up to its own position; default true */
  causal?: boolean;
  /** keys this far before the query are seen; -1 is unlimited; default -1 */
  windowLeft?: number;
}
/**
 * Attention of Lq new queries over the first `lengths[b]` keys and values of a cache, which hold the newest tokens already: query i stands at position `lengths[b] - Lq + i`. Otherwise as attention.
 * @returns o: (B, Lq, H, D), q's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function attentionKvCache(inputs: AttentionKvCacheInputs, options?: AttentionKvCacheOptions): Tensor {
  return apply('attentionKvCache', inputs, options)['o']!;
}

export interface KvCacheAppendInputs extends Operands {
  /** (B, Lmax, Hk, D); f32, bf16, f16; written in place */
  cache: Tensor;
  /** (B, Lnew, Hk, D), cache's dtype; f32, bf16, f16 */
  x: Tensor;
  /** (B) where the first new token goes; i32 */
  positions: Tensor;
}
/**
 * Writes new keys or values into a cache: `cache[b, positions[b] + t] = x[b, t]`. Fails, and writes nothing, when they would run over its end.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function kvCacheAppend(inputs: KvCacheAppendInputs): void {
  apply('kvCacheAppend', inputs, undefined);
}

export interface RopeInputs extends Operands {
  /** (B, H, L, D); f32, bf16, f16 */
  q: Tensor;
  /** (B, Hk, L, D); f32, bf16, f16 */
  k: Tensor;
  /** (n, D), of ropeTable; f32 */
  cos: Tensor;
  /** (n, D); f32 */
  sin: Tensor;
  /** (1, L) or (B, L), each in [0, n); i32 */
  positionIds: Tensor;
}
export interface RopeOptions extends Attrs {
  /** rotate by the negative angle; default false */
  inverse?: boolean;
}
export interface RopeOutputs {
  /** (B, H, L, D), laid out in memory like q */
  qEmbed: Tensor;
  /** (B, Hk, L, D), laid out like k */
  kEmbed: Tensor;
}
/**
 * Rotary position embedding: `y = x cos[p] + [-x2, x1] sin[p]` for every head, with the position p of the token and x1, x2 the halves of a head (arXiv 2104.09864). `inverse` turns back.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function rope(inputs: RopeInputs, options?: RopeOptions): RopeOutputs {
  return apply('rope', inputs, options) as unknown as RopeOutputs;
}

export interface RopeTableOptions extends Attrs {
  /** channels of a head, even */
  headDim: number;
  /** rows; 0 is max(maxPosition, seqLen); default 0 */
  length?: number;
  /** base of the frequencies; default 10000 */
  theta?: number;
  /** of the positions or of the base; default 'none' */
  scaling?: 'none' | 'linear' | 'dynamic';
  /** of the scaling; default 1 */
  factor?: number;
  /** length the model was trained for; default 0 */
  maxPosition?: number;
  /** length the table is made for; default 0 */
  seqLen?: number;
}
export interface RopeTableOutputs {
  /** (n, headDim) f32 */
  cos: Tensor;
  /** (n, headDim) f32 */
  sin: Tensor;
}
/**
 * Tables of rope: row t holds cos and sin of `t * theta^(-2i / headDim)`, twice. linear divides t by factor; dynamic (NTK), when seqLen exceeds maxPosition, raises theta by `(factor * seqLen / maxPosition - (factor - 1))^(headDim / (headDim - 2))`. Angles are computed in f32, as the reference does.
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function ropeTable(options: RopeTableOptions, device?: string): RopeTableOutputs {
  return apply('ropeTable', {}, options, device) as unknown as RopeTableOutputs;
}

export interface GatedRmsNormInputs extends Operands {
  /** (..., P); f32, bf16, f16 */
  x: Tensor;
  /** (..., P), x's shape and dtype; f32, bf16, f16 */
  gate: Tensor;
  /** (P), f32 or x's dtype; f32, bf16, f16 */
  weight: Tensor;
}
export interface GatedRmsNormOptions extends Attrs {
  /** added to the mean square; default 0.00001 */
  eps?: number;
}
/**
 * Root-mean-square norm over the last axis, then a SiLU gate: `y = x / sqrt(mean(x^2) + eps) * weight * gate * sigmoid(gate)` (arXiv 2405.21060).
 * @returns y: (..., P), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function gatedRmsNorm(inputs: GatedRmsNormInputs, options?: GatedRmsNormOptions): Tensor {
  return apply('gatedRmsNorm', inputs, options)['y']!;
}

export interface LayerNormInputs extends Operands {
  /** (..., C); f32, bf16, f16 */
  x: Tensor;
  /** (C), f32 or x's dtype; absent is 1; f32, bf16, f16 */
  weight?: Tensor | null;
  /** (C), weight's dtype; absent is 0; f32, bf16, f16 */
  bias?: Tensor | null;
}
export interface LayerNormOptions extends Attrs {
  /** added to the variance; default 0.00001 */
  eps?: number;
}
/**
 * Layer norm over the last axis: `y = (x - mean) / sqrt(var + eps) * weight + bias`, var without Bessel's correction (arXiv 1607.06450).
 * @returns y: (..., C), x's dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function layerNorm(inputs: LayerNormInputs, options?: LayerNormOptions): Tensor {
  return apply('layerNorm', inputs, options)['y']!;
}

export interface SwigluInputs extends Operands {
  /** any shape; a slice of a fused projection is fine; f32, bf16, f16 */
  a: Tensor;
  /** a's shape and dtype; f32, bf16, f16 */
  b: Tensor;
}
/**
 * Gated product: `y = a * sigmoid(a) * b` (arXiv 2002.05202).
 * @returns y: a's shape and dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function swiglu(inputs: SwigluInputs): Tensor {
  return apply('swiglu', inputs, undefined)['y']!;
}

export interface SiluInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
/**
 * `y = x * sigmoid(x)`.
 * @returns y: x's shape and dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function silu(inputs: SiluInputs): Tensor {
  return apply('silu', inputs, undefined)['y']!;
}

export interface GeluInputs extends Operands {
  /** any shape; f32, bf16, f16 */
  x: Tensor;
}
/**
 * Exact Gaussian error linear unit: `y = x / 2 * (1 + erf(x / sqrt 2))` (arXiv 1606.08415).
 * @returns y: x's shape and dtype
 * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit
 */
export function gelu(inputs: GeluInputs): Tensor {
  return apply('gelu', inputs, undefined)['y']!;
}
