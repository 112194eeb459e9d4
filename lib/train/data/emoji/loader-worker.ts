import { parentPort, workerData } from 'node:worker_threads';
import { EmojiBatches } from './batch.js';
import type { Batch, BatchOptions } from './batch.js';

/** What the loader sends at the start. */
export interface WorkerStart {
  options: BatchOptions;
  firstStep: number;
  /** from one step to the next */
  stride: number;
  /** batches that may lie finished and unfetched */
  ahead: number;
}

/** What the worker sends, its buffers transferred, and the loader hands on. */
export interface LoadedBatch {
  step: number;
  batch: Batch;
}

// One message from the loader = one batch fetched = one more may be made.
const { options, firstStep, stride, ahead } = workerData as WorkerStart;
const batches = new EmojiBatches(options);
let step = firstStep;
for (let i = 0; i < ahead; i++) send();
parentPort!.on('message', send);

function send(): void {
  const message: LoadedBatch = { step, batch: batches.batch(step) };
  step += stride;
  const { inputIds, positionIds, attentionMask, labels, answerMask, pixelValues, imageFlags } = message.batch;
  const buffers = [inputIds, positionIds, attentionMask, labels, answerMask, pixelValues, imageFlags];
  parentPort!.postMessage(
    message,
    buffers.map((array) => array.buffer),
  );
}
