import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { packageRoot } from '../lib/native/loader.js';
import type { BenchCase } from './cases.js';
import type { BenchDtype } from './kernels.js';

/** What bench/peers/torch_kernels.py answers for one op: milliseconds by peer. */
interface Answer {
  op: string;
  peer: string;
  ms: number;
}

/** PyTorch in a process of its own, timed case by case in turn with ours. */
export class TorchPeers implements Disposable {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(
    child: ChildProcess,
    lines: AsyncIterator<string>,
    /** version and device, for people */
    readonly about: string,
  ) {
    this.#child = child;
    this.#lines = lines;
  }

  /** @returns a reason where there is no Python with PyTorch that sees the device */
  static async start(python: string, device: string): Promise<TorchPeers | string> {
    const child = spawn(python, [join(packageRoot, 'bench', 'peers', 'torch_kernels.py'), device], { stdio: ['pipe', 'pipe', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (d: Buffer) => (errors = (errors + d.toString()).slice(-2000)));
    child.stdin.on('error', () => undefined); // it ended; the missing answer says so
    const failed = new Promise<string>((resolve) => child.on('error', (error) => resolve(error.message)));
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const first = await Promise.race([lines.next(), failed]);
    if (typeof first === 'string') return `${python} could not be started: ${first}`;
    if (first.done) return `${python} has no PyTorch for ${device}: ${errors.trim().split('\n').at(-1) ?? ''}`;
    return new TorchPeers(child, lines, first.value);
  }

  /** Times the counterparts of a case; none where PyTorch has none. */
  async times(c: BenchCase, dtype: BenchDtype, sets: number): Promise<Answer[]> {
    const { op, inputs, attrs, backward = false } = c;
    this.#child.stdin!.write(`${JSON.stringify({ op, inputs, attrs: attrs ?? {}, backward, dtype, sets })}\n`);
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('the PyTorch process ended before it answered');
    return JSON.parse(value) as Answer[];
  }

  [Symbol.dispose](): void {
    this.#child.stdin!.end();
    this.#child.kill();
  }
}
