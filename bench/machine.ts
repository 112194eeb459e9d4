import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join, relative } from 'node:path';
import { backends, nvidiaDriver } from '../lib/native/backends.js';
import { packageRoot } from '../lib/native/loader.js';
import { copy, linear } from '../lib/ops/index.js';
import { Tensor } from '../lib/tensor/tensor.js';
import { draw } from './draw.js';
import { time } from './measure.js';

export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  node: string;
  backend: Record<string, unknown>;
  /** of an NVIDIA GPU */
  driver?: string;
  /** commit of the code that ran; ends in '+' when the working tree differed from it */
  commit: string;
  date: string;
  command: string;
}

/** What a figure must name: machine, commit, date, command. */
export function machine(device: string): Machine {
  const name = device.split(':')[0]!;
  const info = backends().find((b) => b.name === name);
  const driver = name === 'cuda' ? nvidiaDriver() : null;
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    backend: { name, ...(info?.devices[Number(device.split(':')[1] ?? 0)] ?? {}) },
    ...(driver && { driver }),
    commit: commit(),
    date: new Date().toISOString(),
    command: ['node', relative(packageRoot, process.argv[1] ?? ''), ...process.argv.slice(2)].join(' '),
  };
}

/** The commit that scripts/pack-gpu.mjs wrote down for a machine where git names another or none, or the one that git names. */
function commit(): string {
  const git = (...args: string[]): string => execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  const packed = join(packageRoot, 'build', 'commit');
  try {
    if (existsSync(packed)) return readFileSync(packed, 'utf8').trim();
    return git('rev-parse', '--short=12', 'HEAD') + (git('status', '--porcelain', '--untracked-files=no') ? '+' : '');
  } catch {
    return 'unknown';
  }
}

/** What a machine can do at best. */
export interface Ceilings {
  /** bytes read and written a second by a large copy */
  bytesPerSecond: number;
  /** operations a second of a large matrix product, by dtype */
  flopsPerSecond: { f32: number; bf16: number; f16: number };
}

/** Practical peaks of known GPUs, measured with PyTorch 2.11 (copy of 2 GiB; bf16 product of 8192 x 8192 x 8192). */
const listed: Record<string, { bytesPerSecond: number; halfFlopsPerSecond: number }> = {
  'NVIDIA H100 80GB HBM3': { bytesPerSecond: 3018e9, halfFlopsPerSecond: 731e12 },
};

/** The ceilings measured in this run and, where the GPU is known, listed ones that are higher: the floors come from these. */
export async function ceilings(device: string): Promise<{ measured: Ceilings; used: Ceilings }> {
  const gpu = device !== 'cpu';
  const n = gpu ? 1 << 28 : 1 << 26;
  const side = gpu ? 8192 : 2048;
  const rate = async (dtype: 'f32' | 'bf16'): Promise<number> => {
    using a = draw({ shape: [side, side] }, dtype, device, 1);
    using b = draw({ shape: [side, side] }, dtype, device, 2);
    const timing = await time(() => linear({ x: a, weight: b }), device, { rounds: 5 });
    return (2 * side ** 3) / (timing.min / 1e3);
  };
  using x = Tensor.zeros([n], { device });
  const copied = await time(() => copy({ x }), device, { rounds: 5 });
  const bf16 = await rate('bf16');
  const measured: Ceilings = { bytesPerSecond: (2 * 4 * n) / (copied.min / 1e3), flopsPerSecond: { f32: await rate('f32'), bf16, f16: bf16 } };
  const known = listed[String(backends().find((b) => device.startsWith(b.name))?.devices[Number(device.split(':')[1] ?? 0)]?.['name'])];
  const half = Math.max(bf16, known?.halfFlopsPerSecond ?? 0);
  const used: Ceilings = {
    bytesPerSecond: Math.max(measured.bytesPerSecond, known?.bytesPerSecond ?? 0),
    flopsPerSecond: { f32: measured.flopsPerSecond.f32, bf16: half, f16: half },
  };
  return { measured, used };
}
