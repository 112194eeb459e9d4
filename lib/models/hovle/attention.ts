import { Linear } from '../../nn/layers.js';
import { Module } from '../../nn/module.js';
import type { Placement } from '../../nn/parameter.js';
import { attention, attentionKvCache, copyInto, kvCacheAppend, permute, reshape, rope, slice, split } from '../../ops/index.js';
import { scope, untracked } from '../../tensor/scope.js';
import { Tensor } from '../../tensor/tensor.js';
import type { StackConfig } from '../config.js';
import type { AttentionState, SequenceContext, StepContext } from '../context.js';
import type { Rotary } from './rotary.js';

const smallestCache = 64;

/**
 * Order of wqkv's rows in memory, [q | k | v], as row numbers of the file, which interleaves them a key-value head:
 * [q x (H / Hk) | k | v] x D. In memory each of the three is one slice whose heads lie at one stride.
 */
function qkvRows({ heads, kvHeads, headDim }: StackConfig): Int32Array {
  const group = heads / kvHeads;
  const row = (kv: number, inGroup: number): number[] => Array.from({ length: headDim }, (_, d) => (kv * (group + 2) + inGroup) * headDim + d);
  const each = (count: number, fn: (i: number) => number[]): number[] => Array.from({ length: count }, (_, i) => fn(i)).flat();
  return Int32Array.from([
    ...each(heads, (h) => row(Math.floor(h / group), h % group)),
    ...each(kvHeads, (kv) => row(kv, group)),
    ...each(kvHeads, (kv) => row(kv, group + 1)),
  ]);
}

/** Causal softmax attention with grouped heads and rotary embedding: HoVLE's token mixer. */
export class Attention extends Module {
  readonly type = 'mha';
  readonly wqkv: Linear;
  readonly output: Linear;

  constructor(
    path: string,
    placement: Placement,
    readonly config: StackConfig,
  ) {
    super(path, placement);
    const { hiddenSize, heads, kvHeads, headDim } = config;
    this.wqkv = this.child(new Linear(`${path}.wqkv`, placement, hiddenSize, (heads + 2 * kvHeads) * headDim, { fileRows: qkvRows(config) }));
    this.output = this.child(new Linear(`${path}.wo`, placement, heads * headDim, hiddenSize));
  }

  /** Rotated q (B, L, H, D) and k, and v (B, L, Hk, D). */
  #project(x: Tensor, batch: number, length: number, { cos, sin }: Rotary, positionIds: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const { heads, kvHeads, headDim } = this.config;
    const rows = reshape(this.wqkv.forward(x), [batch, length, heads + 2 * kvHeads, headDim]);
    const [q, k, v] = split(rows, 2, [heads, kvHeads, kvHeads]) as [Tensor, Tensor, Tensor];
    const byHead = [0, 2, 1, 3];
    const turned = rope({ q: permute(q, byHead), k: permute(k, byHead), cos, sin, positionIds });
    return { q: permute(turned.qEmbed, byHead), k: permute(turned.kEmbed, byHead), v };
  }

  /** @param x (B, L, C) @returns the heads' output (B, L, H, D), before the output projection */
  heads(x: Tensor, context: SequenceContext): Tensor {
    const { batch, length, rotary, span, positions } = context;
    const { q, k, v } = this.#project(x, batch, length, rotary.table(span), positions);
    return attention({ q, k, v }, { causal: true }).o;
  }

  /** As heads(), with a cache of keys and values to decode from; the caller owns the state. */
  prefill(x: Tensor, context: SequenceContext): { y: Tensor; state: AttentionState } {
    const { batch, length, rotary, span, positions } = context;
    const { q, k, v } = this.#project(x, batch, length, rotary.table(span), positions);
    const state = this.state(batch, length + 1);
    copyInto({ dst: slice(state.key, 1, 0, length), src: k });
    copyInto({ dst: slice(state.value, 1, 0, length), src: v });
    return { y: attention({ q, k, v }, { causal: true }).o, state };
  }

  /** An empty cache for at least `capacity` tokens a row. */
  state(batch: number, capacity: number): AttentionState {
    const { kvHeads, headDim } = this.config;
    const shape = [batch, Math.max(smallestCache, 2 ** Math.ceil(Math.log2(capacity))), kvHeads, headDim];
    const make = (): Tensor => untracked(() => Tensor.zeros(shape, this.placement));
    return { type: 'mha', key: make(), value: make() };
  }

  /** One token a row, for which reserve() made room. @param x (B, C) @returns (B, H, D) */
  step(x: Tensor, state: AttentionState, context: StepContext): Tensor {
    const { batch, rotary, positions, slots, lengths, span } = context;
    const { heads, headDim } = this.config;
    const { q, k, v } = this.#project(x, batch, 1, rotary.table(span), positions);
    kvCacheAppend({ cache: state.key, x: k, positions: slots });
    kvCacheAppend({ cache: state.value, x: v, positions: slots });
    return reshape(attentionKvCache({ q, kCache: state.key, vCache: state.value, lengths }, { causal: true }), [batch, heads, headDim]);
  }

  /** Makes room for `capacity` tokens a row in a cache. */
  reserve(state: AttentionState, capacity: number): void {
    if (state.key.dim(1) >= capacity) return;
    const larger = this.state(state.key.dim(0), capacity);
    for (const part of ['key', 'value'] as const) {
      scope(() => copyInto({ dst: slice(larger[part], 1, 0, state[part].dim(1)), src: state[part] }));
      state[part].dispose();
      state[part] = larger[part];
    }
  }
}
