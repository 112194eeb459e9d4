import { join } from 'node:path';
import { loadTokenizer } from '../io/tokenizer/load.js';
import { blockTypes, checkLayers, type ModelConfig } from '../models/config.js';
import { loadModel, placementOf } from '../models/load.js';
import type { VisionLanguageModel } from '../models/model.js';
import { seedStudent, withAttentionLayers } from '../models/seed.js';
import { MmError } from '../native/errors.js';
import type { Placement } from '../nn/parameter.js';
import { digestOf, loadMoments, openRun, saveCheckpoint, saveModelFolder, type TrainingState } from './checkpoint.js';
import type { DistillConfig } from './config.js';
import { evaluate, type Scores } from './evaluate.js';
import { MetricsFile } from './metrics.js';
import type { AdamW } from './optimizer.js';
import type { RunOptions } from './run.js';
import { runStage, trainableOf } from './stages/stage.js';
import { imageShapeOf, loadEmojiTask, type TaskOptions } from './task.js';
import { validate } from './teacher.js';
import type { Stage } from './trainable.js';

/** Layers that stay attention, numbered over both stacks. 'hybrid': the first of every four, as in the paper. */
export function attentionLayersOf(student: DistillConfig['student'], config: ModelConfig): number[] {
  if (student === 'linear') return [];
  if (student === 'hybrid') return blockTypes(config).flatMap((_, i) => (i % 4 === 0 ? [i] : []));
  checkLayers(config, student, 'student');
  return [...student].sort((a, b) => a - b);
}

export interface DistillResult {
  /** the finished student's folder */
  folder: string;
  /** on the unseen artist */
  scores: Scores;
}

const titleOf = (stage: Stage): string => `stage ${stage}`;

/**
 * Distils a teacher into mmMamba, beginning with a seeded student or with `from`. In `out`: metrics.jsonl, last/ (checkpoint), stage1/, stage2/ and stage3/ (the student
 * after each stage that ran), best/ (of stage 3, by exact names on the validation drawings) and model/, the last stage's
 * student with the chosen attention layers.
 * @throws MmError ERR_ABORTED when stopped, with a checkpoint in last/
 */
export async function distill(config: DistillConfig, teacherFolder: string, run: RunOptions, taskOptions: TaskOptions = {}): Promise<DistillResult> {
  const { out, signal, progress } = run;
  const placement = placementOf({ device: run.device, dtype: config.dtype });
  let digest = ''; // not before the folder is found good: it takes reading all of the teacher
  const state = await openRun(out, 'distill', run.resume ?? false, config, async () => (digest = await digestOf(teacherFolder)));
  digest ||= await digestOf(teacherFolder);
  const last = join(out, 'last');
  using teacher = await loadModel(teacherFolder, placement);
  if (teacher.blockTypes.includes('mamba2'))
    throw new MmError('ERR_ARGUMENT', `${teacherFolder} is a student itself; a teacher has attention in every layer`);
  const layers = attentionLayersOf(config.student, teacher.config);
  const tokenizer = await loadTokenizer(teacherFolder);
  const task = await loadEmojiTask(config.data, imageShapeOf(teacher.config), { tokenizer, progress, signal, ...taskOptions });
  using metrics = new MetricsFile(join(out, 'metrics.jsonl'), state?.metricsBytes ?? 0);

  const at = state === null ? -1 : config.run.findIndex((stage) => titleOf(stage) === state.stage);
  let student = await start(state, config, teacher, last, placement);
  try {
    for (const [i, stage] of config.run.entries()) {
      if (i < at) continue;
      const settings = config.stages[`stage${stage}`];
      const resumed = i === at ? state : null;
      if (stage === 3 && !resumed) student = replace(student, withAttentionLayers(student, teacher, layers));
      const save = (optimizer: AdamW, step: number, best: TrainingState['best']): Promise<void> =>
        saveCheckpoint(last, student, tokenizer, optimizer, {
          kind: 'distill',
          stage: titleOf(stage),
          step,
          best,
          metricsBytes: metrics.flush(),
          config,
          teacher: digest,
        });
      if (!resumed || resumed.step < settings.steps)
        await runStage({
          stage,
          teacher,
          student,
          stages: config.stages,
          task,
          seed: config.seed,
          from: resumed
            ? { step: resumed.step, best: resumed.best, load: (optimizer) => loadMoments(last, optimizer, resumed.step, placement.device) }
            : undefined,
          metrics,
          progress,
          signal,
          evaluation: {
            every: config.evaluation.every,
            run: async () => {
              using shown = stage === 3 ? null : withAttentionLayers(student, teacher, layers, () => false);
              return await validate(shown ?? student, task, config.evaluation.batchSize);
            },
            saveBest: stage === 3 ? () => saveModelFolder(join(out, 'best'), student, tokenizer) : undefined,
          },
          checkpoint: { every: config.checkpoints.every, save },
        });
      await saveModelFolder(join(out, `stage${stage}`), student, tokenizer);
    }
    using chosen = withAttentionLayers(student, teacher, layers);
    const { answers: _, ...scores } = await evaluate(chosen, task, task.test, { progress, title: `unseen artist: ${config.data.heldOut}`, signal });
    const folder = join(out, 'model');
    await saveModelFolder(folder, chosen, tokenizer, { files: [['training.json', `${JSON.stringify({ config, scores }, null, 1)}\n`]] });
    return { folder, scores };
  } finally {
    student.dispose();
  }
}

/** The student to begin or to go on with. @throws MmError ERR_ARGUMENT for a `from` that is no student of this teacher's */
async function start(
  state: TrainingState | null,
  config: DistillConfig,
  teacher: VisionLanguageModel,
  last: string,
  placement: Placement,
): Promise<VisionLanguageModel> {
  const load = (folder: string, stage: Stage): Promise<VisionLanguageModel> =>
    loadModel(folder, { ...placement, trainable: trainableOf(stage, config.stages) });
  if (state) return load(last, Number(state.stage.at(-1)) as Stage);
  if (config.from === undefined) return seedStudent(teacher, { seed: config.seed, ...config.seeding });
  const student = await load(config.from, config.run[0]!);
  try {
    checkStudent(student, teacher, config);
  } catch (error) {
    student.dispose();
    throw error;
  }
  return student;
}

function checkStudent(student: VisionLanguageModel, teacher: VisionLanguageModel, { from, run }: DistillConfig): void {
  const attention = student.blockTypes.flatMap((type, i) => (type === 'mha' ? [i] : []));
  if (attention.length === student.blockTypes.length) throw new MmError('ERR_ARGUMENT', `${from} has no Mamba-2 layer; a run begins with a student`);
  if (attention.length > 0 && run[0] !== 3)
    throw new MmError(
      'ERR_ARGUMENT',
      `layer ${attention.join(', ')} of ${from} is softmax attention; stage ${run[0]} trains the mixers of all layers: begin with a student of mixers only`,
    );
  if (student.config.mixer.layout === 'fused')
    throw new MmError('ERR_ARGUMENT', `${from} has the released, fused layout; a run begins with separate projections, as runs write them`);
  const known = teacher.namedParameters();
  for (const { name, shape } of student.parameters()) {
    const other = known.get(name);
    if (other && other.shape.join() !== shape.join())
      throw new MmError('ERR_ARGUMENT', `${from} is no student of this teacher: ${name} is (${shape.join(', ')}), the teacher's (${other.shape.join(', ')})`);
  }
  if (student.blockTypes.length !== teacher.blockTypes.length)
    throw new MmError('ERR_ARGUMENT', `${from} is no student of this teacher: it has ${student.blockTypes.length} layers, the teacher ${teacher.blockTypes.length}`);
}

function replace(old: VisionLanguageModel, next: VisionLanguageModel): VisionLanguageModel {
  old.dispose();
  return next;
}
