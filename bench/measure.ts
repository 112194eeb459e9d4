import { performance } from 'node:perf_hooks';
import { MmError } from '../lib/native/errors.js';
import { Graph } from '../lib/tensor/graph.js';
import { Scope } from '../lib/tensor/scope.js';
import { sync } from '../lib/tensor/tensor.js';

export function median(list: readonly number[]): number {
  const sorted = [...list].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export interface Timing {
  /** median milliseconds of one call, over the rounds */
  ms: number;
  /** fastest and slowest round, milliseconds a call */
  min: number;
  max: number;
  rounds: number;
  callsPerRound: number;
  /** 'graph': the calls were captured and replayed, so that no launch is part of the time; 'eager': each was queued by itself */
  how: 'eager' | 'graph';
}

export interface TimeOptions {
  rounds?: number;
  /** milliseconds that a round lasts at least; default 60 on the CPU, 30 on a GPU */
  roundMs?: number;
  /** sets of operands that the calls take in turn: `call` is given a number below this */
  sets?: number;
}

/**
 * Times `call`, which queues one op: warm-up first, then rounds of as many calls as fill `roundMs`, each ended by one
 * wait for the device. On a GPU the calls are replayed as a graph where they can be captured, since an op may take less
 * time than its launch. Results go after each call, or stay apart from each other in the graph.
 */
export async function time(call: (set: number) => unknown, device: string, options: TimeOptions = {}): Promise<Timing> {
  const { rounds = 9, roundMs = device === 'cpu' ? 60 : 30, sets = 1 } = options;
  const eager = async (calls: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < calls; i++) {
      using scope = new Scope();
      scope.run(() => call(i % sets));
    }
    await sync(device);
    return (performance.now() - start) / calls;
  };
  await eager(1);
  const once = await eager(Math.max(2, Math.min(sets, 20)));
  const graph = device === 'cpu' ? null : await captured((i) => call(i % sets), device, Math.max(sets, once > 0.5 ? 1 : 8));
  using _ = graph ?? undefined;
  const width = graph?.calls ?? 1;
  const batch = graph
    ? async (replays: number): Promise<number> => {
        const start = performance.now();
        for (let i = 0; i < replays; i++) graph.replay();
        await sync(device);
        return (performance.now() - start) / replays / width;
      }
    : eager;
  const first = graph ? Math.min(await batch(1), await batch(2)) : once;
  const repeats = Math.max(1, Math.min(2000, Math.ceil(roundMs / Math.max(first * width, 1e-3))));
  await batch(repeats);
  const times: number[] = [];
  const some = first * width > 100 ? Math.min(rounds, 5) : rounds;
  for (let r = 0; r < some; r++) times.push(await batch(repeats));
  return {
    ms: median(times), min: Math.min(...times), max: Math.max(...times), rounds: some, callsPerRound: repeats * width, how: graph ? 'graph' : 'eager',
  };
}

interface Captured extends Disposable {
  calls: number;
  replay(): void;
}

/** The calls as a graph; null where the device or the op has none. */
async function captured(call: (set: number) => unknown, device: string, calls: number): Promise<Captured | null> {
  try {
    const graph = await Graph.capture(device, () => Array.from({ length: calls }, (_, i) => call(i)));
    return { calls, replay: () => graph.replay(), [Symbol.dispose]: () => graph.dispose() };
  } catch (error) {
    if (error instanceof MmError && (error.code === 'ERR_UNSUPPORTED' || error.code === 'ERR_KERNEL')) return null;
    throw error;
  }
}
