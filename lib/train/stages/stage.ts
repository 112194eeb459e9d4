import type { VisionLanguageModel } from '../../models/model.js';
import type { MseStage, KlStage, Stages } from '../config.js';
import { EmojiLoader, loaderWorkers } from '../data/emoji/index.js';
import { train, type Best, type LoopOptions } from '../loop.js';
import { AdamW } from '../optimizer.js';
import { dataSeed } from '../run.js';
import type { EmojiTask } from '../task.js';
import { trainableIn, type Stage } from '../trainable.js';
import { layerObjective } from './layers.js';
import { logitObjective } from './logits.js';

export interface StageOptions extends Pick<LoopOptions, 'metrics' | 'progress' | 'signal' | 'evaluation'> {
  readonly stage: Stage;
  readonly teacher: VisionLanguageModel;
  /** mixers in every layer for stages 1 and 2; its layers' choice made for stage 3 */
  readonly student: VisionLanguageModel;
  readonly stages: Stages;
  readonly task: EmojiTask;
  readonly seed: number;
  /** `stage` of the metrics; default `stage <n>` */
  readonly title?: string;
  /** where to go on; `load` gives the optimizer its moments */
  readonly from?: { step: number; best: Best | null; load(optimizer: AdamW): Promise<void> };
  readonly checkpoint: { readonly every: number; save(optimizer: AdamW, step: number, best: Best | null): Promise<void> };
}

/** Names that a stage trains; all else gets neither gradient nor optimizer memory. */
export function trainableOf(stage: Stage, stages: Stages): (name: string) => boolean {
  return trainableIn(stage, stages.stage3.frozen);
}

/** Runs one of the three stages on a student, in place. Its mixers stay trainable; `setTrainable(() => false)` frees their masters. */
export async function runStage(options: StageOptions): Promise<Best | null> {
  const { stage, teacher, student, stages, task, seed, from, checkpoint, metrics, progress, signal, evaluation } = options;
  const settings: MseStage | KlStage = stages[`stage${stage}`];
  const parameters = student.setTrainable(trainableOf(stage, stages));
  using optimizer = new AdamW(parameters, settings);
  await from?.load(optimizer);
  const firstStep = from?.step ?? 0;
  await using source = new EmojiLoader(task.batches({ batchSize: settings.batchSize, seed: dataSeed(seed, stage) }), {
    firstStep,
    workers: loaderWorkers(student.placement.device),
  });
  return await train({
    stage: options.title ?? `stage ${stage}`,
    optimisation: settings,
    parameters,
    optimizer,
    firstStep,
    best: from?.best ?? null,
    source,
    objective: stage === 3 ? logitObjective(teacher, student, stages.stage3) : layerObjective(teacher, student, stages[`stage${stage}`]),
    metrics,
    progress,
    signal,
    evaluation,
    checkpoint: { every: checkpoint.every, save: (step, best) => checkpoint.save(optimizer, step, best) },
  });
}
