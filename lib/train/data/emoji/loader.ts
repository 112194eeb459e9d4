import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { MmError } from '../../../native/errors.js';
import type { ErrorCode } from '../../../native/errors.js';
import { EmojiBatches } from './batch.js';
import type { BatchOptions } from './batch.js';
import type { LoadedBatch, WorkerStart } from './loader-worker.js';

export interface LoaderOptions {
  /** the step to begin at: a resumed run gets the batches it would have had; default 0 */
  firstStep?: number;
  /** batches prepared ahead by each worker; default 3 */
  ahead?: number;
  /** threads that make batches; their number does not change the batches. Default 1 */
  workers?: number;
}

/** Threads for a model on `device`: one beside a CPU that computes, several for a GPU, which is faster than one of them. */
export function loaderWorkers(device: string): number {
  return device === 'cpu' ? 1 : Math.max(1, Math.min(8, availableParallelism() - 2));
}

interface Lane {
  worker: Worker;
  ready: LoadedBatch[];
  waiting: { resolve(batch: LoadedBatch): void; reject(error: MmError): void }[];
}

/**
 * Training batches made in worker threads, in the order of their steps. The pixels are shared with the workers, the
 * batches are moved, not copied. Close it when done: `await using loader = new EmojiLoader(…)` does.
 */
export class EmojiLoader implements AsyncDisposable {
  /** worker i makes the steps firstStep + i, firstStep + i + workers, … */
  readonly #lanes: Lane[];
  #turn = 0;
  #failure: MmError | undefined;

  constructor(options: BatchOptions, { firstStep = 0, ahead = 3, workers = 1 }: LoaderOptions = {}) {
    if (!Number.isSafeInteger(firstStep) || firstStep < 0) {
      throw new MmError('ERR_ARGUMENT', `firstStep: expected an integer from 0, got ${firstStep}`);
    }
    for (const [name, value] of [['ahead', ahead], ['workers', workers]] as const) {
      if (!Number.isInteger(value) || value < 1) throw new MmError('ERR_ARGUMENT', `${name}: expected a positive integer, got ${value}`);
    }
    // Checks the options here, where the caller can catch it.
    new EmojiBatches(options);
    this.#lanes = Array.from({ length: workers }, (_, i) => this.#lane({ options, firstStep: firstStep + i, stride: workers, ahead }));
  }

  #lane(workerData: WorkerStart): Lane {
    const worker = new Worker(new URL('./loader-worker.js', import.meta.url), { workerData });
    const lane: Lane = { worker, ready: [], waiting: [] };
    worker.on('message', (message: LoadedBatch) => {
      const waiting = lane.waiting.shift();
      if (waiting) waiting.resolve(message);
      else lane.ready.push(message);
    });
    worker.on('error', (cause: Error & { code?: ErrorCode }) => {
      // An MmError crosses the threads as a plain Error that kept its code.
      const code = cause.name === 'MmError' && cause.code ? cause.code : 'ERR_ARGUMENT';
      this.#fail(new MmError(code, `the batch loader failed: ${cause.message}`, { cause }));
    });
    worker.on('exit', (code) => {
      this.#fail(new MmError('ERR_ABORTED', `the batch loader stopped with exit code ${code}`));
    });
    // Waiting for a batch keeps the process alive, batches lying ready do not.
    worker.unref();
    return lane;
  }

  /** The batch of the next step; rejects with the worker's error, or ERR_ABORTED once closed. */
  async next(): Promise<LoadedBatch> {
    const lane = this.#lanes[this.#turn++ % this.#lanes.length]!;
    let taken = lane.ready.shift();
    if (!taken) {
      if (this.#failure) throw this.#failure;
      lane.worker.ref();
      try {
        taken = await new Promise<LoadedBatch>((resolve, reject) => lane.waiting.push({ resolve, reject }));
      } finally {
        if (lane.waiting.length === 0) lane.worker.unref();
      }
    }
    lane.worker.postMessage(null);
    return taken;
  }

  /** Stops the workers; idempotent. Batches not fetched are dropped. */
  async close(): Promise<void> {
    this.#fail(new MmError('ERR_ABORTED', 'the batch loader is closed'));
    for (const lane of this.#lanes) lane.ready.length = 0;
    await Promise.all(this.#lanes.map(({ worker }) => worker.terminate()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #fail(error: MmError): void {
    this.#failure ??= error;
    for (const { waiting } of this.#lanes) for (const { reject } of waiting.splice(0)) reject(this.#failure);
  }
}
