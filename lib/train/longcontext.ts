import type { VisionLanguageModel } from '../models/model.js';
import { RecurrentState } from '../models/state.js';
import { MmError } from '../native/errors.js';
import { argmax } from '../ops/index.js';
import { memoryStats } from '../tensor/memory.js';
import { Random } from '../tensor/random.js';
import { scope, untracked } from '../tensor/scope.js';
import { sync, Tensor } from '../tensor/tensor.js';

export interface ContextPoint {
  /** of context, the timed ones included */
  tokens: number;
  /** median over the timed tokens */
  msPerToken: number;
  /** of device memory that the context takes: states, keys and values */
  bytes: number;
}

export interface ContextOptions {
  readonly lengths: readonly number[];
  /** tokens timed at each length, after a few that are not; default 15 */
  readonly runs?: number;
  readonly signal?: AbortSignal;
  readonly onPoint?: (point: ContextPoint) => void;
}

const warmup = 3;

/**
 * Time and memory of the next token after contexts of given lengths, at batch 1. The context is not computed: caches are
 * filled with random keys and values, as neither time nor memory depends on them.
 */
export async function measureContext(model: VisionLanguageModel, { lengths, runs = 15, signal, onPoint }: ContextOptions): Promise<ContextPoint[]> {
  const { device } = model.placement;
  const memory = (): number => memoryStats().devices[device]?.bytes ?? 0;
  const points: ContextPoint[] = [];
  for (const tokens of lengths) {
    const state = filled(model, tokens - warmup - runs);
    const times: number[] = [];
    let held: number;
    try {
      for (let i = 0; i < warmup + runs; i++) {
        if (signal?.aborted) throw new MmError('ERR_ABORTED', 'the measurement of long contexts was stopped');
        const start = performance.now();
        const next = untracked(() => scope(() => argmax({ x: model.step([1], state) })));
        await next.data();
        next.dispose();
        if (i >= warmup) times.push(performance.now() - start);
      }
      await sync(device);
      held = memory();
    } finally {
      state.dispose();
    }
    await sync(device);
    // What the state's end gives back is what it held: tables that the model keeps do not count.
    const point = { tokens, msPerToken: times.sort((a, b) => a - b)[runs >> 1]!, bytes: held - memory() };
    points.push(point);
    onPoint?.(point);
  }
  return points;
}

/** A state as after `tokens` tokens of one row, with room for the rest up to the next power of two. */
function filled(model: VisionLanguageModel, tokens: number): RecurrentState {
  const empty = model.state(1);
  const random = new Random(0);
  let values: Float32Array | undefined;
  const layers = empty.layers.map((layer) => {
    if (layer.type !== 'mha') return layer;
    const [, , heads, width] = layer.key.shape as [number, number, number, number];
    const capacity = 2 ** Math.ceil(Math.log2(tokens + 1));
    // One block of random numbers serves all layers.
    values ??= random.fill(capacity * heads * width, (r) => r.uniform(-1, 1));
    const make = (): Tensor =>
      untracked(() => Tensor.from(values!, [1, capacity, heads, width], { dtype: layer.key.dtype as 'f32', device: layer.key.device }));
    layer.key.dispose();
    layer.value.dispose();
    return { type: 'mha' as const, key: make(), value: make() };
  });
  const consumed = (): Int32Array => new Int32Array(1).fill(tokens);
  return new RecurrentState(layers, { embedding: consumed(), llm: consumed() });
}
