import { z } from 'zod';
import { loadYaml } from '../io/config.js';
import { MmError } from '../native/errors.js';
import { artists } from './data/emoji/artists.js';

/*
 * What a run can be told, as YAML. Every key has a default, unknown keys are errors with file, line and nearest known key
 * (io/config.ts), and so are keys that contradict each other.
 */

const count = z.int().min(1);
const share = z.number().min(0).max(1);
const positive = z.number().positive();
const notNegative = z.number().min(0);
/** what a moving average keeps of its past; with 1 it would take nothing in */
const decayRate = z.number().min(0).lt(1);

const dataSchema = z
  .strictObject({
    /** the artist whose drawings are the test set */
    heldOut: z.enum(artists).default('fluent-emoji-flat'),
    /** a name counts when at least so many artists drew it */
    minArtists: z.int().min(1).max(artists.length).default(5),
    /** training drawings kept back to choose the best checkpoint by; the test set is never used for that */
    validation: z.int().min(0).default(128),
    /** where the rendered drawings are cached; default $XDG_CACHE_HOME/mmmamba */
    cacheDir: z.string().optional(),
    /** shares of the kinds of questions, in any positive unit */
    kinds: z
      .strictObject({ name: notNegative.default(0), group: notNegative.default(0), yesno: notNegative.default(0) })
      .default({ name: 0.6, group: 0.1, yesno: 0.3 }),
    /** changes to the default augmentation (train/data/emoji/augment.ts), or false for unchanged drawings */
    augment: z
      .union([
        z.literal(false),
        z.strictObject({
          rotation: notNegative.optional(),
          scale: z.tuple([positive, positive]).optional(),
          shear: notNegative.optional(),
          translation: share.optional(),
          flip: share.optional(),
          brightness: share.optional(),
          contrast: share.optional(),
          saturation: share.optional(),
          hue: notNegative.optional(),
          cutout: share.optional(),
          cutoutSize: share.optional(),
        }),
      ])
      .default({}),
  })
  .superRefine(({ kinds, augment }, context) => {
    if (kinds.name + kinds.group + kinds.yesno === 0)
      context.addIssue({ code: 'custom', path: ['kinds'], message: 'all shares are 0; at least one must be above 0' });
    if (augment && augment.scale && augment.scale[0] > augment.scale[1])
      context.addIssue({
        code: 'custom',
        path: ['augment', 'scale'],
        message: `[from, to] is [${augment.scale.join(', ')}]; from must not exceed to`,
      });
  });

const evaluationSchema = z.strictObject({
  /** steps between two evaluations on the validation drawings; 0: only at the end */
  every: z.int().min(0).default(250),
  /** questions answered at once */
  batchSize: count.default(128),
});

const checkpointSchema = z.strictObject({
  /** steps between two checkpoints; 0: only at the end and when stopped */
  every: z.int().min(0).default(250),
});

/** What one optimisation needs, whatever its loss. */
const optimisation = {
  steps: count,
  /** rows of one update */
  batchSize: count,
  /** micro-batches that an update is made of: as many times less memory, the same gradient */
  accumulate: count,
  lr: positive,
  /** parts of the steps: linear warmup, cosine decay at the end, constant between (warmup-stable-decay) */
  warmup: share,
  decay: share,
  /** greatest norm of all gradients together; 0: no clipping */
  clip: notNegative,
  weightDecay: notNegative,
  betas: z.tuple([decayRate, decayRate]),
  eps: positive,
};

/** Which positions of a sequence count in KL: all, those that are not padding, or those that predict the answer. */
const positions = z.enum(['all', 'tokens', 'answer']);

const mseStage = z.strictObject({ ...optimisation, /** of the mean squared error */ factor: positive });
const klStage = z.strictObject({
  ...optimisation,
  temperature: positive,
  positions,
  /** mean over the counting positions, or their sum divided by the rows of the batch, as torch's batchmean */
  reduction: z.enum(['mean', 'batch']),
  /** mixer parameters that stay as stage 2 left them, by the end of their names */
  frozen: z.array(z.enum(['dt_bias', 'A_log_bias', 'o_proj.weight', 'v_proj.weight', 'q_proj.weight', 'k_proj.weight'])),
});

const stagesSchema = z.strictObject({ stage1: mseStage, stage2: mseStage, stage3: klStage });
export type Optimisation = z.output<typeof optimisationSchema>;
const optimisationSchema = z.strictObject(optimisation);
export type MseStage = z.output<typeof mseStage>;
export type KlStage = z.output<typeof klStage>;
export type Stages = z.output<typeof stagesSchema>;

const paperOptim = {
  accumulate: 1,
  warmup: 0.1,
  decay: 0.1,
  clip: 5,
  weightDecay: 0.05,
  betas: [0.9, 0.999],
  eps: 1e-8,
} satisfies Partial<Optimisation>;

const paper: Stages = {
  stage1: { ...paperOptim, steps: 20_000, batchSize: 128, lr: 1e-3, factor: 1000 },
  stage2: { ...paperOptim, steps: 20_000, batchSize: 128, lr: 5e-4, factor: 1000 },
  stage3: {
    ...paperOptim,
    steps: 20_000,
    batchSize: 64,
    lr: 5e-5,
    temperature: 1,
    positions: 'tokens',
    reduction: 'mean',
    frozen: ['o_proj.weight'],
  },
};

/** Recipes of the three stages. `paper`: arXiv 2502.13145, section 4.1. */
export const presets = {
  paper,
  /**
   * As the authors' code and configuration do it where they leave the paper: clipping at 2, a stage 2 of 5,000 warmup steps
   * whose decay lies behind its last step, KL over all positions (padding too) summed and divided by the rows, and
   * dt_bias and A_log_bias left out of stage 3.
   */
  reference: {
    stage1: { ...paper.stage1, clip: 2 },
    stage2: { ...paper.stage2, clip: 2, warmup: 0.25, decay: 0 },
    stage3: { ...paper.stage3, clip: 2, positions: 'all', reduction: 'batch', frozen: ['dt_bias', 'A_log_bias', 'o_proj.weight'] },
  },
  /** The paper's recipe at the size of the emoji task. */
  emoji: {
    stage1: { ...paper.stage1, steps: 1500 },
    stage2: { ...paper.stage2, steps: 1500 },
    stage3: { ...paper.stage3, steps: 1500, batchSize: 128, lr: 3e-4 },
  },
} satisfies Record<string, Stages>;
export type Preset = keyof typeof presets;

type Issue = (path: PropertyKey[], message: string) => void;

function checkOptimisation(o: Optimisation, path: PropertyKey[], issue: Issue): void {
  if (o.warmup + o.decay > 1) issue([...path, 'decay'], `warmup ${o.warmup} and decay ${o.decay} add up to more than all steps`);
  if (o.batchSize % o.accumulate !== 0) issue([...path, 'accumulate'], `${o.accumulate} does not divide the batchSize ${o.batchSize}`);
}

const dtype = z.enum(['f32', 'bf16']);

/** Sizes of a HoVLE-shaped teacher; the defaults are those of the emoji task (3.9 M parameters). */
const teacherModelSchema = z
  .strictObject({
    /** layers of the holistic embedding */
    embeddingLayers: count.default(4),
    /** layers of the language model */
    languageLayers: count.default(4),
    hiddenSize: count.default(192),
    heads: count.default(6),
    kvHeads: count.default(3),
    mlpSize: count.default(512),
    /** pixels a side */
    imageSize: count.default(64),
    /** pixels a side */
    patchSize: count.default(8),
    ropeTheta: positive.default(1e6),
    /** longest sequence that positions are not stretched for */
    maxPositions: count.default(32_768),
  })
  .superRefine((m, context) => {
    const issue = (key: string, message: string): void => context.addIssue({ code: 'custom', path: [key], message });
    if (m.heads % m.kvHeads !== 0) issue('kvHeads', `${m.kvHeads} does not divide the ${m.heads} heads`);
    if (m.hiddenSize % m.heads !== 0) issue('heads', `${m.heads} does not divide the hiddenSize ${m.hiddenSize}`);
    else if ((m.hiddenSize / m.heads) % 2 !== 0)
      issue('heads', `a head has ${m.hiddenSize / m.heads} channels; rotary embedding needs an even number`);
    if (m.imageSize % (2 * m.patchSize) !== 0)
      issue('patchSize', `the imageSize ${m.imageSize} is no multiple of two patches of ${m.patchSize} (2 x 2 patches become one token)`);
  });
export type TeacherModelConfig = z.output<typeof teacherModelSchema>;

const teacherOptimSchema = z
  .strictObject(optimisation)
  .partial()
  .transform((given, context): Optimisation => {
    const all = { ...paperOptim, steps: 2669, batchSize: 128, lr: 1e-3, clip: 1, ...given } as Optimisation;
    checkOptimisation(all, [], (path, message) => context.addIssue({ code: 'custom', path, message }));
    return all;
  });

/** `mmmamba train-teacher` */
export const trainTeacherSchema = z.strictObject({
  seed: z.int().min(0).default(0),
  /** of the forward and backward pass; master weights and optimizer state are f32 either way */
  dtype: dtype.default('f32'),
  model: teacherModelSchema.prefault({}),
  data: dataSchema.prefault({}),
  optim: teacherOptimSchema.prefault({}),
  loss: z.strictObject({ labelSmoothing: z.number().min(0).max(0.99).default(0.05) }).prefault({}),
  evaluation: evaluationSchema.prefault({}),
  checkpoints: checkpointSchema.prefault({}),
});
export type TrainTeacherConfig = z.output<typeof trainTeacherSchema>;

const distillInput = z.strictObject({
  preset: z.enum(['paper', 'reference', 'emoji']).default('paper'),
  seed: z.int().min(0).default(0),
  dtype: dtype.default('f32'),
  /** which layers stay attention: none, the first of every four, or a list counted over both stacks */
  student: z.union([z.enum(['linear', 'hybrid']), z.array(z.int().min(0))]).default('linear'),
  /** folder of a student to begin with, such as another run's stage2/, in place of seeding */
  from: z.string().min(1).optional(),
  /** what a seeded mixer takes over: the teacher's q, k and v projections; values by which it first acts like attention */
  seeding: z.strictObject({ inheritQkv: z.boolean().default(true), mimicInit: z.boolean().default(true) }).optional(),
  /** which stages run, in this order */
  run: z
    .array(z.union([z.literal(1), z.literal(2), z.literal(3)]))
    .min(1)
    .default([1, 2, 3]),
  data: dataSchema.prefault({}),
  /** changes to the preset */
  stages: z.strictObject({ stage1: mseStage.partial(), stage2: mseStage.partial(), stage3: klStage.partial() }).partial().default({}),
  evaluation: evaluationSchema.prefault({}),
  checkpoints: checkpointSchema.prefault({}),
});
type DistillInput = z.output<typeof distillInput>;

/** What takes the place of a file's settings, e.g. from the command line; `steps` of every stage. */
export type DistillOverrides = Partial<Pick<DistillInput, 'preset' | 'seed' | 'student' | 'run' | 'from'>> & { steps?: number };

/** Fills a preset with the changes and checks that all fits together. */
function resolveDistill(
  input: DistillInput,
  { steps, ...overrides }: DistillOverrides,
  issue: Issue,
): Omit<DistillInput, 'stages'> & { stages: Stages } {
  const given = { ...input, ...Object.fromEntries(Object.entries(overrides).filter(([, value]) => value !== undefined)) } as DistillInput;
  given.run.forEach((stage, i) => {
    if (i > 0 && stage <= given.run[i - 1]!) issue(['run', i], `stage ${stage} follows stage ${given.run[i - 1]}; each stage once, in rising order`);
  });
  for (const key of Object.keys(given.stages) as (keyof Stages)[])
    if (!given.run.includes(Number(key.at(-1)) as 1)) issue(['stages', key], `settings for a stage that run: [${given.run.join(', ')}] leaves out`);
  if (given.from !== undefined && given.seeding) issue(['seeding'], `nothing is seeded in a run that begins with the student in ${given.from}`);
  if (Array.isArray(given.student) && new Set(given.student).size !== given.student.length)
    issue(['student'], `[${given.student.join(', ')}] names a layer twice`);
  const preset = presets[given.preset];
  const all = steps === undefined ? {} : { steps };
  const stages: Stages = {
    stage1: { ...preset.stage1, ...given.stages.stage1, ...all },
    stage2: { ...preset.stage2, ...given.stages.stage2, ...all },
    stage3: { ...preset.stage3, ...given.stages.stage3, ...all },
  };
  for (const key of ['stage1', 'stage2', 'stage3'] as const) checkOptimisation(stages[key], ['stages', key], issue);
  return { ...given, stages };
}

/** `mmmamba distill` */
export const distillSchema = (overrides: DistillOverrides = {}) =>
  distillInput.transform((input, context) =>
    resolveDistill(input, overrides, (path, message) => context.addIssue({ code: 'custom', path, message })),
  );
export type DistillConfig = z.output<ReturnType<typeof distillSchema>>;
export type DataConfig = z.output<typeof dataSchema>;

/** @throws MmError ERR_FILE_IO, ERR_CONFIG naming file, line and key; without a file the defaults */
export async function loadTrainTeacherConfig(path?: string): Promise<TrainTeacherConfig> {
  return path === undefined ? trainTeacherSchema.parse({}) : loadYaml(path, trainTeacherSchema);
}

/** As {@link loadTrainTeacherConfig}. */
export async function loadDistillConfig(path?: string, overrides: DistillOverrides = {}): Promise<DistillConfig> {
  const schema = distillSchema(overrides);
  if (path !== undefined) return loadYaml(path, schema);
  const result = schema.safeParse({});
  if (result.success) return result.data;
  throw new MmError('ERR_CONFIG', result.error.issues.map(({ path: key, message }) => `${key.join('.')}: ${message}`).join('\n'));
}
