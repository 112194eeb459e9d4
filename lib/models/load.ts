import { join } from 'node:path';
import { recoverFolder, writeFolderAtomic } from '../io/atomic.js';
import { openSharded, safetensorsChunks, type RawTensor, type SafetensorsDtype, type TensorReader } from '../io/safetensors.js';
import { resolveDevice } from '../native/backends.js';
import { MmError } from '../native/errors.js';
import { throwStateProblems } from '../nn/module.js';
import type { ComputeDtype, Placement } from '../nn/parameter.js';
import { cast } from '../ops/index.js';
import { noGrad } from '../autograd/tape.js';
import type { Dtype } from '../tensor/dtype.js';
import { untracked } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import type { ModelConfig } from './config.js';
import { VisionLanguageModel } from './model.js';

const fromFile: Partial<Record<SafetensorsDtype, Dtype>> = { F32: 'f32', BF16: 'bf16', F16: 'f16' };
const toFile: Record<ComputeDtype, SafetensorsDtype> = { f32: 'F32', bf16: 'BF16', f16: 'F16' };

/** Tensors of the reference that no forward pass reads; they may be missing. */
const unusedNames = ['language_model.model.tok_embeddings.weight', 'embedding_model.vision_embeddings.class_embedding'];

/** A device name as tensors report it: 'auto' resolved, 'cuda' as 'cuda:0'. */
export function placementOf(options: Partial<Placement> = {}): Placement {
  return { device: resolveDevice(options.device ?? 'cpu'), dtype: options.dtype ?? 'f32' };
}

/** A tensor of a file on a device; belongs to no scope. @throws MmError ERR_FILE_FORMAT for a dtype that weights cannot have */
export function tensorOf(name: string, { dtype, shape, data }: RawTensor, device: string): Tensor {
  const known = fromFile[dtype];
  if (!known) throw new MmError('ERR_FILE_FORMAT', `tensor ${name} is ${dtype}; weights must be F32, BF16 or F16`);
  return untracked(() => Tensor.fromBytes(data, known, shape, device));
}

/** A tensor's contents as files have them. */
export async function rawOf(t: Tensor): Promise<RawTensor> {
  const data = await t.data();
  return { dtype: toFile[t.dtype as ComputeDtype], shape: t.shape, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}

export interface LoadOptions extends Partial<Placement> {
  /** parameters to load as trainable, so that low-precision compute keeps their full precision */
  trainable?: (name: string) => boolean;
}

/**
 * Loads a folder in Hugging Face's style, config.json and model.safetensors or shards: a HoVLE teacher or a student, as
 * its configuration says.
 * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT, ERR_CONFIG; ERR_SHAPE with all missing, unexpected and mismatched tensors
 */
export async function loadModel(folder: string, options: LoadOptions = {}): Promise<VisionLanguageModel> {
  await recoverFolder(folder);
  const { readModelConfig } = await import('./config-file.js'); // late: it loads zod and yaml
  const config = await readModelConfig(join(folder, 'config.json'));
  await using reader = await openSharded(folder);
  const model = new VisionLanguageModel(config, placementOf(options));
  try {
    await fill(model, reader, folder, options.trainable);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

async function fill(model: VisionLanguageModel, reader: TensorReader, folder: string, trainable?: (name: string) => boolean): Promise<void> {
  const names = reader.names.filter((name) => !unusedNames.includes(name));
  throwStateProblems(folder, model.compareState(new Map(names.map((name) => [name, reader.info(name).shape]))));
  for (const name of unusedNames) if (reader.has(name)) model.unused.set(name, await reader.read(name));
  for (const parameter of model.parameters()) {
    const tensor = tensorOf(parameter.name, await reader.read(parameter.name), model.placement.device);
    parameter.trainable = trainable?.(parameter.name) ?? false;
    parameter.adopt(tensor);
  }
}

/** Fills a model from tensors of a file, by name; with `partial`, only those that are there. */
export function loadRawState(model: VisionLanguageModel, tensors: ReadonlyMap<string, RawTensor>, options: { partial?: boolean } = {}): void {
  const state = new Map([...tensors].map(([name, raw]) => [name, tensorOf(name, raw, model.placement.device)]));
  try {
    model.loadState(state, options);
  } finally {
    for (const t of state.values()) t.dispose();
  }
}

/** All tensors of a model as its file has them, unused ones included. */
export async function rawState(model: VisionLanguageModel, dtype?: ComputeDtype): Promise<Map<string, RawTensor>> {
  const tensors = new Map(model.unused);
  for (const parameter of model.parameters()) {
    const exact = parameter.fileTensor();
    const t = !dtype || exact.dtype === dtype ? exact : untracked(() => noGrad(() => cast({ x: exact }, { dtype })));
    try {
      tensors.set(parameter.name, await rawOf(t));
    } finally {
      exact.dispose();
      t.dispose();
    }
  }
  return tensors;
}

export interface SaveOptions {
  /** of all tensors; default: as they are held, trainable ones in f32 */
  dtype?: ComputeDtype;
  /** other files of the folder by name, such as the tokenizer's */
  files?: Iterable<readonly [string, Iterable<Uint8Array>]>;
}

/** Writes config.json and model.safetensors, atomically: a kill at any instant leaves the old folder or the new one. */
export async function saveModel(model: VisionLanguageModel, folder: string, options: SaveOptions = {}): Promise<void> {
  const tensors = await rawState(model, options.dtype);
  await writeFolderAtomic(folder, [
    ['config.json', [configBytes(model.config, options.dtype)]],
    ['model.safetensors', safetensorsChunks(tensors, { format: 'pt' })],
    ...(options.files ?? []),
  ]);
}

function configBytes({ raw }: ModelConfig, dtype?: ComputeDtype): Uint8Array {
  const torch = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' } as const;
  return new TextEncoder().encode(`${JSON.stringify(dtype ? { ...raw, torch_dtype: torch[dtype] } : raw, null, 2)}\n`);
}
