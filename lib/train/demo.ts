import { mkdir, readdir } from 'node:fs/promises';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { writeFileAtomic } from '../io/atomic.js';
import { fileError } from '../io/fail.js';
import { readJsonl } from '../io/jsonl.js';
import { convertLayout, seedStudent, withAttentionLayers } from '../models/seed.js';
import type { VisionLanguageModel } from '../models/model.js';
import { backends, resolveDevice } from '../native/backends.js';
import { MmError } from '../native/errors.js';
import { saveModelFolder } from './checkpoint.js';
import { presets, type Stages } from './config.js';
import { evaluate } from './evaluate.js';
import { measureContext } from './longcontext.js';
import { MetricsFile } from './metrics.js';
import { pictureUri } from './pictures.js';
import { reportHtml, type ModelName, type ReportData } from './report/index.js';
import type { RunOptions } from './run.js';
import { runStage } from './stages/stage.js';
import { spread } from './task.js';
import { loadTaskModel } from './task-model.js';
import { attentionLayersOf } from './distill.js';

export interface DemoOptions extends Omit<RunOptions, 'resume'> {
  /** the teacher that the project ships, or another of the emoji task */
  readonly teacher: string;
  /** updates of each stage */
  readonly steps: number;
  readonly batchSize: number;
  readonly seed: number;
  /** of the forward and backward passes; 'auto': bf16 where the device has instructions for it */
  readonly dtype: 'f32' | 'bf16' | 'auto';
  /** longest context that is measured, a power of two from 1,024 on */
  readonly longestContext: number;
}

export interface DemoResult {
  results: ReportData['results'];
  context: ReportData['context'];
  /** the HTML file */
  report: string;
  seconds: number;
}

/** The paper's recipe, cut down to what fits a coffee break: fewer and smaller updates, at higher rates than the emoji preset's. */
export function demoStages(steps: number, batchSize: number): Stages {
  const { stage1, stage2, stage3 } = presets.emoji;
  const short = { steps, batchSize };
  return {
    stage1: { ...stage1, ...short, lr: 2e-3 },
    stage2: { ...stage2, ...short, lr: 1e-3 },
    stage3: { ...stage3, ...short, lr: 1e-3, decay: 0.4, positions: 'answer' },
  };
}

/** bf16 is as good for this task, and faster only where the device multiplies it. */
function fastDtype(device: string): 'f32' | 'bf16' {
  const cpu = backends().find(({ name }) => name === 'cpu');
  return device !== 'cpu' || /bf16|amx/.test(String(cpu?.devices[0]?.['gemm'])) ? 'bf16' : 'f32';
}

/** Every power of two from 1K to `longest`. */
function contextLengths(longest: number): number[] {
  const lengths: number[] = [];
  for (let tokens = 1024; tokens <= longest; tokens *= 2) lengths.push(tokens);
  return lengths;
}

/**
 * The whole of the paper on a small real task: measures the shipped teacher, seeds mmMamba-linear and mmMamba-hybrid, runs
 * the three stages (1 and 2 once, as they train the mixers of all layers; 3 for each), and measures all of them on the unseen
 * artist and at long contexts. Writes metrics.jsonl, linear/, hybrid/, report.json and report.html.
 * @throws MmError ERR_ABORTED when stopped
 */
export async function runDemo(options: DemoOptions): Promise<DemoResult> {
  const { out, progress, signal, seed, steps, batchSize, longestContext } = options;
  const device = resolveDevice(options.device);
  const began = performance.now();
  const dtype = options.dtype === 'auto' ? fastDtype(device) : options.dtype;
  try {
    await mkdir(out, { recursive: true });
    if ((await readdir(out)).length > 0) throw new MmError('ERR_ARGUMENT', `${out} is not empty; give another --out`);
  } catch (cause) {
    throw fileError('use the folder', out, cause);
  }
  const { model: teacher, task } = await loadTaskModel(options.teacher, { device, dtype, progress, signal });
  using _ = teacher;
  using metrics = new MetricsFile(join(out, 'metrics.jsonl'), 0);
  const stages = demoStages(steps, batchSize);
  const layers = attentionLayersOf('hybrid', teacher.config);
  const results: ReportData['results'] = [];
  const answers: Partial<Record<ModelName, string[][]>> = {};

  const measure = async (name: ModelName, stage: string, model: VisionLanguageModel): Promise<void> => {
    const found = await evaluate(model, task, task.test, { kinds: ['name'], progress, title: `${name}, ${stage}`, signal });
    answers[name] = found.answers.name!;
    results.push({ model: name, stage, name: found.name!.accuracy, questions: found.name!.total });
    metrics.write({ stage, model: name, exactNames: found.name!.accuracy });
    progress.message(`${name}, ${stage}: ${(100 * found.name!.accuracy).toFixed(1)} % exact names`);
  };
  const measureBoth = async (stage: string, mixers: VisionLanguageModel): Promise<void> => {
    await measure('linear', stage, mixers);
    using hybrid = withAttentionLayers(mixers, teacher, layers, () => false);
    await measure('hybrid', stage, hybrid);
  };

  await measure('teacher', 'trained', teacher);
  using mixers = seedStudent(teacher, { seed });
  await measureBoth('seeded', mixers);
  const shared = { teacher, stages, task, seed, metrics, progress, signal };
  for (const stage of [1, 2] as const) {
    await runStage({
      ...shared,
      stage,
      student: mixers,
      checkpoint: { every: 0, save: () => saveModelFolder(join(out, `stage${stage}`), mixers, task.tokenizer) },
    });
    await measureBoth(`stage ${stage}`, mixers);
  }
  const students: [ModelName, VisionLanguageModel][] = [];
  try {
    for (const [name, attention] of [
      ['linear', []],
      ['hybrid', layers],
    ] as const) {
      const student = withAttentionLayers(mixers, teacher, attention);
      students.push([name, student]);
      await runStage({
        ...shared,
        stage: 3,
        student,
        title: `stage 3 ${name}`,
        checkpoint: { every: 0, save: () => saveModelFolder(join(out, name), student, task.tokenizer) },
      });
      await measure(name, 'stage 3', student);
    }

    const lengths = contextLengths(longestContext);
    const context: ReportData['context'] = [];
    const all: [ModelName, VisionLanguageModel][] = [['teacher', teacher], ...students];
    const rounds = 24;
    progress.start('long contexts', all.length * rounds);
    for (const [i, [name, model]] of all.entries()) {
      using fused = name === 'teacher' ? null : convertLayout(model, 'fused');
      const points = await measureContext(fused ?? model, {
        lengths,
        rounds,
        signal,
        onRound: (done) => progress.update(i * rounds + done, { model: name }),
      });
      context.push({ model: name, points });
    }
    progress.stop();

    const chosen = spread(
      task.test.name.map((_, i) => i),
      24,
    );
    const seconds = (performance.now() - began) / 1000;
    const data: ReportData = {
      title: 'mmMamba: from attention to linear time',
      date: new Date().toISOString(),
      facts: facts(options, seconds, teacher, layers, stages),
      results,
      losses: await readLosses(metrics.path),
      samples: await Promise.all(
        chosen.map(async (i) => ({
          image: await pictureUri(task.images, task.test.name[i]!.image),
          truth: task.test.name[i]!.answerWords.join(' '),
          answers: Object.fromEntries(Object.entries(answers).map(([name, rows]) => [name, rows[i]!.join(' ')])),
        })),
      ),
      context,
    };
    const report = join(out, 'report.html');
    await writeFileAtomic(join(out, 'report.json'), `${JSON.stringify(data)}\n`);
    await writeFileAtomic(report, reportHtml(data));
    return { results, context, report, seconds };
  } finally {
    for (const [, student] of students) student.dispose();
  }
}

/** What a device tells of the moment rather than of itself. */
const changing = new Set(['liveBytes', 'cachedBytes', 'peakBytes', 'allocations']);

function facts(options: DemoOptions, seconds: number, teacher: VisionLanguageModel, layers: readonly number[], stages: Stages): ReportData['facts'] {
  const parameters = teacher.parameters().reduce((sum, p) => sum + p.size, 0);
  const rates = [stages.stage1, stages.stage2, stages.stage3].map(({ lr }) => lr.toExponential(0)).join(', ');
  const { device, dtype } = teacher.placement;
  const [backend, index = '0'] = device.split(':');
  const about = backends().find(({ name }) => name === backend)?.devices[Number(index)] ?? {};
  const described = Object.entries(about).flatMap(([key, value]) => (changing.has(key) ? [] : [`${key} ${String(value)}`]));
  return [
    [
      'machine',
      [
        cpus()[0]?.model.trim() ?? 'unknown processor',
        `${availableParallelism()} threads`,
        `${(totalmem() / 2 ** 30).toFixed(0)} GiB`,
        `${process.platform}-${process.arch}`,
        `Node ${process.version}`,
      ].join(', '),
    ],
    ['device', [device, dtype, ...described].join(', ')],
    ['duration', `${Math.round(seconds)} s, measurements included`],
    ['teacher', `${(parameters / 1e6).toFixed(1)} M parameters, ${teacher.blocks.length} layers of attention`],
    ['hybrid', `layers ${layers.join(', ')} of ${teacher.blocks.length} stay attention`],
    [
      'stages',
      `${options.steps} updates of ${options.batchSize} pictures each (the paper's have 20,000), learning rates ${rates}, AdamW, warmup-stable-decay`,
    ],
    ['seed', String(options.seed)],
  ];
}

/** Loss curves out of the metrics; stages 1 and 2 train what both students share. */
async function readLosses(path: string): Promise<ReportData['losses']> {
  const curves = new Map<string, ReportData['losses'][number]>();
  for await (const { value } of readJsonl(path)) {
    const { stage, step, loss } = value as { stage: string; step?: number; loss?: number };
    if (step === undefined || loss === undefined) continue;
    const [, title, model] = /^(stage \d)(?: (linear|hybrid))?$/.exec(stage)!;
    const curve = curves.get(stage) ?? { model: (model as ModelName | undefined) ?? 'both', stage: title!, points: [] };
    curve.points.push([step, loss]);
    curves.set(stage, curve);
  }
  return [...curves.values()];
}
