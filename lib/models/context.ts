import { untracked } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import type { RotaryTables } from './hovle/rotary.js';

/** Name of a tap (`embed.<i>.attn_out`, ...) and the tensor there, which lives as long as the call. */
export type Tap = (name: string, value: Tensor) => void;

/** What the layers of one stack share during a forward pass over whole sequences. */
export interface SequenceContext {
  batch: number;
  length: number;
  /** i32 (1 | B, L) */
  positions: Tensor;
  rotary: RotaryTables;
  /** tokens that the rotary table is made for */
  span: number;
  /** valid tokens of each row when rows are padded on the right; null when all are full */
  lengths: Int32Array | null;
  /** with lengths: (B, L, 1), added to the mixers' dt so that padding leaves their states alone */
  padding: Tensor | null;
  tap?: Tap;
}

/** What the layers of one stack share while they decode one token a row. */
export interface StepContext {
  batch: number;
  /** i32 (B, 1): position of the new token */
  positions: Tensor;
  /** i32 (B): where the new token goes in a key-value cache */
  slots: Tensor;
  /** i32 (B): valid keys, the new one included */
  lengths: Tensor;
  /** tokens that the rotary table is made for */
  span: number;
  rotary: RotaryTables;
}

/** State of a Mamba-2 mixer: its size does not depend on the context. */
export interface MambaState {
  type: 'mamba2';
  /** (B, Dc, W - 1), the last raw [v | k | q] projections; null without a convolution */
  conv: Tensor | null;
  /** f32 (B, H, P, N) */
  ssm: Tensor;
  /** what decoding derives from the weights once: A (H) f32, all projections' rows as one matrix, the convolution's (Dc, W) */
  rates: Tensor;
  weight: Tensor;
  taps: Tensor | null;
}

/** Keys (already rotated) and values (B, capacity, Hk, D). */
export interface AttentionState {
  type: 'mha';
  key: Tensor;
  value: Tensor;
}
export type LayerState = MambaState | AttentionState;

/** Another handle to the same memory that belongs to no scope: for what outlives the pass that made it. */
export function keep(t: Tensor): Tensor {
  return untracked(() => t.aliased(t.shape, t.strides, 0));
}
