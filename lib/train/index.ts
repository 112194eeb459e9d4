/**
 * The training recipe: settings, the three stages, data, metrics and report.
 * @module mmmamba/train
 */
export { parseModelConfig, readModelConfig } from '../models/config-file.js';
export {
  distillSchema,
  loadDistillConfig,
  loadTrainTeacherConfig,
  presets,
  trainTeacherSchema,
  type DistillConfig,
  type Optimisation,
  type Stages,
  type TrainTeacherConfig,
} from './config.js';
export { distill, type DistillResult } from './distill.js';
export { runDemo, type DemoOptions, type DemoResult } from './demo.js';
export { answer, evaluate, type EvaluateOptions, type Scores } from './evaluate.js';
export { measureContext, type ContextOptions, type ContextPoint } from './longcontext.js';
export { train, type LoopOptions, type Objective } from './loop.js';
export { MetricsFile } from './metrics.js';
export { AdamW, type AdamWOptions } from './optimizer.js';
export { createProgress, silentProgress, type Progress } from './progress.js';
export { reportHtml, type ReportData } from './report/index.js';
export type { RunOptions } from './run.js';
export { wsd, wsdOfRun, type Schedule } from './schedule.js';
export { layerObjective } from './stages/layers.js';
export { logitObjective } from './stages/logits.js';
export { runStage, type StageOptions } from './stages/stage.js';
export { loadEmojiTask, type EmojiTask } from './task.js';
export { loadTaskModel } from './task-model.js';
export { answerObjective, teacherConfig, trainTeacher, type TeacherResult } from './teacher.js';
export { trainableIn, type Stage } from './trainable.js';
