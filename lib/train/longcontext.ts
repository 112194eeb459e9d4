import { Decoder } from '../models/decoder.js';
import type { VisionLanguageModel } from '../models/model.js';
import { RecurrentState } from '../models/state.js';
import { MmError } from '../native/errors.js';
import { argmax } from '../ops/index.js';
import { memoryStats } from '../tensor/memory.js';
import { Random } from '../tensor/random.js';
import { untracked } from '../tensor/scope.js';
import { sync, Tensor, type TypedArray } from '../tensor/tensor.js';

export interface ContextPoint {
  /** of context, the timed one included */
  tokens: number;
  /** median over the timed tokens */
  msPerToken: number;
  /** of device memory that the context takes: states, keys and values */
  bytes: number;
}

export interface ContextOptions {
  readonly lengths: readonly number[];
  /** how often every length has its turn of 8 timed tokens; default 24 */
  readonly rounds?: number;
  /** no round begins later than this, so that slow models are measured on fewer tokens; default 6 */
  readonly seconds?: number;
  readonly signal?: AbortSignal;
  readonly onRound?: (done: number) => void;
}

/** Tokens of a turn. The first ones find the caches full of another length's state and are not timed. */
const untimed = 2;
const timed = 8;

/**
 * Time and memory of the next token after contexts of given lengths, at batch 1. The lengths take turns, so that whatever
 * else the machine does meanwhile slows all of them alike. The context is not computed: caches are filled with random keys
 * and values, as neither time nor memory depends on them.
 */
export async function measureContext(model: VisionLanguageModel, options: ContextOptions): Promise<ContextPoint[]> {
  const { lengths, rounds = 24, seconds = 6, signal, onRound } = options;
  const { device } = model.placement;
  const next = async (decoder: Decoder, tokens: number): Promise<number> => {
    if (signal?.aborted) throw new MmError('ERR_ABORTED', 'the measurement of long contexts was stopped');
    for (const counts of Object.values(decoder.state.consumed)) counts.fill(tokens - 1);
    const start = performance.now();
    using logits = await decoder.step([1]);
    using token = untracked(() => argmax({ x: logits.value }));
    await token.data();
    return performance.now() - start;
  };
  const memory = async (): Promise<number> => {
    await sync(device);
    return memoryStats().devices[device]?.bytes ?? 0;
  };

  const decoders: Decoder[] = [];
  const times = lengths.map((): number[] => []);
  const points: ContextPoint[] = [];
  try {
    const values = await randomBits(model, capacityOf(Math.max(...lengths)));
    for (const tokens of lengths) decoders.push(new Decoder(model, filled(model, tokens, values)));
    const end = performance.now() + 1000 * seconds;
    for (let round = 0; round < rounds && (round === 0 || performance.now() < end); round++) {
      for (let turn = 0; turn < lengths.length; turn++) {
        // Each round begins with another length: V8's collector comes every 30 tokens, three turns, and would meet the same ones.
        const i = (round + turn) % lengths.length;
        for (let n = 0; n < untimed; n++) await next(decoders[i]!, lengths[i]!);
        for (let n = 0; n < timed; n++) times[i]!.push(await next(decoders[i]!, lengths[i]!));
      }
      onRound?.(round + 1);
    }
    for (const [i, tokens] of lengths.entries()) {
      // What the state's end gives back is what it held: tables that the model keeps do not count.
      const { state } = decoders[i]!;
      decoders[i]!.dispose();
      const held = await memory();
      state.dispose();
      points.push({ tokens, msPerToken: median(times[i]!), bytes: held - (await memory()) });
    }
    return points;
  } finally {
    for (const decoder of decoders) {
      decoder.dispose();
      decoder.state.dispose();
    }
  }
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;
const capacityOf = (tokens: number): number => 2 ** Math.ceil(Math.log2(tokens));

/** Random numbers in the model's dtype for the longest cache of any layer: rounded once, then copied into all caches. */
async function randomBits(model: VisionLanguageModel, capacity: number): Promise<TypedArray> {
  const widths = model.blocks.map(({ mixer, config }) => (mixer.type === 'mha' ? config.kvHeads * config.headDim : 0));
  const size = capacity * Math.max(...widths);
  using values = untracked(() => Tensor.from(new Random(0).fill(size, (r) => r.uniform(-1, 1)), [size], { dtype: model.placement.dtype }));
  return values.data();
}

/** A state with `tokens - 1` tokens of one row behind it and room for one more. */
function filled(model: VisionLanguageModel, tokens: number, values: TypedArray): RecurrentState {
  const { layers, consumed } = model.state(1);
  return new RecurrentState(
    layers.map((layer) => {
      if (layer.type !== 'mha') return layer;
      const [, , heads, width] = layer.key.shape as [number, number, number, number];
      const shape = [1, capacityOf(tokens), heads, width];
      const part = values.subarray(0, shape.reduce((a, b) => a * b));
      const make = (): Tensor => untracked(() => Tensor.from(part, shape, model.placement));
      layer.key.dispose();
      layer.value.dispose();
      return { type: 'mha', key: make(), value: make() };
    }),
    consumed,
  );
}
