import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { distillSchema, trainTeacherSchema, type DistillConfig, type DistillOverrides, type TrainTeacherConfig } from '../../lib/train/config.js';
import { loadEmojiTask, type EmojiTask, type TaskOptions } from '../../lib/train/task.js';
import { teacherConfig } from '../../lib/train/teacher.js';
import { VisionLanguageModel } from '../../lib/models/model.js';
import type { ComputeDtype } from '../../lib/nn/parameter.js';
import { Random } from '../../lib/tensor/random.js';

/** Three names of each of eight groups (a group of one would have no wrong answer), drawn once for all tests. */
const names = new Set([0, 1, 2, 3, 4, 23, 6, 7, 8, 11, 44, 49, 12, 13, 18, 16, 33, 37, 22, 38, 58, 35, 36, 41]);
export const tinyTask: TaskOptions = { keep: (index) => names.has(index) };
const data = { validation: 8, cacheDir: join(tmpdir(), 'mmmamba-tiny-emoji') };
const model = { embeddingLayers: 1, languageLayers: 2, hiddenSize: 32, heads: 4, kvHeads: 2, mlpSize: 48, imageSize: 32, patchSize: 8 };
const every = { evaluation: { every: 3, batchSize: 16 }, checkpoints: { every: 2 } };

export function tinyTeacher(optim: Partial<TrainTeacherConfig['optim']> = {}, more: { dtype?: 'f32' | 'bf16' } = {}): TrainTeacherConfig {
  return trainTeacherSchema.parse({ model, data, optim: { steps: 7, batchSize: 8, lr: 3e-3, ...optim }, ...every, ...more });
}

export function tinyDistill(stage: object = {}, overrides: DistillOverrides = {}, more: { dtype?: 'f32' | 'bf16' } = {}): DistillConfig {
  const small = { steps: 3, batchSize: 8, ...stage };
  const stages = Object.fromEntries((overrides.run ?? [1, 2, 3]).map((n) => [`stage${n}`, small]));
  return distillSchema({ student: [1], ...overrides }).parse({ data, stages, ...every, ...more });
}

export async function loadTiny(): Promise<EmojiTask> {
  return loadEmojiTask(tinyTeacher().data, model, tinyTask);
}
export function tinyModel(task: EmojiTask, dtype: ComputeDtype = 'f32', seed = 1): VisionLanguageModel {
  const config = tinyTeacher();
  return VisionLanguageModel.initialised(teacherConfig(config.model, task, config.data), { device: 'cpu', dtype }, new Random(seed));
}
