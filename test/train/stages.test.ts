import { join } from 'node:path';
import test from 'ava';
import { rawState } from '../../lib/models/load.js';
import { seedStudent, withAttentionLayers } from '../../lib/models/seed.js';
import type { VisionLanguageModel } from '../../lib/models/model.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import { scope } from '../../lib/tensor/scope.js';
import { sync } from '../../lib/tensor/tensor.js';
import { EmojiBatches } from '../../lib/train/data/emoji/index.js';
import { evaluate } from '../../lib/train/evaluate.js';
import { split, train } from '../../lib/train/loop.js';
import { MetricsFile } from '../../lib/train/metrics.js';
import { AdamW } from '../../lib/train/optimizer.js';
import { silentProgress } from '../../lib/train/progress.js';
import { layerObjective } from '../../lib/train/stages/layers.js';
import { runStage } from '../../lib/train/stages/stage.js';
import { answerObjective } from '../../lib/train/teacher.js';
import type { EmojiTask } from '../../lib/train/task.js';
import { trainableIn, type Stage } from '../../lib/train/trainable.js';
import { readJsonlAll } from '../../lib/io/jsonl.js';
import { temporaryFolder } from './data-fixture.js';
import { loadTiny, tinyDistill, tinyModel } from './tiny.js';

let task: EmojiTask;
test.before(async () => {
  task = await loadTiny();
});
// Tests that count tensors must not run beside others.
const counted = (title: string, body: (t: import('ava').ExecutionContext) => Promise<void>): void =>
  test.serial(title, async (t) => {
    const { tensors } = memoryStats();
    await body(t);
    t.is(memoryStats().tensors, tensors, 'live tensors');
  });

const scratch = temporaryFolder();
let files = 0;
const metricsFile = (): MetricsFile => new MetricsFile(join(scratch, `metrics-${files++}.jsonl`), 0);

async function changedNames(model: VisionLanguageModel, during: () => Promise<unknown>): Promise<string[]> {
  const before = await rawState(model);
  await during();
  const after = await rawState(model);
  return [...after].filter(([name, { data }]) => Buffer.compare(data, before.get(name)!.data) !== 0).map(([name]) => name);
}

const introduced = ['dt_bias', 'A_log_bias', 'conv1d.weight', 'conv1d.bias', 'in_proj.weight', 'g_norm.weight', 'g_proj.weight'];
const projections = ['q_proj.weight', 'k_proj.weight', 'v_proj.weight'];
const mixers = ['embedding_model.encoder.0', 'language_model.model.layers.0', 'language_model.model.layers.1'];
const expected = (parts: readonly string[], at = mixers): string[] => at.flatMap((path) => parts.map((part) => `${path}.attention.${part}`)).sort();

counted('each stage changes exactly its parameters, and the teacher stays', async (t) => {
  const teacher = tinyModel(task);
  let student = seedStudent(teacher, { seed: 3 });
  const { stages } = tinyDistill({ steps: 2, warmup: 0, decay: 0 });
  const run = (stage: Stage) => async (): Promise<void> => {
    using metrics = metricsFile();
    await runStage({
      stage,
      teacher,
      student,
      stages,
      task,
      seed: 1,
      metrics,
      progress: silentProgress,
      checkpoint: { every: 0, save: async () => {} },
    });
  };
  const teacherChanges = await changedNames(teacher, async () => {
    t.deepEqual((await changedNames(student, run(1))).sort(), expected(introduced));
    t.deepEqual((await changedNames(student, run(2))).sort(), expected([...introduced, ...projections]));
    const hybrid = withAttentionLayers(student, teacher, [1]);
    student.dispose();
    student = hybrid;
    t.deepEqual((await changedNames(student, run(3))).sort(), expected([...introduced, ...projections], [mixers[0]!, mixers[2]!]));
  });
  t.deepEqual(teacherChanges, []);
  student.dispose();
  teacher.dispose();
});

counted('frozen tensors take no gradient, no optimizer and no master memory', async (t) => {
  const teacher = tinyModel(task, 'bf16');
  const student = seedStudent(teacher, { seed: 3 });
  const bytes = async (): Promise<number> => {
    await sync(); // memory comes when the op that writes it runs, not when it is called
    return memoryStats().devices['cpu']!.bytes;
  };
  const batch = new EmojiBatches(task.batches({ batchSize: 4, seed: 0 })).batch(0);
  for (const stage of [1, 2] as const) {
    const before = await bytes();
    const parameters = student.setTrainable(trainableIn(stage, []));
    const size = parameters.reduce((sum, p) => sum + p.size, 0);
    // Masters of matrices; those that are f32 anyway need none. Storages may be rounded up.
    const copies = (await bytes()) - before;
    t.true(copies <= 6 * size + 4096 * parameters.length, `${copies} bytes of masters for ${size} trained numbers`);
    const optimizer = new AdamW(parameters, {});
    t.true((await bytes()) - before - copies <= 8 * size + 128 * 2 * parameters.length);
    const objective = layerObjective(teacher, student, { factor: 1000 });
    const { loss, gradients } = scope(() => objective.gradients(objective.inputs(batch)));
    t.deepEqual(new Set(gradients.keys()), new Set(parameters));
    await sync();
    t.is(
      [...gradients.values()].reduce((sum, g) => sum + g.size, 0),
      size,
    );
    t.true(student.parameters().every((p) => p.value.requiresGrad === parameters.includes(p)));
    loss.dispose();
    for (const g of gradients.values()) g.dispose();
    optimizer.dispose();
  }
  student.dispose();
  teacher.dispose();
});

counted('two halves of a batch give the update of the whole', async (t) => {
  const results = new Map<number, { weights: Float32Array[]; losses: number[]; norms: number[] }>();
  for (const accumulate of [1, 2]) {
    const model = tinyModel(task);
    const parameters = model.setTrainable(() => true);
    // A large eps: AdamW is linear in small gradients then, and does not blow rounding up to a full step.
    const optimizer = new AdamW(parameters, { eps: 1e-2, clip: 1 });
    const metrics = metricsFile();
    const batches = new EmojiBatches(task.batches({ batchSize: 8, seed: 2 }));
    let step = 0;
    await train({
      stage: 'teacher',
      optimisation: { ...tinyDistill().stages.stage1, steps: 3, warmup: 0, decay: 0, accumulate },
      parameters,
      optimizer,
      source: { next: async () => ({ step, batch: batches.batch(step++) }) },
      objective: answerObjective(model, { labelSmoothing: 0.1 }),
      metrics,
      progress: silentProgress,
      checkpoint: { every: 0, save: async () => {} },
    });
    const records = (await readJsonlAll(metrics.path)).values as { loss: number; gradNorm: number }[];
    results.set(accumulate, {
      weights: await Promise.all(parameters.map((p) => p.master.toFloat32())),
      losses: records.map(({ loss }) => loss),
      norms: records.map(({ gradNorm }) => gradNorm),
    });
    metrics.close();
    optimizer.dispose();
    model.dispose();
  }
  const [one, two] = [results.get(1)!, results.get(2)!];
  one.losses.forEach((loss, i) => t.true(Math.abs(two.losses[i]! - loss) < 1e-4 * loss, `loss ${loss} against ${two.losses[i]}`));
  one.norms.forEach((norm, i) => t.true(Math.abs(two.norms[i]! - norm) < 1e-3 * norm, `norm ${norm} against ${two.norms[i]}`));
  one.weights.forEach((list, p) =>
    list.forEach((w, i) => Math.abs(w - two.weights[p]![i]!) > 1e-5 && t.fail(`parameter ${p}[${i}]: ${w} against ${two.weights[p]![i]}`)),
  );
});

counted('a loss that is no number stops the run and says where', async (t) => {
  const model = tinyModel(task);
  const parameters = model.setTrainable(() => true);
  const optimizer = new AdamW(parameters, {});
  const metrics = metricsFile();
  const batches = new EmojiBatches(task.batches({ batchSize: 4, seed: 2 }));
  let step = 0;
  const saved: number[] = [];
  const diverged = train({
    stage: 'teacher',
    optimisation: { ...tinyDistill().stages.stage1, steps: 9, warmup: 0, lr: 1e30 },
    parameters,
    optimizer,
    source: { next: async () => ({ step, batch: batches.batch(step++) }) },
    objective: answerObjective(model, { labelSmoothing: 0 }),
    metrics,
    progress: silentProgress,
    checkpoint: { every: 1, save: async (done) => void saved.push(done) },
  });
  await t.throwsAsync(diverged, { message: /teacher diverged: at update [2-4] the loss is .*lower the learning rate/ });
  t.true(saved.length >= 1 && saved.length <= 3);
  metrics.close();
  optimizer.dispose();
  model.dispose();
});

counted('greedy answers are scored; cut batches keep their rows', async (t) => {
  const model = tinyModel(task);
  const { name, group, yesno, answers } = await evaluate(model, task, task.test, { batchSize: 7 });
  t.is(name!.total, task.test.name.length);
  t.is(group!.total, task.test.group.length);
  t.is(yesno!.total, task.test.yesno.length);
  t.true(answers.name!.every((words) => words.length <= task.longestAnswer));
  const again = await evaluate(model, task, task.test, { kinds: ['name'], batchSize: 64 });
  t.deepEqual(again.answers.name, answers.name);
  model.dispose();

  const batch = new EmojiBatches(task.batches({ batchSize: 6, seed: 0 })).batch(1);
  const parts = split(batch, 3);
  t.deepEqual(
    parts.flatMap((p) => [...p.inputIds]),
    [...batch.inputIds],
  );
  t.deepEqual(
    parts.flatMap((p) => [...p.pixelValues]),
    [...batch.pixelValues],
  );
  t.throws(() => split(batch, 4), { code: 'ERR_ARGUMENT' });
});
