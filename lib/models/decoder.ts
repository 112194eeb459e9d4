import { noGrad } from '../autograd/tape.js';
import { copy } from '../ops/index.js';
import { Captured, type Held } from '../nn/captured.js';
import { Tensor } from '../tensor/tensor.js';
import type { StepInputs, VisionLanguageModel } from './model.js';
import type { RecurrentState } from './state.js';

/**
 * Steps of one state as `model.step` takes them. After a few tokens the device's part is a recorded graph where the device has
 * graphs, so that a token costs one launch and the host's work no longer bounds it.
 */
export class Decoder implements Disposable {
  readonly #step: Captured<StepInputs, Tensor>;
  #caches: readonly Tensor[] = [];

  constructor(
    readonly model: VisionLanguageModel,
    /** updated in place; the caller disposes it, after the decoder */
    readonly state: RecurrentState,
  ) {
    this.#step = new Captured(model.placement.device, (inputs) => noGrad(() => model.stepFrom(inputs, state)), { most: 1, after: 4 });
  }

  /**
   * Consumes one text token a row.
   * @param tokens ids (B) on the host or as an i32 tensor
   * @returns logits (B, V), valid until they are disposed or the next step is taken
   */
  async step(tokens: ArrayLike<number> | Tensor): Promise<Held<Tensor>> {
    const logits = await this.#step.run(() =>
      noGrad(() => {
        const inputs = this.model.stepInputs(tokens instanceof Tensor ? copy({ x: tokens }) : tokens, this.state);
        this.#forgetGrown();
        return inputs;
      }),
    );
    this.state.consume();
    return logits;
  }

  /** A recorded step keeps the caches that it was recorded with, which are useless once larger ones took their place. */
  #forgetGrown(): void {
    const caches = this.state.layers.flatMap((layer) => (layer.type === 'mha' ? [layer.key] : []));
    if (caches.some((cache, i) => cache !== this.#caches[i])) this.#step.dispose();
    this.#caches = caches;
  }

  /** Frees the recorded step and its logits. Idempotent. */
  dispose(): void {
    this.#step.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
