import { performance } from 'node:perf_hooks';
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
}

/**
 * Times `call`, which queues one op: warm-up first, then rounds of as many calls as fill `roundMs`, each ended by one
 * wait for the device. Results are disposed after each call.
 */
export async function time(call: () => void, device: string, { rounds = 9, roundMs = 60 } = {}): Promise<Timing> {
  const batch = async (calls: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < calls; i++) {
      using scope = new Scope();
      scope.run(call);
    }
    await sync(device);
    return (performance.now() - start) / calls;
  };
  await batch(1);
  const once = await batch(2);
  const calls = Math.max(1, Math.min(2000, Math.round(roundMs / Math.max(once, 1e-3))));
  await batch(calls);
  const times: number[] = [];
  for (let r = 0; r < rounds; r++) times.push(await batch(calls));
  return { ms: median(times), min: Math.min(...times), max: Math.max(...times), rounds, callsPerRound: calls };
}
