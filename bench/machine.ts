import { execFileSync } from 'node:child_process';
import { cpus, totalmem } from 'node:os';
import { relative } from 'node:path';
import { backends } from '../lib/native/backends.js';
import { packageRoot } from '../lib/native/loader.js';
import { copy, linear } from '../lib/ops/index.js';
import { Tensor } from '../lib/tensor/tensor.js';
import { time } from './measure.js';

export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  node: string;
  backend: Record<string, unknown>;
  /** commit of the code that ran; ends in '+' when the working tree differed from it */
  commit: string;
  date: string;
  command: string;
}

/** What a figure must name: machine, commit, date, command. */
export function machine(device: string): Machine {
  const name = device.split(':')[0]!;
  const info = backends().find((b) => b.name === name);
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    backend: { name, ...(info?.devices[Number(device.split(':')[1] ?? 0)] ?? {}) },
    commit: commit(),
    date: new Date().toISOString(),
    command: ['node', relative(packageRoot, process.argv[1] ?? ''), ...process.argv.slice(2)].join(' '),
  };
}

function commit(): string {
  const git = (...args: string[]): string => execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    return git('rev-parse', '--short=12', 'HEAD') + (git('status', '--porcelain', '--untracked-files=no') ? '+' : '');
  } catch {
    return 'unknown';
  }
}

/** What the machine can do at best, measured in this run: the floors come from these. */
export interface Ceilings {
  /** bytes read and written a second by a large copy */
  bytesPerSecond: number;
  /** operations a second of a large matrix product, by dtype */
  flopsPerSecond: { f32: number; bf16: number };
}

export async function ceilings(device: string): Promise<Ceilings> {
  const n = 1 << 26;
  using x = Tensor.zeros([n], { device });
  const copied = await time(() => void copy({ x }), device, { rounds: 5 });
  const rate = async (dtype: 'f32' | 'bf16'): Promise<number> => {
    using a = Tensor.full([2048, 2048], 0.5, { dtype, device });
    using b = Tensor.full([2048, 2048], 0.5, { dtype, device });
    const timing = await time(() => void linear({ x: a, weight: b }), device, { rounds: 5 });
    return (2 * 2048 ** 3) / (timing.min / 1e3);
  };
  return { bytesPerSecond: (2 * 4 * n) / (copied.min / 1e3), flopsPerSecond: { f32: await rate('f32'), bf16: await rate('bf16') } };
}
