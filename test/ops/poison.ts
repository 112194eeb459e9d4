import { copy } from '../../lib/ops/index.js';
import { untracked } from '../../lib/tensor/scope.js';
import { sync, Tensor } from '../../lib/tensor/tensor.js';

const most = 4; // blocks of one size that one call may take: results and scratch
const sources = new Map<string, Tensor[]>();

/** The sizes that csrc/cuda/memory.cc keeps freed blocks by, up to `bytes`. */
function sizes(bytes: number): number[] {
  const list = [512];
  for (let last = 512; last < bytes; last = list.at(-1)!) list.push(last + Math.max(512, 2 ** (Math.floor(Math.log2(last)) - 3)));
  return list;
}

/** Tensors of NaNs (every byte 255, in any float dtype), one of each size; kept until clearPoison(). */
function nans(device: string, bytes: number): Tensor[] {
  const made = sources.get(device) ?? [];
  sources.set(device, made);
  const wanted = sizes(bytes);
  for (const size of wanted.slice(made.length)) made.push(untracked(() => Tensor.fromBytes(new Uint8Array(size).fill(255), 'u8', [size], device)));
  return made.slice(0, wanted.length);
}

/**
 * Leaves NaNs in the blocks that the device hands out next: takes blocks of every size up to about `bytes` at once, fills
 * them and frees them, so that they lie on top of what was freed before. A result that a kernel does not write is NaN then,
 * as is scratch that it reads before writing.
 */
export async function poison(device: string, bytes: number): Promise<void> {
  const filled = nans(device, bytes).flatMap((x) => Array.from({ length: most }, () => copy({ x })));
  await sync(device); // all of them are in use together
  for (const t of filled) t.dispose();
}

/** Tensors that stay for the next time. */
export function poisonTensors(): number {
  return [...sources.values()].flat().length;
}
export function clearPoison(): void {
  for (const t of [...sources.values()].flat()) t.dispose();
  sources.clear();
}
