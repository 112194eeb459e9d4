import { activeTape, noGrad } from '../autograd/tape.js';
import { concat, embedding, linear, rmsNorm, slice } from '../ops/index.js';
import type { Tensor } from '../tensor/tensor.js';
import { normal, ones, zeros, type Initialiser } from './initialise.js';
import { Module } from './module.js';
import type { Parameter, Placement } from './parameter.js';

export interface LinearOptions {
  bias?: boolean;
  init?: Initialiser;
  /** see ParameterOptions.fileRows */
  fileRows?: Int32Array;
}

/** y = activation(x Wᵀ + bias) + residual. */
export class Linear extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter | null;

  constructor(path: string, placement: Placement, inputs: number, outputs: number, options: LinearOptions = {}) {
    super(path, placement);
    this.weight = this.parameter('weight', [outputs, inputs], { init: options.init ?? normal(0.02), fileRows: options.fileRows });
    this.bias = options.bias ? this.parameter('bias', [outputs], { init: zeros }) : null;
  }

  /** @param x (..., in) @returns (..., out) */
  forward(x: Tensor, options: { residual?: Tensor; activation?: 'none' | 'gelu' | 'silu' } = {}): Tensor {
    const { residual, activation = 'none' } = options;
    return linear({ x, weight: this.weight.value, bias: this.bias?.value, residual }, { activation });
  }
}

/** Root-mean-square norm over the last axis. */
export class RmsNorm extends Module {
  readonly weight: Parameter;

  constructor(
    path: string,
    placement: Placement,
    size: number,
    readonly eps: number,
  ) {
    super(path, placement);
    this.weight = this.parameter('weight', [size], { init: ones });
  }
  forward(x: Tensor): Tensor {
    return rmsNorm({ x, weight: this.weight.value }, { eps: this.eps });
  }
}

/** Rows of a table by id. */
export class Embedding extends Module {
  readonly weight: Parameter;

  constructor(path: string, placement: Placement, rows: number, size: number) {
    super(path, placement);
    this.weight = this.parameter('weight', [rows, size], { init: normal(0.02) });
  }
  /** @param ids i32 (...) @returns (..., size) */
  forward(ids: Tensor): Tensor {
    return embedding({ weight: this.weight.value, ids });
  }
}

/**
 * Stacks tensors along their first axis. Not concat's own rule: that of bf16 weights rounds their gradient, which linear gives
 * in f32, and copies what can be a view.
 */
export function joinRows(parts: readonly Tensor[]): Tensor {
  const joined = noGrad(() => concat({ x: parts }, { axis: 0 }));
  let at = 0;
  const ranges = parts.map((t) => [at, (at += t.dim(0))] as const);
  activeTape()?.recordNode([...parts], [joined], [], ([g], needs) => ranges.map(([from, to], i) => (needs[i] ? slice(g!, 0, from, to) : null)));
  return joined;
}
