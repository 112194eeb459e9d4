import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { loadDistillConfig, loadTrainTeacherConfig, presets } from '../../lib/train/config.js';
import { temporaryFolder } from './data-fixture.js';

const folder = temporaryFolder();
let files = 0;
function yaml(text: string): string {
  const path = join(folder, `run-${files++}.yaml`);
  writeFileSync(path, text);
  return path;
}

test("the defaults are the paper's recipe", async (t) => {
  const { stages, run, preset } = await loadDistillConfig();
  t.is(preset, 'paper');
  t.deepEqual(run, [1, 2, 3]);
  t.deepEqual([stages.stage1.lr, stages.stage2.lr, stages.stage3.lr], [1e-3, 5e-4, 5e-5]);
  t.deepEqual([stages.stage1.batchSize, stages.stage2.batchSize, stages.stage3.batchSize], [128, 128, 64]);
  for (const stage of Object.values(stages)) {
    t.is(stage.steps, 20_000);
    t.is(stage.clip, 5);
    t.is(stage.weightDecay, 0.05);
    t.deepEqual(stage.betas, [0.9, 0.999]);
    t.deepEqual([stage.warmup, stage.decay], [0.1, 0.1]);
  }
});

test('the reference preset differs where the reference leaves the paper', (t) => {
  const { stage1, stage2, stage3 } = presets.reference;
  t.deepEqual([stage1.clip, stage2.clip, stage3.clip], [2, 2, 2]);
  t.is(stage2.decay, 0);
  t.deepEqual([stage3.positions, stage3.reduction], ['all', 'batch']);
  t.true(stage3.frozen.includes('dt_bias') && stage3.frozen.includes('A_log_bias'));
});

test('a file changes a preset, overrides change both', async (t) => {
  const path = yaml('preset: emoji\nstudent: [0, 4]\nstages:\n  stage3: { lr: 1.0e-4 }\n');
  const { stages, student } = await loadDistillConfig(path);
  t.deepEqual(student, [0, 4]);
  t.is(stages.stage3.lr, 1e-4);
  t.is(stages.stage3.steps, presets.emoji.stage3.steps);
  const forced = await loadDistillConfig(path, { preset: 'reference', student: 'linear', steps: 7, seed: undefined });
  t.deepEqual([forced.stages.stage1.clip, forced.stages.stage2.steps, forced.student, forced.seed], [2, 7, 'linear', 0]);
  await t.throwsAsync(loadDistillConfig(undefined, { run: [3, 1] }), { code: 'ERR_CONFIG', message: /stage 1 follows stage 3/ });
});

const wrong = test.macro(async (t, load: (path: string) => Promise<unknown>, text: string, place: string, message: RegExp) => {
  const path = yaml(text);
  const error = await t.throwsAsync(load(path), { code: 'ERR_CONFIG' });
  t.true(error!.message.startsWith(`${path}:${place}: `), error!.message);
  t.regex(error!.message, message);
});

test(
  'an unknown key is named with line, column and the nearest known one',
  wrong,
  loadTrainTeacherConfig,
  'seed: 1\noptim:\n  learning_rate: 1\n  stepz: 5\n',
  '3:3',
  /optim\.learning_rate: unknown key[^]*:4:3: optim\.stepz: unknown key; did you mean "steps"/,
);
test('a wrong type', wrong, loadTrainTeacherConfig, 'optim:\n  steps: many\n', '2:3', /optim\.steps: .*number/);
test('a number out of range', wrong, loadDistillConfig, 'stages:\n  stage1:\n    lr: -1\n', '3:5', /stages\.stage1\.lr/);
test(
  'an average that takes nothing in',
  wrong,
  loadDistillConfig,
  'stages:\n  stage3:\n    betas: [0.9, 1]\n',
  '3:18',
  /stages\.stage3\.betas\[1\]: .*<1/,
);
test('an unknown preset', wrong, loadDistillConfig, 'preset: papre\n', '1:1', /preset: .*"paper"/);
test(
  'phases that are longer than the run',
  wrong,
  loadDistillConfig,
  'stages:\n  stage2: { warmup: 0.7, decay: 0.6 }\n',
  '2:26',
  /stages\.stage2\.decay: warmup 0\.7 and decay 0\.6/,
);
test(
  'an accumulation that does not divide the batch',
  wrong,
  loadTrainTeacherConfig,
  'optim: { batchSize: 10, accumulate: 4 }\n',
  '1:25',
  /optim\.accumulate: 4 does not divide the batchSize 10/,
);
test(
  'settings of a stage that does not run',
  wrong,
  loadDistillConfig,
  'run: [1, 3]\nstages:\n  stage2: { lr: 1 }\n',
  '3:3',
  /stages\.stage2: settings for a stage that run: \[1, 3\] leaves out/,
);
test(
  'heads that do not divide',
  wrong,
  loadTrainTeacherConfig,
  'model:\n  hiddenSize: 100\n  heads: 6\n',
  '3:3',
  /model\.heads: 6 does not divide the hiddenSize 100/,
);
test(
  'pictures that are no whole patches',
  wrong,
  loadTrainTeacherConfig,
  'model:\n  patchSize: 24\n',
  '2:3',
  /model\.patchSize: the imageSize 64 is no multiple/,
);
test('a layer twice', wrong, loadDistillConfig, 'student: [0, 4, 0]\n', '1:1', /student: \[0, 4, 0\] names a layer twice/);
test(
  'seeding where nothing is seeded',
  wrong,
  loadDistillConfig,
  'from: runs/a/stage2\nseeding: { mimicInit: false }\n',
  '2:1',
  /seeding: nothing is seeded in a run that begins with the student in runs\/a\/stage2/,
);
test('no kind of question', wrong, loadDistillConfig, 'data:\n  kinds: { name: 0 }\n', '2:3', /data\.kinds: all shares are 0/);
