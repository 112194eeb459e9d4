import { setImmediate as breathe } from 'node:timers/promises';
import { noGrad } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import type { Gradients } from '../nn/gradients.js';
import type { Parameter } from '../nn/parameter.js';
import { add, cast, scale } from '../ops/index.js';
import { Captured } from '../nn/captured.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Optimisation } from './config.js';
import type { Batch } from './data/emoji/index.js';
import type { LoadedBatch } from './data/emoji/loader-worker.js';
import type { MetricsFile } from './metrics.js';
import { AdamW } from './optimizer.js';
import type { Progress } from './progress.js';
import { wsdOfRun } from './schedule.js';

/** Figures of an evaluation; `score`, the higher the better, chooses the best. */
export type Scored = { readonly score: number } & Readonly<Record<string, number>>;

/** The best evaluation so far. */
export interface Best {
  /** updates done */
  step: number;
  score: number;
}

/** What is minimised. */
export interface Objective<Inputs = unknown> {
  /** Some rows of a batch on the device, as plain data: all that `gradients` reads and that changes from batch to batch. */
  inputs(rows: Batch): Inputs;
  /** Their mean loss, f32 (), and the gradients of what is trained; runs inside a scope and may be recorded as a graph. */
  gradients(inputs: Inputs): { loss: Tensor; gradients: Gradients };
  /** How much some rows' mean loss counts against that of other rows of the batch: the number of what it is the mean of. */
  weight(rows: Batch): number;
}

/** One optimisation: a loss over batches, with everything round it. */
export interface LoopOptions {
  /** `stage` of the metrics, title of the progress display */
  readonly stage: string;
  readonly optimisation: Optimisation;
  /** what is trained, and nothing else; made trainable before */
  readonly parameters: readonly Parameter[];
  readonly optimizer: AdamW;
  /** updates done by the run that this one continues; default 0 */
  readonly firstStep?: number;
  readonly best?: Best | null;
  /** batches from `firstStep` on */
  readonly source: { next(): Promise<LoadedBatch> };
  readonly objective: Objective;
  readonly metrics: MetricsFile;
  readonly progress: Progress;
  readonly signal?: AbortSignal;
  /** `every` 0: at the end only. */
  readonly evaluation?: { readonly every: number; run(): Promise<Scored>; saveBest?(best: Best): Promise<void> };
  /** `every` 0: at the end and when stopped */
  readonly checkpoint: { readonly every: number; save(step: number, best: Best | null): Promise<void> };
}

/** Updates that may be queued at once: one that runs and one that waits, so that the executor never idles. */
const inFlight = 2;

interface Queued {
  step: number;
  lr: number;
  tokens: number;
  read: Promise<{ loss: number; gradNorm: number }>;
}

/**
 * Runs the updates from `firstStep` to the end. The loss is read while later updates run. Stopped by the signal, it
 * finishes the update, writes a checkpoint and throws ERR_ABORTED.
 * @throws MmError ERR_ABORTED; ERR_ARGUMENT where the loss stops being finite; what batches, evaluation or checkpoints throw
 */
export async function train(options: LoopOptions): Promise<Best | null> {
  const { stage, optimisation, firstStep = 0, source, metrics, progress, signal, evaluation, checkpoint } = options;
  const { steps } = optimisation;
  const schedule = wsdOfRun(steps, optimisation);
  const queue: Queued[] = [];
  using gradients: Pass = new Captured(deviceOf(options), (inputs) => options.objective.gradients(inputs));
  let best = options.best ?? null;
  let since = performance.now();

  const settle = async (): Promise<void> => {
    const { step, lr, tokens, read } = queue.shift()!;
    const { loss, gradNorm } = await read;
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm))
      throw new MmError(
        'ERR_ARGUMENT',
        `${stage} diverged: at update ${step} the loss is ${loss} and the gradient's norm ${gradNorm}; ` +
          `lower the learning rate (lr ${optimisation.lr}) or clip`,
      );
    const now = performance.now();
    const ms = now - since;
    since = now;
    metrics.write({ stage, step, loss, lr, gradNorm, tokensPerSecond: Math.round((1000 * tokens) / ms), ms: Math.round(10 * ms) / 10 });
    progress.update(step, { loss, lr, grad: gradNorm });
  };

  const drain = async (): Promise<void> => {
    while (queue.length > 0) await settle();
  };

  progress.start(stage, steps, firstStep);
  try {
    let saved = firstStep;
    for (let done = firstStep; done < steps;) {
      if (signal?.aborted) {
        await drain();
        if (saved < done) await checkpoint.save(done, best);
        throw new MmError('ERR_ABORTED', `${stage} was stopped after update ${done} of ${steps}`);
      }
      const { step, batch } = await source.next();
      if (step !== done) throw new MmError('ERR_ARGUMENT', `the data source gave the batch of update ${step}; that of update ${done} is due`);
      const lr = optimisation.lr * schedule(done);
      const { read } = await update(options, gradients, batch, lr);
      done++;
      queue.push({ step: done, lr, tokens: batch.attentionMask.reduce((sum, bit) => sum + bit, 0), read });
      if (queue.length >= inFlight) await settle();

      const due = (every: number): boolean => done === steps || (every > 0 && done % every === 0);
      if (evaluation && due(evaluation.every)) {
        await drain();
        const scores = await evaluation.run();
        metrics.write({ stage, step: done, evaluation: scores });
        if (evaluation.saveBest && (best === null || scores.score > best.score))
          await evaluation.saveBest((best = { step: done, score: scores.score }));
        since = performance.now();
      }
      if (due(checkpoint.every)) {
        await drain();
        await checkpoint.save(done, best);
        saved = done;
        since = performance.now();
      }
    }
    return best;
  } finally {
    await Promise.allSettled(queue.map(({ read }) => read));
    progress.stop();
  }
}

type Pass = Captured<unknown, { loss: Tensor; gradients: Gradients }>;

function deviceOf({ parameters }: LoopOptions): string {
  return parameters[0]?.value.device ?? 'cpu';
}

/** Queues one update; what is returned says how its loss will be read. */
async function update(options: LoopOptions, pass: Pass, batch: Batch, lr: number): Promise<{ read: Queued['read'] }> {
  const { optimisation, optimizer, parameters, objective } = options;
  const parts = split(batch, optimisation.accumulate).map((rows) => ({ rows, weight: objective.weight(rows) }));
  const total = parts.reduce((sum, { weight }) => sum + weight, 0);
  const apply = (gradients: Gradients): Promise<number> => {
    const norm = optimizer.step(
      parameters.map((p) => gradients.get(p) ?? null),
      lr,
    );
    const read = later(norm);
    norm.dispose();
    return read;
  };
  const sums: Gradients = new Map();
  const losses: { loss: Promise<number>; share: number }[] = [];
  let gradNorm: Promise<number> | undefined;
  for (const { rows, weight } of parts) {
    const share = total > 0 ? weight / total : 0;
    using result = await pass.run(() => objective.inputs(rows));
    const { loss, gradients } = result.value;
    losses.push({ loss: later(loss), share });
    if (parts.length === 1) gradNorm = apply(gradients);
    else for (const [parameter, gradient] of gradients) sums.set(parameter, accumulated(sums.get(parameter), gradient, share));
    // Timers, signals and other requests get their turn between two parts.
    await breathe();
  }
  gradNorm ??= apply(sums);
  for (const gradient of sums.values()) gradient.dispose();
  const all = Promise.all([gradNorm, ...losses.map(async ({ loss, share }) => share * (await loss))]);
  const read = all.then(([norm, ...terms]) => ({ loss: terms.reduce((sum, term) => sum + term, 0), gradNorm: norm }));
  read.catch(() => undefined); // until the loop waits for it
  return { read };
}

/** Queues the reading of a scalar, before what is queued next can write it. */
function later(scalar: Tensor): Promise<number> {
  const read = scalar.item();
  read.catch(() => undefined); // awaited with the others
  return read;
}

/** `sum + share * gradient`, f32; takes over the sum. */
function accumulated(sum: Tensor | undefined, gradient: Tensor, share: number): Tensor {
  const next = noGrad(() =>
    scope(() => {
      const wide = gradient.dtype === 'f32' ? gradient : cast({ x: gradient }, { dtype: 'f32' });
      const part = scale({ x: wide }, { factor: share });
      return sum ? add({ a: sum, b: part }) : part;
    }),
  );
  sum?.dispose();
  return next;
}

/** A batch in parts of equally many rows, as views of its arrays. */
export function split(batch: Batch, parts: number): Batch[] {
  if (batch.size % parts !== 0) throw new MmError('ERR_ARGUMENT', `a batch of ${batch.size} rows cannot be cut into ${parts} equal parts`);
  const size = batch.size / parts;
  const pixels = batch.pixelValues.length / Math.max(1, batch.size);
  return Array.from({ length: parts }, (_, i) => {
    const rows = <T extends { subarray(from: number, to: number): T }>(array: T, width: number): T =>
      array.subarray(i * size * width, (i + 1) * size * width);
    const { length } = batch;
    return {
      size,
      length,
      inputIds: rows(batch.inputIds, length),
      positionIds: rows(batch.positionIds, length),
      attentionMask: rows(batch.attentionMask, length),
      labels: rows(batch.labels, length),
      answerMask: rows(batch.answerMask, length),
      pixelValues: rows(batch.pixelValues, pixels),
      imageFlags: rows(batch.imageFlags, 1),
    };
  });
}
