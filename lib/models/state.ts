import { byteSize, type Tensor } from '../tensor/tensor.js';
import { noGrad } from '../autograd/tape.js';
import { copy } from '../ops/index.js';
import { keep, type LayerState } from './context.js';

/** Tokens that each row of a batch has consumed, by stack. They differ only where images count patches ('post'). */
export interface Consumed {
  embedding: Int32Array;
  llm: Int32Array;
}

function tensorsOf(layer: LayerState): Tensor[] {
  if (layer.type === 'mha') return [layer.key, layer.value];
  return layer.conv ? [layer.conv, layer.ssm] : [layer.ssm];
}

/**
 * What a model remembers of the tokens it has consumed, one entry a layer (embedding layers first). Mamba-2 layers keep a
 * state of constant size, attention layers their keys and values. `step` updates it in place; dispose it by hand.
 */
export class RecurrentState implements Disposable {
  constructor(
    readonly layers: LayerState[],
    readonly consumed: Consumed,
  ) {}

  get batch(): number {
    return this.consumed.llm.length;
  }
  /** Bytes of the states and caches. */
  get bytes(): number {
    return this.layers.flatMap(tensorsOf).reduce((sum, t) => sum + byteSize(t), 0);
  }

  /** Counts one more token a row. */
  consume(): void {
    for (const counts of [this.consumed.embedding, this.consumed.llm]) counts.forEach((n, b) => (counts[b] = n + 1));
  }

  /** An independent copy, to go on from one prompt several times. */
  clone(): RecurrentState {
    const copied = (t: Tensor): Tensor => {
      const fresh = noGrad(() => copy({ x: t }));
      const kept = keep(fresh);
      fresh.dispose();
      return kept;
    };
    const layers = this.layers.map((layer): LayerState => {
      if (layer.type === 'mha') return { type: 'mha', key: copied(layer.key), value: copied(layer.value) };
      const { conv, ssm, rates, weight, taps } = layer;
      return {
        type: 'mamba2',
        conv: conv && copied(conv),
        ssm: copied(ssm),
        rates: keep(rates),
        weight: keep(weight),
        taps: taps && keep(taps),
      };
    });
    return new RecurrentState(layers, { embedding: this.consumed.embedding.slice(), llm: this.consumed.llm.slice() });
  }

  dispose(): void {
    for (const layer of this.layers) {
      for (const t of tensorsOf(layer)) t.dispose();
      if (layer.type === 'mamba2') {
        layer.rates.dispose();
        layer.weight.dispose();
        layer.taps?.dispose();
      }
    }
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
