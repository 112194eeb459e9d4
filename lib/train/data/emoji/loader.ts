import { Worker } from 'node:worker_threads';
import { MmError } from '../../../native/errors.js';
import type { ErrorCode } from '../../../native/errors.js';
import { EmojiBatches } from './batch.js';
import type { BatchOptions } from './batch.js';
import type { LoadedBatch, WorkerStart } from './loader-worker.js';

export interface LoaderOptions {
  /** the step to begin at: a resumed run gets the batches it would have had; default 0 */
  firstStep?: number;
  /** batches prepared ahead; default 3 */
  ahead?: number;
}

/**
 * Training batches made in a worker thread, in the order of their steps. The pixels are shared with the worker, the
 * batches are moved, not copied. Close it when done: `await using loader = new EmojiLoader(…)` does.
 */
export class EmojiLoader implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #ready: LoadedBatch[] = [];
  readonly #waiting: { resolve(batch: LoadedBatch): void; reject(error: MmError): void }[] = [];
  #failure: MmError | undefined;

  constructor(options: BatchOptions, { firstStep = 0, ahead = 3 }: LoaderOptions = {}) {
    if (!Number.isSafeInteger(firstStep) || firstStep < 0) {
      throw new MmError('ERR_ARGUMENT', `firstStep: expected an integer from 0, got ${firstStep}`);
    }
    if (!Number.isInteger(ahead) || ahead < 1) {
      throw new MmError('ERR_ARGUMENT', `ahead: expected a positive integer, got ${ahead}`);
    }
    // Checks the options here, where the caller can catch it.
    new EmojiBatches(options);
    const workerData: WorkerStart = { options, firstStep, ahead };
    this.#worker = new Worker(new URL('./loader-worker.js', import.meta.url), { workerData });
    this.#worker.on('message', (message: LoadedBatch) => {
      const waiting = this.#waiting.shift();
      if (waiting) waiting.resolve(message);
      else this.#ready.push(message);
    });
    this.#worker.on('error', (cause: Error & { code?: ErrorCode }) => {
      // An MmError crosses the threads as a plain Error that kept its code.
      const code = cause.name === 'MmError' && cause.code ? cause.code : 'ERR_ARGUMENT';
      this.#fail(new MmError(code, `the batch loader failed: ${cause.message}`, { cause }));
    });
    this.#worker.on('exit', (code) => {
      this.#fail(new MmError('ERR_ABORTED', `the batch loader stopped with exit code ${code}`));
    });
    // Waiting for a batch keeps the process alive, batches lying ready do not.
    this.#worker.unref();
  }

  /** The batch of the next step; rejects with the worker's error, or ERR_ABORTED once closed. */
  async next(): Promise<LoadedBatch> {
    let taken = this.#ready.shift();
    if (!taken) {
      if (this.#failure) throw this.#failure;
      this.#worker.ref();
      try {
        taken = await new Promise<LoadedBatch>((resolve, reject) => this.#waiting.push({ resolve, reject }));
      } finally {
        if (this.#waiting.length === 0) this.#worker.unref();
      }
    }
    this.#worker.postMessage(null);
    return taken;
  }

  /** Stops the worker; idempotent. Batches not fetched are dropped. */
  async close(): Promise<void> {
    this.#fail(new MmError('ERR_ABORTED', 'the batch loader is closed'));
    this.#ready.length = 0;
    await this.#worker.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #fail(error: MmError): void {
    this.#failure ??= error;
    for (const { reject } of this.#waiting.splice(0)) reject(this.#failure);
  }
}
