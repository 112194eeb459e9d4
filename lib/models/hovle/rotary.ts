import { noGrad } from '../../autograd/tape.js';
import { ropeTable } from '../../ops/index.js';
import { untracked } from '../../tensor/scope.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { RopeConfig } from '../config.js';

/** cos and sin by position, f32 (n, D). */
export interface Rotary {
  cos: Tensor;
  sin: Tensor;
}

/** A power of two of at least `length`. */
const roomy = (length: number): number => Math.max(64, 2 ** Math.ceil(Math.log2(length)));

/**
 * Tables of rotary embedding. Under dynamic NTK scaling a sequence longer than `maxPosition` has its own base frequency,
 * a function of its length alone (the reference keeps the last long table for shorter calls: golden README, quirk 11).
 */
export class RotaryTables implements Disposable {
  #plain: Rotary | null = null;
  #long: { length: number; table: Rotary } | null = null;

  constructor(
    readonly config: RopeConfig,
    readonly headDim: number,
    readonly device: string,
  ) {}

  /** A length whose table serves a sequence of `length` tokens, and that seldom changes as the sequence grows. */
  span(length: number): number {
    const { scaling, maxPosition } = this.config;
    const rounded = roomy(length);
    if (scaling !== 'dynamic' || rounded <= maxPosition) return rounded;
    return Math.max(length, maxPosition);
  }

  /** The table for a sequence of `length` tokens: at least that many rows. Owned by this object, valid until the next call. */
  table(length: number): Rotary {
    if (this.config.scaling === 'dynamic' && length > this.config.maxPosition) {
      if (this.#long?.length !== length) {
        drop(this.#long?.table);
        this.#long = { length, table: this.#make(length, length) };
      }
      return this.#long.table;
    }
    if (!this.#plain || this.#plain.cos.dim(0) < length) {
      drop(this.#plain);
      this.#plain = this.#make(roomy(length), 0);
    }
    return this.#plain;
  }

  #make(rows: number, seqLen: number): Rotary {
    const { theta, scaling, factor, maxPosition } = this.config;
    const options = { headDim: this.headDim, length: rows, theta, scaling, factor, maxPosition, seqLen };
    return untracked(() => noGrad(() => ropeTable(options, this.device)));
  }

  dispose(): void {
    drop(this.#plain);
    drop(this.#long?.table);
    this.#plain = this.#long = null;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

function drop(table: Rotary | null | undefined): void {
  table?.cos.dispose();
  table?.sin.dispose();
}
