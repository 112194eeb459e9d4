import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { recoverFolder } from '../io/atomic.js';
import { loadJsonConfig } from '../io/config.js';
import { fileError, systemCode } from '../io/fail.js';
import { openSharded, readSafetensors, safetensorsChunks, type RawTensor } from '../io/safetensors.js';
import { WORD_VOCAB_FILE, WordTokenizer } from '../io/tokenizer/word.js';
import type { Tokenizer } from '../io/tokenizer/tokenizer.js';
import { rawOf, saveModel, tensorOf } from '../models/load.js';
import type { VisionLanguageModel } from '../models/model.js';
import { MmError } from '../native/errors.js';
import type { ComputeDtype } from '../nn/parameter.js';
import type { Tensor } from '../tensor/tensor.js';
import type { AdamW } from './optimizer.js';

/*
 * A checkpoint is a model folder (weights of what is trained in f32, so nothing is lost under bf16 compute) with two more
 * files: the optimizer's moments, and where the run stands. The data's place is the step itself: batch n is a function of
 * seed and n. The folder is written as one atomic unit.
 */
const STATE_FILE = 'training.json';
const MOMENTS_FILE = 'training.safetensors';

const stateSchema = z.strictObject({
  format: z.literal('mmmamba-training'),
  version: z.literal(1),
  kind: z.enum(['teacher', 'distill']),
  /** what was being trained: `teacher`, `stage 1`, ... */
  stage: z.string(),
  /** updates done in this stage */
  step: z.int().min(0),
  best: z.strictObject({ step: z.int(), score: z.number() }).nullable(),
  /** length of metrics.jsonl */
  metricsBytes: z.int().min(0),
  /** the run's configuration */
  config: z.record(z.string(), z.unknown()),
  /** digestOf() the teacher that is distilled; older runs have none */
  teacher: z.string().optional(),
});
export type TrainingState = z.output<typeof stateSchema>;

const text = (content: string): Uint8Array[] => [new TextEncoder().encode(content)];

/** The tokenizer's file of a model folder; vocabularies that came with a teacher are not copied. */
function tokenizerFiles(tokenizer: Tokenizer): [string, Uint8Array[]][] {
  return tokenizer instanceof WordTokenizer ? [[WORD_VOCAB_FILE, text(tokenizer.toJson())]] : [];
}

/** Writes a model folder that `loadModel` and the commands read, atomically. */
export async function saveModelFolder(
  folder: string,
  model: VisionLanguageModel,
  tokenizer: Tokenizer,
  options: { dtype?: ComputeDtype; files?: Iterable<readonly [string, string]> } = {},
): Promise<void> {
  const files = [...(options.files ?? [])].map(([name, content]): [string, Uint8Array[]] => [name, text(content)]);
  await saveModel(model, folder, { dtype: options.dtype, files: [...tokenizerFiles(tokenizer), ...files] });
}

/** Writes a checkpoint: after a kill or on a full disk the one before is whole. @throws MmError ERR_FILE_IO */
export async function saveCheckpoint(
  folder: string,
  model: VisionLanguageModel,
  tokenizer: Tokenizer,
  optimizer: AdamW,
  state: Omit<TrainingState, 'format' | 'version'>,
): Promise<void> {
  const moments = new Map<string, RawTensor>();
  for (const [name, t] of optimizer.state()) {
    moments.set(name, await rawOf(t));
    t.dispose();
  }
  const document: TrainingState = { format: 'mmmamba-training', version: 1, ...state };
  await saveModel(model, folder, {
    files: [...tokenizerFiles(tokenizer), [MOMENTS_FILE, safetensorsChunks(moments)], [STATE_FILE, text(`${JSON.stringify(document, null, 1)}\n`)]],
  });
}

/** Where the run of a checkpoint stands, or null where there is no checkpoint. @throws MmError ERR_FILE_IO, ERR_CONFIG for a broken one */
export async function readTrainingState(folder: string): Promise<TrainingState | null> {
  if ((await recoverFolder(folder)) === 'absent') return null;
  return loadJsonConfig(join(folder, STATE_FILE), stateSchema);
}

/** Gives an optimizer the moments of a checkpoint. @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT, ERR_ARGUMENT, ERR_SHAPE */
export async function loadMoments(folder: string, optimizer: AdamW, updates: number, device: string): Promise<void> {
  const { tensors } = await readSafetensors(join(folder, MOMENTS_FILE));
  const state = new Map<string, Tensor>();
  try {
    for (const [name, raw] of tensors) state.set(name, tensorOf(name, raw, device));
    optimizer.load(state, updates);
  } finally {
    for (const t of state.values()) t.dispose();
  }
}

/**
 * Tells a model from others: a hash of the bytes of config.json and of the weights, wherever they lie and in however many files.
 * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT
 */
export async function digestOf(folder: string): Promise<string> {
  await recoverFolder(folder);
  const path = join(folder, 'config.json');
  const hash = createHash('sha256');
  try {
    hash.update(await readFile(path));
  } catch (cause) {
    throw fileError('read', path, cause);
  }
  await using reader = await openSharded(folder);
  for (const name of [...reader.names].sort()) {
    const { dtype, shape, data } = await reader.read(name);
    hash.update(JSON.stringify([name, dtype, shape])).update(data);
  }
  return hash.digest('hex');
}

/**
 * Makes a run's folder ready. A folder with something in it is only taken to continue the run in it.
 * @param teacher the digest of the teacher, where the run has one; asked for where it is compared
 * @returns the state to continue from; null to begin
 * @throws MmError ERR_ARGUMENT; ERR_CONFIG where the run was begun with other settings
 */
export async function openRun(
  out: string,
  kind: TrainingState['kind'],
  resume: boolean,
  config: Record<string, unknown>,
  teacher?: () => Promise<string>,
): Promise<TrainingState | null> {
  let present: string[];
  try {
    await mkdir(out, { recursive: true });
    present = await readdir(out);
  } catch (cause) {
    throw systemCode(cause) === 'EEXIST'
      ? new MmError('ERR_ARGUMENT', `${out} is a file; a run needs a folder`)
      : fileError('make the folder', out, cause);
  }
  if (!resume) {
    if (present.length > 0) throw new MmError('ERR_ARGUMENT', `${out} is not empty: give --resume to continue the run in it, or another --out`);
    return null;
  }
  const state = await readTrainingState(join(out, 'last'));
  if (!state) return null;
  if (state.kind !== kind) throw new MmError('ERR_ARGUMENT', `${out} holds a run of kind ${state.kind}, not ${kind}`);
  // How often is evaluated and saved changes no weight.
  const weighty = ({ evaluation: _, checkpoints: __, ...rest }: Record<string, unknown>): Record<string, unknown> => rest;
  const changed = differing(weighty(state.config), JSON.parse(JSON.stringify(weighty(config))) as Record<string, unknown>);
  if (state.teacher !== undefined) changed.push(...differing(state.teacher, await teacher?.(), 'the digest of the teacher'));
  if (changed.length > 0)
    throw new MmError('ERR_CONFIG', `${out} was begun with other settings, so that it cannot be continued exactly: ${changed.join('; ')}`);
  return state;
}

/** `key: old, now new` for every leaf that differs. */
function differing(old: unknown, now: unknown, path = ''): string[] {
  const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
  if (isObject(old) && isObject(now))
    return [...new Set([...Object.keys(old), ...Object.keys(now)])].flatMap((key) => differing(old[key], now[key], path ? `${path}.${key}` : key));
  const [a, b] = [JSON.stringify(old) ?? 'absent', JSON.stringify(now) ?? 'absent'];
  return a === b ? [] : [`${path} was ${a} and is now ${b}`];
}
