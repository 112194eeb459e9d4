import { noGrad } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import { adamW, copy, copyInto, gradNorm } from '../ops/index.js';
import { Scope, scope, untracked } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';

/** What is optimised: a Parameter (lib/nn), or anything like it. */
export interface Optimised {
  readonly name: string;
  /** f32, updated in place */
  readonly master: Tensor;
  /** what forward passes read: the master itself, or a copy in bf16 or f16 that the update rewrites */
  readonly value: Tensor;
}

export interface AdamWOptions {
  betas?: readonly [number, number];
  eps?: number;
  /** of the decaying group */
  weightDecay?: number;
  /** greatest norm of all gradients together; 0 (default): no clipping */
  clip?: number;
  /** whether a parameter decays; default: those without `bias` in their name, as the reference's groups */
  decays?: (name: string) => boolean;
}

interface Slot {
  parameter: Optimised;
  expAvg: Tensor;
  expAvgSq: Tensor;
  weightDecay: number;
}

const average = (name: string): string => `${name}.exp_avg`;
const averageSq = (name: string): string => `${name}.exp_avg_sq`;

/**
 * AdamW (Loshchilov & Hutter, arXiv 1711.05101) with decoupled decay over two groups, clipping by the global norm, f32
 * masters and low-precision copies. One fused update a group.
 */
export class AdamW implements Disposable {
  readonly #slots: Slot[];
  readonly #options: Required<Omit<AdamWOptions, 'decays'>>;
  #updates = 0;

  /** @throws MmError ERR_ARGUMENT for betas that are no decay rates; ERR_DTYPE where a master is not f32 */
  constructor(parameters: readonly Optimised[], options: AdamWOptions = {}) {
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, clip = 0, decays = (name) => !name.includes('bias') } = options;
    if (!betas.every((beta) => beta >= 0 && beta < 1))
      throw new MmError('ERR_ARGUMENT', `betas: expected two numbers in [0, 1), got [${betas.join(', ')}]`);
    this.#options = { betas, eps, weightDecay, clip };
    this.#slots = untracked(() =>
      parameters.map((parameter) => {
        const { name, master } = parameter;
        if (master.dtype !== 'f32')
          throw new MmError('ERR_DTYPE', `parameter ${name} has a ${master.dtype} master; AdamW updates f32: make it trainable first`);
        const zeros = (): Tensor => Tensor.zeros(master.shape, { device: master.device });
        return { parameter, expAvg: zeros(), expAvgSq: zeros(), weightDecay: decays(name) ? weightDecay : 0 };
      }),
    );
  }

  /** Updates made so far. */
  get updates(): number {
    return this.#updates;
  }
  /** The parameters, in the order in which step() takes their gradients. */
  get parameters(): Optimised[] {
    return this.#slots.map((s) => s.parameter);
  }

  /**
   * One update. Parameters whose gradient is null stay as they are.
   * @param grads one a parameter, of its shape, in any float dtype; the caller keeps them
   * @returns the gradients' norm before clipping, f32 (); the caller disposes it
   */
  step(grads: readonly (Tensor | null)[], lr: number): Tensor {
    if (grads.length !== this.#slots.length)
      throw new MmError('ERR_ARGUMENT', `step() got ${grads.length} gradients for ${this.#slots.length} parameters`);
    const { betas, eps, clip } = this.#options;
    const step = ++this.#updates;
    return noGrad(() =>
      scope(() => {
        const { norm, scale } = gradNorm({ grads: grads.filter((g) => g !== null) }, { maxNorm: clip });
        for (const group of this.#groups(grads)) {
          const { slots, weightDecay, low } = group;
          adamW(
            {
              params: slots.map((s) => s.parameter.master),
              grads: group.grads,
              expAvg: slots.map((s) => s.expAvg),
              expAvgSq: slots.map((s) => s.expAvgSq),
              compute: low ? slots.map((s) => s.parameter.value) : null,
              gradScale: clip > 0 ? scale : null,
            },
            { lr, beta1: betas[0], beta2: betas[1], eps, weightDecay, step },
          );
        }
        return norm;
      }),
    );
  }

  /** Slots that one call updates: of one decay, and all or none with a low-precision copy. */
  #groups(grads: readonly (Tensor | null)[]): { slots: Slot[]; grads: Tensor[]; weightDecay: number; low: boolean }[] {
    const groups = new Map<string, { slots: Slot[]; grads: Tensor[]; weightDecay: number; low: boolean }>();
    this.#slots.forEach((slot, i) => {
      const grad = grads[i];
      if (!grad) return;
      const { value, master } = slot.parameter;
      const key = `${slot.weightDecay} ${value === master ? 'f32' : value.dtype}`;
      const group = groups.get(key) ?? { slots: [], grads: [], weightDecay: slot.weightDecay, low: value !== master };
      groups.set(key, group);
      group.slots.push(slot);
      group.grads.push(grad);
    });
    return [...groups.values()];
  }

  /** Copies of the moments as `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`; the caller disposes them. `updates` is saved beside. */
  state(): Map<string, Tensor> {
    return noGrad(() =>
      new Map(
        this.#slots.flatMap(({ parameter: { name }, expAvg, expAvgSq }) => [
          [average(name), copy({ x: expAvg })],
          [averageSq(name), copy({ x: expAvgSq })],
        ]),
      ),
    );
  }

  /**
   * Continues from what state() gave after `updates` updates.
   * @throws MmError ERR_ARGUMENT that names the first missing or unexpected tensor; ERR_SHAPE
   */
  load(state: ReadonlyMap<string, Tensor>, updates: number): void {
    const known = new Map(this.#slots.flatMap(({ parameter: { name }, expAvg, expAvgSq }) => [[average(name), expAvg], [averageSq(name), expAvgSq]]));
    for (const name of known.keys()) if (!state.has(name)) throw new MmError('ERR_ARGUMENT', `the optimizer state lacks ${name}`);
    for (const name of state.keys())
      if (!known.has(name)) throw new MmError('ERR_ARGUMENT', `the optimizer state has ${name}, which no optimised parameter has`);
    using temporary = new Scope();
    temporary.run(() => noGrad(() => known.forEach((dst, name) => copyInto({ dst, src: state.get(name)! }))));
    this.#updates = updates;
  }

  dispose(): void {
    for (const { expAvg, expAvgSq } of this.#slots) {
      expAvg.dispose();
      expAvgSq.dispose();
    }
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
