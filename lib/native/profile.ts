import type { KernelTime } from './binding.js';
import { binding } from './loader.js';

/** Starts counting the time spent in each kernel. */
export function startProfile(): void {
  binding().profile(true);
}
/** Stops counting; the kernels by falling time since startProfile(). Call it after sync(), or queued work is missed. */
export function stopProfile(): KernelTime[] {
  return binding()
    .profile(false)
    .sort((a, b) => b.ms - a.ms);
}
