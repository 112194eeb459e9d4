import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { argmax, add, crossEntropy, matmul } from '../../lib/ops/index.js';
import { Decoder } from '../../lib/models/decoder.js';
import { loadModel } from '../../lib/models/load.js';
import type { VisionLanguageModel } from '../../lib/models/model.js';
import { seedStudent } from '../../lib/models/seed.js';
import { backends } from '../../lib/native/backends.js';
import { MmError } from '../../lib/native/errors.js';
import { packageRoot } from '../../lib/native/loader.js';
import { Captured } from '../../lib/nn/captured.js';
import { Graph } from '../../lib/tensor/graph.js';
import { Random } from '../../lib/tensor/random.js';
import { scope, Scope, untracked } from '../../lib/tensor/scope.js';
import { sync, Tensor } from '../../lib/tensor/tensor.js';
import { distillSchema, trainTeacherSchema } from '../../lib/train/config.js';
import { train, type Objective } from '../../lib/train/loop.js';
import type { MetricsFile } from '../../lib/train/metrics.js';
import { AdamW } from '../../lib/train/optimizer.js';
import { silentProgress } from '../../lib/train/progress.js';
import { layerObjective } from '../../lib/train/stages/layers.js';
import { logitObjective } from '../../lib/train/stages/logits.js';
import { answerObjective, type AnswerInputs } from '../../lib/train/teacher.js';
import { trainableIn } from '../../lib/train/trainable.js';
import type { Batch } from '../../lib/train/data/emoji/index.js';

/** What holds of a device beyond its ops: graphs, memory, several devices. A check throws what is wrong. */
export interface Check {
  name: string;
  /** what the device must have; the check does not count where it lacks it */
  needs?: 'graphs' | 'memory of its own' | 'two of its kind';
  run(device: string): Promise<void>;
}

const teacherFolder = join(packageRoot, 'models', 'emoji-teacher');
const open = (device: string): Promise<VisionLanguageModel> => loadModel(teacherFolder, { device, dtype: 'bf16' });

/** Rows as the emoji task makes them, with random pixels and answers. */
function batch(model: VisionLanguageModel, seed: number, size = 16): Batch {
  const { config } = model;
  const length = 32;
  const random = new Random(seed);
  const side = 64;
  const image = [1, ...new Array<number>(16).fill(config.imageToken), 2];
  const words = [...Array(config.textVocabulary).keys()].filter((id) => id > 2 && id !== config.imageToken);
  const word = (): number => words[Math.floor(random.uniform(0, words.length))]!;
  const rows = Array.from({ length: size }, () => [...image, ...Array.from({ length: length - image.length }, word)]);
  const answers = rows.map(() => 2 + Math.floor(random.uniform(0, 2)));
  const at = (fn: (row: number, t: number) => number): Int32Array<ArrayBuffer> =>
    Int32Array.from({ length: size * length }, (_, i) => fn(Math.floor(i / length), i % length));
  const counts = (row: number, t: number): boolean => t >= 24 && t < 24 + answers[row]!;
  return {
    size,
    length,
    inputIds: at((row, t) => rows[row]![t]!),
    positionIds: at((_, t) => t),
    attentionMask: new Uint8Array(size * length).fill(1),
    labels: at((row, t) => (counts(row, t) ? rows[row]![t]! : -100)),
    answerMask: Uint8Array.from(at((row, t) => Number(counts(row, t)))),
    pixelValues: random.fill(size * 3 * side * side, (r) => r.uniform(-2, 2)) as Float32Array<ArrayBuffer>,
    imageFlags: new Int32Array(size).fill(1),
  };
}

type Kind = 'teacher' | 1 | 2 | 3;
const kinds: readonly Kind[] = ['teacher', 1, 2, 3];

interface Subject {
  objective: Objective;
  trained: VisionLanguageModel;
  dispose(): void;
}
async function subject(device: string, kind: Kind): Promise<Subject> {
  const teacher = await open(device);
  if (kind === 'teacher') {
    teacher.setTrainable(() => true);
    return { objective: answerObjective(teacher, { labelSmoothing: 0.05 }), trained: teacher, dispose: () => teacher.dispose() };
  }
  const { stages } = distillSchema().parse({ preset: 'emoji', stages: { stage3: { positions: 'answer' } } });
  const student = seedStudent(teacher, { seed: 0 });
  student.setTrainable(trainableIn(kind, stages.stage3.frozen));
  const objective = kind === 3 ? logitObjective(teacher, student, stages.stage3) : layerObjective(teacher, student, { factor: 1000 });
  const dispose = (): void => {
    student.dispose();
    teacher.dispose();
  };
  return { objective, trained: student, dispose };
}

async function bits(tensors: readonly Tensor[]): Promise<Uint8Array[]> {
  const all = await Promise.all(tensors.map((t) => t.data()));
  return all.map((a) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength));
}
function same(actual: readonly Uint8Array[], expected: readonly Uint8Array[], what: string): void {
  assert.equal(actual.length, expected.length, what);
  actual.forEach((a, i) => assert.ok(Buffer.compare(a, expected[i]!) === 0, `${what}: tensor ${i} of ${actual.length} differs`));
}

async function rejects(action: () => Promise<unknown>, code: string, text: RegExp): Promise<void> {
  const error = await action().then(
    () => null,
    (e: unknown) => e,
  );
  assert.ok(error instanceof MmError, `expected ${code}, got ${String(error)}`);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, text);
}

/** What the driver has left, GiB, as the refusal of a request tells it. */
async function freeGiB(device: string): Promise<number> {
  using _ = Tensor.zeros([2 ** 42], { device });
  const error = await sync(device).then(
    () => null,
    (e: unknown) => e,
  );
  assert.ok(error instanceof MmError);
  return Number(/([\d.]+) GiB of [\d.]+ GiB free/.exec(error.message)![1]);
}

const noMetrics = { write: () => undefined } as unknown as MetricsFile;

/** Bits of all parameters after some updates on random batches. */
async function trained(device: string, kind: Kind, steps: number): Promise<Uint8Array[]> {
  const { objective, trained: model, dispose } = await subject(device, kind);
  try {
    const parameters = model.parameters().filter((p) => p.trainable);
    const optimisation = { ...trainTeacherSchema.parse({}).optim, steps, batchSize: 16, lr: 1e-3 };
    using optimizer = new AdamW(parameters, optimisation);
    let step = 0;
    await train({
      stage: 'check',
      optimisation,
      parameters,
      optimizer,
      source: { next: async () => ({ step, batch: batch(model, step++) }) },
      objective,
      metrics: noMetrics,
      progress: silentProgress,
      checkpoint: { every: 0, save: async () => undefined },
    });
    return await bits(parameters.map((p) => p.master));
  } finally {
    dispose();
  }
}

export const checks: readonly Check[] = [
  ...kinds.map(
    (kind): Check => ({
      name: `${kind === 'teacher' ? kind : `stage ${kind}`}: a recorded pass gives the bits of direct ones`,
      async run(device) {
        const { objective, dispose } = await subject(device, kind);
        try {
          using pass = new Captured(device, (inputs) => objective.gradients(inputs));
          for (let i = 0; i < 5; i++) {
            const rows = batch(await rowsOf(device), i);
            using direct = new Scope();
            const expected = direct.run(() => scope(() => objective.gradients(objective.inputs(rows))));
            using result = await pass.run(() => objective.inputs(rows));
            const list = ({ loss, gradients }: typeof expected): Tensor[] => [loss, ...gradients.values()];
            same(await bits(list(result.value)), await bits(list(expected)), `batch ${i}`);
          }
        } finally {
          dispose();
        }
      },
    }),
  ),
  ...kinds.map(
    (kind): Check => ({
      name: `${kind === 'teacher' ? kind : `stage ${kind}`}: the same seed trains to the same bits`,
      run: async (device) => same(await trained(device, kind, 8), await trained(device, kind, 8), 'parameters after 8 updates'),
    }),
  ),
  ...(['teacher', 'hybrid', 'linear'] as const).map(
    (kind): Check => ({
      name: `${kind}: recorded decoding steps give the bits of direct ones, past the end of a cache`,
      async run(device) {
        using teacher = await open(device);
        using student = kind === 'teacher' ? null : seedStudent(teacher, { seed: 0, ...(kind === 'hybrid' && { attentionLayers: [0, 4] }) });
        const model = student ?? teacher;
        using state = model.state(2);
        using other = state.clone();
        using decoder = new Decoder(model, other);
        let ids = new Int32Array([5, 9]);
        for (let t = 0; t < 140; t++) {
          using direct = untracked(() => scope(() => model.step(ids, state)));
          using recorded = await decoder.step(ids);
          same(await bits([recorded.value]), await bits([direct]), `logits of token ${t}`);
          using next = untracked(() => argmax({ x: direct }));
          ids = Int32Array.from((await next.data()) as Int32Array, (id, row) => (id + t + row) % model.config.textVocabulary);
        }
      },
    }),
  ),
  {
    name: 'what cannot be recorded is said, and work goes on',
    needs: 'graphs',
    async run(device) {
      using a = Tensor.from([1, 2, 3], [3], { device });
      await rejects(() => Graph.capture(device, () => add({ a, b: Tensor.from([1, 2, 3], [3], { device }) })), 'ERR_KERNEL', /upload cannot be captured/);
      let read: Promise<unknown> | undefined;
      const recordRead = (): void => void (read = a.data()).catch(() => undefined);
      (await Graph.capture(device, recordRead)).dispose();
      await rejects(() => read!, 'ERR_KERNEL', /read cannot be captured/);
      await rejects(
        () => Graph.capture(device, () => Promise.resolve(a)),
        'ERR_ARGUMENT',
        /synchronous/,
      );
      using graph = await Graph.capture(device, () => add({ a, b: a }));
      graph.replay();
      assert.deepEqual([...(await graph.result.data())], [2, 4, 6]);
    },
  },
  {
    name: 'out of memory names the request, what is live and what is cached; tensors stay and a smaller run works',
    needs: 'memory of its own',
    async run(device) {
      using model = await open(device);
      model.setTrainable(() => true);
      const objective = answerObjective(model, { labelSmoothing: 0 });
      using held = new Scope();
      const inputs = (rows: Batch): AnswerInputs => held.run(() => scope(() => objective.inputs(rows)));
      const loss = async (rows: AnswerInputs): Promise<number> => {
        using made = new Scope();
        return made.run(() => scope(() => objective.gradients(rows))).loss.item();
      };
      const small = inputs(batch(model, 1, 2));
      const large = inputs(batch(model, 2, 512));
      const before = await loss(small);
      const parameters = await bits(model.parameters().map((p) => p.value));

      await rejects(
        async () => {
          using _ = Tensor.zeros([2 ** 42], { device });
          await sync(device);
        },
        'ERR_OUT_OF_MEMORY',
        /16384\.00 GiB were asked for; .* are live, .* cached, .* of .* free/,
      );
      const ballast: Tensor[] = [];
      try {
        for (let bytes = 2 ** 33; bytes >= 2 ** 24; ) {
          const block = Tensor.zeros([bytes / 4], { device });
          try {
            await sync(device);
            ballast.push(block);
          } catch {
            block.dispose();
            bytes /= 2;
          }
        }
        await rejects(() => loss(large), 'ERR_OUT_OF_MEMORY', /^\w+: (workspace: )?out of memory on cuda:\d+: .* were asked for/);
      } finally {
        ballast.forEach((block) => block.dispose());
      }
      await sync(device);
      same(await bits(model.parameters().map((p) => p.value)), parameters, 'parameters');
      assert.equal(await loss(small), before);
      assert.ok(Number.isFinite(await loss(large)));
    },
  },
  {
    name: 'workers that end leave no memory of the device behind',
    needs: 'memory of its own',
    async run(device) {
      const small = `const { Tensor, sync } = require(${JSON.stringify(packageRoot)});
        for (let n = 64; n <= 65536; n *= 2) Tensor.zeros([n], { device: ${JSON.stringify(device)} }).dispose();
        sync(${JSON.stringify(device)});`;
      const work = async (): Promise<void> => {
        const worker = new Worker(small, { eval: true });
        const [code] = (await once(worker, 'exit')) as [number];
        assert.equal(code, 0);
      };
      await freeGiB(device); // the refusal gives back what this thread's cache has kept
      await work();
      const before = await freeGiB(device);
      for (let i = 0; i < 8; i++) await work();
      const after = await freeGiB(device);
      assert.ok(after > before - 0.25, `${before} GiB were free before 8 workers, ${after} after`);
    },
  },
  {
    name: 'a device that is not there is refused by name',
    needs: 'memory of its own',
    async run(device) {
      const name = `${device.split(':')[0]!}:99`;
      await rejects(async () => Tensor.zeros([1], { device: name }), 'ERR_DEVICE', /99/);
    },
  },
  {
    name: 'two devices: equal bits on both, operands are never mixed, what goes between them goes through the host',
    needs: 'two of its kind',
    async run(device) {
      const family = device.split(':')[0]!;
      const [first, second] = [`${family}:0`, `${family}:1`];
      using a = Tensor.from([1, 2, 3, 4], [2, 2], { device: first });
      using b = Tensor.from((await a.data()) as Float32Array, [2, 2], { device: second });
      using product = matmul({ a: b, b });
      assert.equal(product.device, second);
      assert.deepEqual([...(await product.data())], [7, 10, 15, 22]);
      await rejects(async () => add({ a, b }), 'ERR_DEVICE', /different devices/);
      for (const kind of ['teacher', 3] as const) same(await trained(second, kind, 4), await trained(first, kind, 4), `${kind} on ${second}`);
      // Both at once.
      const [one, two] = await Promise.all([trained(first, 3, 4), trained(second, 3, 4)]);
      same(one!, two!, 'trained at the same time');
    },
  },
  {
    name: 'labels outside of the vocabulary touch no memory and do not lose the device',
    async run(device) {
      using logits = Tensor.from(new Float32Array(8), [2, 4], { device });
      using labels = Tensor.from(Int32Array.of(1, 1_000_000), [2], { device });
      using made = new Scope();
      const { perToken } = made.run(() => crossEntropy({ logits, labels }));
      const [known] = await perToken.toFloat32().catch((error: unknown) => {
        assert.ok(error instanceof MmError && /label/.test(error.message), String(error));
        return [Math.log(4)];
      });
      assert.ok(Math.abs(known! - Math.log(4)) < 1e-6);
      await sync(device);
    },
  },
];

let shape: VisionLanguageModel | undefined;
/** A model for what batches need to know of one. */
async function rowsOf(device: string): Promise<VisionLanguageModel> {
  return (shape ??= await open(device));
}

/** Whether the device has what a check needs. */
export function has(device: string, needs: Check['needs']): boolean {
  const family = device.split(':')[0]!;
  if (needs === undefined) return true;
  if (family === 'cpu') return false;
  return needs !== 'two of its kind' || (backends().find((b) => b.name === family)?.devices.length ?? 0) > 1;
}
