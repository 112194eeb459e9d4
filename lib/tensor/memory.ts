import type { MemoryStats } from '../native/binding.js';
import { binding } from '../native/loader.js';

/** Live tensors of this environment (main thread or worker) and the device memory behind them. */
export function memoryStats(): MemoryStats {
  return binding().memoryStats();
}
/** Makes `peakBytes` start again from what is live now. */
export function resetPeak(): void {
  binding().resetPeak();
}
