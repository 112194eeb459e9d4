import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { seedStudent } from '../lib/models/seed.js';
import type { VisionLanguageModel } from '../lib/models/model.js';
import { backends, resolveDevice } from '../lib/native/backends.js';
import { MmError } from '../lib/native/errors.js';
import { packageRoot } from '../lib/native/loader.js';
import { memoryStats } from '../lib/tensor/memory.js';
import { distillSchema, trainTeacherSchema, type Optimisation } from '../lib/train/config.js';
import { EmojiLoader, loaderWorkers } from '../lib/train/data/emoji/index.js';
import { train, type Objective } from '../lib/train/loop.js';
import { MetricsFile } from '../lib/train/metrics.js';
import { AdamW } from '../lib/train/optimizer.js';
import { silentProgress } from '../lib/train/progress.js';
import { logitObjective } from '../lib/train/stages/logits.js';
import { loadTaskModel } from '../lib/train/task-model.js';
import { answerObjective } from '../lib/train/teacher.js';
import { trainableIn } from '../lib/train/trainable.js';
import { machine } from './machine.js';
import { median } from './measure.js';

/*
 * Training as a whole: milliseconds of a step, against PyTorch in turns where a Python with it is named; how late a timer of
 * the same process is meanwhile; and whether memory grows.
 */

const help = `node dist/bench/training.js [options]

  --model teacher|student  what is trained (student: stage 3 of mmMamba-linear); default teacher
  --device NAME            default cpu
  --dtype f32|bf16         default bf16
  --rounds N               rounds of --steps steps; default 5
  --steps N                default 20
  --peer PYTHON            a python with torch: its steps are timed in turns with ours
  --long N                 instead: N steps, then growth of resident memory since step 100, live tensors and, on a GPU,
                           allocations since step 10
  --json FILE
`;

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'teacher' },
    device: { type: 'string', default: 'cpu' },
    dtype: { type: 'string', default: 'bf16' },
    rounds: { type: 'string', default: '5' },
    steps: { type: 'string', default: '20' },
    peer: { type: 'string' },
    long: { type: 'string' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});

interface Subject {
  model: VisionLanguageModel;
  objective: Objective;
  optimisation: Optimisation;
}

function subject(kind: string, teacher: VisionLanguageModel): Subject {
  if (kind === 'teacher') {
    teacher.setTrainable(() => true);
    return { model: teacher, objective: answerObjective(teacher, { labelSmoothing: 0.05 }), optimisation: trainTeacherSchema.parse({}).optim };
  }
  const { stages } = distillSchema().parse({ preset: 'emoji', stages: { stage3: { positions: 'answer' } } });
  const student = seedStudent(teacher, { seed: 0 });
  student.setTrainable(trainableIn(3, stages.stage3.frozen));
  return { model: student, objective: logitObjective(teacher, student, stages.stage3), optimisation: stages.stage3 };
}

/** A python that answers with the milliseconds of each of as many steps as it is told. */
function peerOf(python: string, kind: string, about: { length: number; labels: number; vocabulary: number; threads: number; batch: number; device: string }) {
  const script = join(packageRoot, 'bench', 'peers', 'torch_train.py');
  const child = spawn(python, [script, kind, String(about.threads), String(about.batch), String(about.length), String(about.vocabulary), String(about.labels), about.device], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async steps(count: number): Promise<number[]> {
      child.stdin.write(`${count}\n`);
      const { value, done } = await lines.next();
      if (done) throw new Error(`${python} ended without an answer`);
      return JSON.parse(value as string) as number[];
    },
    close: () => child.stdin.end(),
  };
}

if (values.help) {
  process.stdout.write(help);
  process.exit(0);
}
const device = resolveDevice(values.device);
const { dtype } = values;
if (dtype !== 'f32' && dtype !== 'bf16') throw new MmError('ERR_ARGUMENT', `--dtype must be f32 or bf16; got '${dtype}'`);
const about = machine(device);
const { model: teacher, task } = await loadTaskModel(join(packageRoot, 'models', 'emoji-teacher'), { device, dtype, progress: silentProgress });
const { model, objective, optimisation } = subject(values.model, teacher);
const parameters = model.parameters().filter((p) => p.trainable);
const optimizer = new AdamW(parameters, optimisation);
const source = new EmojiLoader(task.batches({ batchSize: 128, seed: 1 }), { workers: loaderWorkers(device) });
const scratch = mkdtempSync(join(tmpdir(), 'mmmamba-bench-'));
process.on('exit', () => rmSync(scratch, { recursive: true }));
using metrics = new MetricsFile(join(scratch, 'metrics.jsonl'), 0);

let done = 0;
let shape = { length: 0, labels: 0 };
const times: number[] = [];
async function steps(count: number, each: (ms: number, step: number) => void = () => undefined): Promise<void> {
  let last = performance.now();
  await train({
    stage: 'bench',
    optimisation: { ...optimisation, steps: done + count },
    parameters,
    optimizer,
    firstStep: done,
    source: {
      next: async () => {
        const loaded = await source.next();
        shape = { length: loaded.batch.length, labels: Math.ceil(loaded.batch.answerMask.reduce((a, b) => a + b, 0) / loaded.batch.size) };
        return loaded;
      },
    },
    objective,
    metrics,
    progress: {
      ...silentProgress,
      update: (step) => {
        const now = performance.now();
        each(now - last, step);
        last = now;
      },
    },
    checkpoint: { every: 0, save: () => Promise.resolve() },
  });
  done += count;
}

/** Calls of the device's allocator so far; null where it does not count them. */
function allocations(): number | null {
  const [name, index = '0'] = device.split(':');
  const counted = backends().find((b) => b.name === name)?.devices[Number(index)]?.['allocations'];
  return typeof counted === 'number' ? counted : null;
}

const result: Record<string, unknown> = { machine: about, model: values.model, dtype, batch: 128 };
if (values.long) {
  const count = Number(values.long);
  const seen = { tensors: 0, rss: 0, allocations: null as number | null };
  await steps(count, (_, step) => {
    if (step === 10) seen.allocations = allocations();
    if (step === 20) seen.tensors = memoryStats().tensors;
    if (step === 100) seen.rss = process.memoryUsage.rss();
    if (step !== count) return;
    const rss = process.memoryUsage.rss();
    Object.assign(result, { steps: count, rssAtStep100: seen.rss, rssAtEnd: rss, growth: rss / seen.rss - 1, tensorsGained: memoryStats().tensors - seen.tensors });
    if (seen.allocations !== null) Object.assign(result, { allocationsAtStep10: seen.allocations, allocationsAtEnd: allocations() });
  });
} else {
  await steps(20); // compiles primitives, fills caches
  const peer = values.peer ? peerOf(values.peer, values.model, { ...shape, vocabulary: task.tokenizer.vocabSize, threads: about.cores, batch: 128, device }) : null;
  await peer?.steps(10);
  const theirs: number[] = [];
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const perRound = Number(values.steps);
  let spent = 0;
  for (let round = 0; round < Number(values.rounds); round++) {
    delay.enable();
    const start = performance.now();
    await steps(perRound, (ms) => times.push(ms));
    spent += performance.now() - start;
    delay.disable();
    if (peer) theirs.push(...(await peer.steps(perRound)));
  }
  peer?.close();
  Object.assign(result, {
    ...shape,
    msPerStep: median(times),
    // all steps of all rounds, each round's start and end included
    stepsPerSecond: (1000 * times.length) / spent,
    // the histogram holds the whole interval of the 1 ms timer
    timerLateMs: { p50: delay.percentile(50) / 1e6 - 1, p99: delay.percentile(99) / 1e6 - 1 },
    ...(peer && { torchMsPerStep: median(theirs), ratio: median(times) / median(theirs) }),
  });
}
await source.close();
optimizer.dispose();
if (model !== teacher) model.dispose();
teacher.dispose();
process.stdout.write(`${JSON.stringify(result, null, 1)}\n`);
if (values.json) writeFileSync(values.json, `${JSON.stringify(result, null, 1)}\n`);
