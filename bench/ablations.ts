import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { writeFileAtomic } from '../lib/io/atomic.js';
import { seedStudent } from '../lib/models/seed.js';
import { distillSchema } from '../lib/train/config.js';
import { distill } from '../lib/train/distill.js';
import { evaluate } from '../lib/train/evaluate.js';
import { createProgress } from '../lib/train/progress.js';
import { loadTaskModel } from '../lib/train/task-model.js';
import { machine } from './machine.js';

/*
 * The paper's ablations of mmMamba-linear on the emoji task: which stages run (table 5) and what a student is seeded with
 * (table 4). Runs that share their first stages share the work. Every run is one of `distill`, so a killed ablation goes on
 * where it was.
 */

const help = `node dist/bench/ablations.js [options]

  --teacher FOLDER   default models/emoji-teacher
  --out FOLDER       of the runs; default runs/ablations
  --steps N          updates of each stage; default 600
  --device NAME      default cpu
  --seed N           default 0
  --json FILE
`;

const { values } = parseArgs({
  options: {
    teacher: { type: 'string', default: 'models/emoji-teacher' },
    out: { type: 'string', default: 'runs/ablations' },
    steps: { type: 'string', default: '600' },
    device: { type: 'string', default: 'cpu' },
    seed: { type: 'string', default: '0' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});

interface Seeding {
  inheritQkv: boolean;
  mimicInit: boolean;
}
const mimic: Seeding = { inheritQkv: true, mimicInit: true };

interface Run {
  name: string;
  stages: readonly (1 | 2 | 3)[];
  seeding: Seeding;
}

const stageRuns: Run[] = [[1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]].map((stages) => ({
  name: `stage ${stages.join(' + ')}`,
  stages: stages as Run['stages'],
  seeding: mimic,
}));
const seedingRuns: Run[] = [
  { name: 'from scratch', stages: [1, 2, 3], seeding: { inheritQkv: false, mimicInit: false } },
  { name: 'inherited', stages: [1, 2, 3], seeding: { inheritQkv: true, mimicInit: false } },
  { name: 'inherited + mimic', stages: [1, 2, 3], seeding: mimic },
];

const progress = createProgress();
const steps = Number(values.steps);
const seed = Number(values.seed);

/** The folder of a run and its share of exact names; the stages before the last come from the run that ends with them. */
async function score({ stages, seeding }: Run): Promise<{ folder: string; accuracy: number }> {
  const kind = `${seeding.inheritQkv ? 'inherited' : 'scratch'}${seeding.mimicInit ? '-mimic' : ''}`;
  const out = join(values.out, `${kind}-${stages.join('')}`);
  const finished = join(out, 'model', 'training.json');
  if (!existsSync(finished)) {
    const stage = stages.at(-1)!;
    const before = stages.slice(0, -1);
    const from = before.length > 0 ? join((await score({ name: '', stages: before, seeding })).folder, `stage${before.at(-1)!}`) : undefined;
    const rates = { stage1: 2e-3, stage2: 1e-3, stage3: 1e-3 };
    const settings = { steps, lr: rates[`stage${stage}`], ...(stage === 3 ? { positions: 'answer', decay: 0.3 } : {}) };
    const config = distillSchema().parse({
      preset: 'emoji',
      dtype: 'bf16',
      seed,
      run: [stage],
      ...(from === undefined ? { seeding } : { from }),
      stages: { [`stage${stage}`]: settings },
      evaluation: { every: 0 },
      checkpoints: { every: 0 },
    });
    progress.message(`${kind}, stages ${stages.join(' + ')}`);
    await distill(config, values.teacher, { out, device: values.device, progress, resume: existsSync(out) });
  }
  const { scores } = JSON.parse(readFileSync(finished, 'utf8')) as { scores: { name: { accuracy: number } } };
  return { folder: out, accuracy: scores.name.accuracy };
}

interface Row {
  name: string;
  /** share of exact names on the unseen artist */
  exactNames: number;
  /** that share over the teacher's */
  ofTeacher: number;
}

if (values.help) process.stdout.write(help);
else {
  let teacherScore: number;
  let seeded: number;
  {
    const { model, task } = await loadTaskModel(values.teacher, { device: values.device, dtype: 'bf16', progress });
    using teacher = model;
    using student = seedStudent(teacher, { seed });
    const options = { kinds: ['name'], progress } as const;
    teacherScore = (await evaluate(teacher, task, task.test, { ...options, title: 'teacher' })).name!.accuracy;
    seeded = (await evaluate(student, task, task.test, { ...options, title: 'seeded' })).name!.accuracy;
  }
  const row = (name: string, exactNames: number): Row => ({ name, exactNames, ofTeacher: exactNames / teacherScore });
  const rows = async (runs: readonly Run[]): Promise<Row[]> => {
    const all: Row[] = [];
    for (const run of runs) all.push(row(run.name, (await score(run)).accuracy));
    return all;
  };
  const result = {
    machine: machine(values.device),
    teacher: teacherScore,
    stepsAStage: steps,
    seed,
    stages: [row('none', seeded), ...(await rows(stageRuns))],
    seeding: await rows(seedingRuns),
  };
  const table = (title: string, list: readonly Row[]): string =>
    [`| ${title} | exact names | of the teacher |`, '| --- | --- | --- |']
      .concat(list.map(({ name, exactNames, ofTeacher }) => `| ${name} | ${(100 * exactNames).toFixed(1)} % | ${(100 * ofTeacher).toFixed(0)} % |`))
      .join('\n');
  process.stdout.write(`${table('stages', result.stages)}\n\n${table('seeding', result.seeding)}\n`);
  if (values.json) await writeFileAtomic(values.json, `${JSON.stringify(result, null, 1)}\n`);
}
