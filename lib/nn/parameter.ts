import { MmError } from '../native/errors.js';
import { noGrad } from '../autograd/tape.js';
import { cast, copy, gatherRows } from '../ops/index.js';
import type { Dtype } from '../tensor/dtype.js';
import type { Random } from '../tensor/random.js';
import { scope, untracked } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import type { Initialiser } from './initialise.js';

/** What forward passes compute in. */
export type ComputeDtype = 'f32' | 'bf16' | 'f16';

/** Where parameters live and what matrices are stored in. */
export interface Placement {
  device: string;
  dtype: ComputeDtype;
}

export interface ParameterOptions {
  init: Initialiser;
  /** stays f32 under low-precision compute; default: rank below 2 (norm weights, biases, decay rates) */
  exact?: boolean;
  /** row i in memory is row fileRows[i] of the file; default: the same order */
  fileRows?: Int32Array;
}

/**
 * A named weight. `value` is what forward passes read. Under low-precision compute a trainable matrix also has an f32
 * `master`, which the optimiser updates and rounds into `value`; otherwise both are one tensor.
 */
export class Parameter implements Disposable {
  readonly dtype: Dtype;
  readonly #placement: Placement;
  readonly #init: Initialiser;
  readonly #fileRows: Int32Array | undefined;
  #value: Tensor | null = null;
  #master: Tensor | null = null;
  #trainable = false;
  #shared = false;
  #disposed = false;

  constructor(
    readonly name: string,
    readonly shape: readonly number[],
    placement: Placement,
    options: ParameterOptions,
  ) {
    this.#placement = placement;
    this.#init = options.init;
    this.#fileRows = options.fileRows;
    this.dtype = (options.exact ?? shape.length < 2) ? 'f32' : placement.dtype;
  }

  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }
  /** Whether it was given a value yet. */
  get loaded(): boolean {
    return this.#value !== null;
  }
  /** What forward passes read. @throws MmError ERR_ARGUMENT before it was loaded or initialised, ERR_DISPOSED after dispose() */
  get value(): Tensor {
    if (this.#disposed) throw new MmError('ERR_DISPOSED', `parameter ${this.name} was used after dispose()`);
    if (!this.#value) throw new MmError('ERR_ARGUMENT', `parameter ${this.name} has no value yet: load or initialise the model first`);
    return this.#value;
  }
  /** What the optimiser updates: f32 for a trainable parameter; for a frozen one its value. */
  get master(): Tensor {
    return this.#master ?? this.value;
  }

  /** Whether a tape collects its gradient. Making a parameter trainable gives it an f32 master and, if it was shared, an own copy. */
  get trainable(): boolean {
    return this.#trainable;
  }
  set trainable(on: boolean) {
    if (on === this.#trainable) return;
    this.#trainable = on;
    if (!this.#value) return;
    if (on && this.#shared) this.#replace(own(() => copy({ x: this.value })));
    else if (on) this.#replace(this.#value);
    else {
      this.#master?.dispose();
      this.#master = null;
      this.#value.requiresGrad = false;
    }
  }

  /** Takes over a tensor in the file's layout (any float dtype, this shape) as the new value. */
  adopt(tensor: Tensor): void {
    if (tensor.rank !== this.shape.length || tensor.shape.some((d, i) => d !== this.shape[i]))
      throw new MmError('ERR_SHAPE', `parameter ${this.name} has shape [${this.shape.join(', ')}], not [${tensor.shape.join(', ')}]`);
    const order = this.#fileRows;
    if (!order) return this.#replace(tensor);
    const rows = own(() => scope(() => gatherRows({ x: tensor, index: Tensor.from(order, [order.length], { device: tensor.device }) })));
    tensor.dispose();
    this.#replace(rows);
  }
  /** A copy of a tensor in the file's layout as the new value. */
  set(tensor: Tensor): void {
    this.adopt(own(() => copy({ x: tensor })));
  }
  /**
   * Uses the memory of another parameter with the same layout, until one of the two becomes trainable. If one is already, takes
   * a copy; a trainable parameter takes the master, so that nothing is lost under low-precision compute.
   */
  share(other: Parameter): void {
    const { value } = other;
    if (value.dtype !== this.dtype || value.shape.some((d, i) => d !== this.shape[i]))
      throw new MmError(
        'ERR_SHAPE',
        `parameter ${this.name} (${this.dtype} [${this.shape.join(', ')}]) cannot share ${other.name} (${value.toString()})`,
      );
    if (this.#trainable || other.#trainable) return this.#replace(own(() => copy({ x: this.#trainable ? other.master : value })));
    this.#replace(untracked(() => value.aliased(value.shape, value.strides, 0)));
    this.#shared = other.#shared = true;
  }
  /** A new value from its initialiser. */
  initialise(random: Random): void {
    const data = this.#init(random, this.shape);
    this.#replace(untracked(() => Tensor.from(data, this.shape, { device: this.#placement.device })));
  }

  /** A new tensor with the most exact value there is, in the file's layout; the caller disposes it. */
  fileTensor(): Tensor {
    const order = this.#fileRows;
    const source = this.master;
    if (!order) return own(() => copy({ x: source }));
    const inverse = new Int32Array(order.length);
    order.forEach((row, i) => (inverse[row] = i));
    return own(() => scope(() => gatherRows({ x: source, index: Tensor.from(inverse, [inverse.length], { device: source.device }) })));
  }

  dispose(): void {
    if (this.#master !== this.#value) this.#master?.dispose();
    this.#value?.dispose();
    this.#master = this.#value = null;
    this.#disposed = true;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Makes `source`, which it takes over, the value and, as needed, the master. */
  #replace(source: Tensor): void {
    const old = [this.#value, this.#master];
    const convert = (dtype: 'f32' | 'bf16' | 'f16'): Tensor => (source.dtype === dtype ? source : own(() => cast({ x: source }, { dtype })));
    this.#value = convert(this.dtype as ComputeDtype);
    this.#master = this.#trainable && this.dtype !== 'f32' ? convert('f32') : null;
    this.#value.requiresGrad = this.#trainable;
    this.#shared = false;
    for (const t of [...old, source]) if (t && t !== this.#value && t !== this.#master) t.dispose();
  }
}

/** Runs an op off the tape; its result belongs to the parameter, not to a scope. */
function own(fn: () => Tensor): Tensor {
  return untracked(() => noGrad(fn));
}
