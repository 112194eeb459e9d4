import { Linear, RmsNorm } from '../../nn/layers.js';
import { Module } from '../../nn/module.js';
import type { Placement } from '../../nn/parameter.js';
import { add, reshape, swiglu } from '../../ops/index.js';
import { scope } from '../../tensor/scope.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { BlockType, MixerConfig, StackConfig } from '../config.js';
import type { AttentionState, LayerState, MambaState, SequenceContext, StepContext } from '../context.js';
import { MambaMixer, type MixerInitialisation } from '../mmmamba/mixer.js';
import { Attention } from './attention.js';

/** Gated MLP: w2(silu(w1 x) * w3 x). */
class FeedForward extends Module {
  readonly #w1: Linear;
  readonly #w3: Linear;
  readonly #w2: Linear;

  constructor(path: string, placement: Placement, { hiddenSize, intermediateSize }: StackConfig) {
    super(path, placement);
    this.#w1 = this.child(new Linear(`${path}.w1`, placement, hiddenSize, intermediateSize));
    this.#w3 = this.child(new Linear(`${path}.w3`, placement, hiddenSize, intermediateSize));
    this.#w2 = this.child(new Linear(`${path}.w2`, placement, intermediateSize, hiddenSize));
  }
  forward(x: Tensor, residual: Tensor): Tensor {
    return scope(() => this.#w2.forward(swiglu({ a: this.#w1.forward(x), b: this.#w3.forward(x) }), { residual }));
  }
}

/** One decoder layer: `h += mixer(norm(h)); h += mlp(norm(h))`. Both stacks of teacher and student are made of these. */
export class DecoderBlock extends Module {
  readonly mixer: Attention | MambaMixer;
  readonly mixerNorm: RmsNorm;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: FeedForward;

  /** @param label `embed.<i>` or `llm.<i>`, the prefix of its taps */
  constructor(
    path: string,
    placement: Placement,
    readonly label: string,
    readonly config: StackConfig,
    type: BlockType,
    mixer: MixerConfig,
    initialisation?: MixerInitialisation,
  ) {
    super(path, placement);
    const { hiddenSize, rmsNormEps } = config;
    const inner = `${path}.attention`;
    this.mixer = this.child(
      type === 'mha' ? new Attention(inner, placement, config) : new MambaMixer(inner, placement, config, mixer, initialisation),
    );
    this.#mlp = this.child(new FeedForward(`${path}.feed_forward`, placement, config));
    this.mixerNorm = this.child(new RmsNorm(`${path}.attention_norm`, placement, hiddenSize, rmsNormEps));
    this.#mlpNorm = this.child(new RmsNorm(`${path}.ffn_norm`, placement, hiddenSize, rmsNormEps));
  }

  /** @param h (B, L, C) @returns (B, L, C) */
  forward(h: Tensor, context: SequenceContext): Tensor {
    return scope(() => this.finish(h, scope(() => this.mixer.heads(this.mixerNorm.forward(h), context)), context));
  }

  /** The rest of the layer behind the mixer's heads. Its intermediates belong to the enclosing scope. @param y (..., H, P) */
  finish(h: Tensor, y: Tensor, context?: SequenceContext): Tensor {
    const heads = reshape(y, h.shape);
    const { tap } = context ?? {};
    let mixed: Tensor;
    if (tap) {
      const out = this.mixer.output.forward(heads);
      tap(`${this.label}.attn_out`, out);
      mixed = add({ a: h, b: out });
    } else mixed = this.mixer.output.forward(heads, { residual: h });
    const result = this.#mlp.forward(this.#mlpNorm.forward(mixed), mixed);
    tap?.(`${this.label}.layer_out`, result);
    return result;
  }

  /** As forward(), with the state to decode from; the caller owns the state. */
  prefill(h: Tensor, context: SequenceContext): { h: Tensor; state: LayerState } {
    let state: LayerState | undefined;
    const out = scope(() => {
      const result = this.mixer.prefill(this.mixerNorm.forward(h), context);
      state = result.state;
      return this.finish(h, result.y, context);
    });
    return { h: out, state: state! };
  }

  /** The state before the first token. */
  state(batch: number): LayerState {
    return this.mixer.type === 'mha' ? this.mixer.state(batch, 1) : this.mixer.state(batch);
  }

  /** Makes room for `capacity` tokens a row. @returns whether the layer needs it, which attention alone does */
  reserve(state: LayerState, capacity: number): boolean {
    if (this.mixer.type !== 'mha') return false;
    this.mixer.reserve(state as AttentionState, capacity);
    return true;
  }

  /** One token a row, for which reserve() made room; updates the state in place. @param h (B, C) @returns (B, C) */
  step(h: Tensor, state: LayerState, context: StepContext): Tensor {
    return scope(() => {
      const x = this.mixerNorm.forward(h);
      const y =
        this.mixer.type === 'mha' ? this.mixer.step(x, state as AttentionState, context) : this.mixer.step(x, state as MambaState);
      return this.finish(h, y);
    });
  }
}
