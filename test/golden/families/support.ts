import { existsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { noGrad } from '../../../lib/autograd/tape.js';
import { readSafetensors, type RawTensor } from '../../../lib/io/safetensors.js';
import type { Batch } from '../../../lib/models/inputs.js';
import { loadModel, loadRawState } from '../../../lib/models/load.js';
import type { VisionLanguageModel } from '../../../lib/models/model.js';
import { seedStudent } from '../../../lib/models/seed.js';
import type { RecurrentState } from '../../../lib/models/state.js';
import { permute, reshape, slice } from '../../../lib/ops/index.js';
import type { Tensor } from '../../../lib/tensor/tensor.js';
import type { Golden } from '../golden.js';

/** Runs with a model of the run's folder, in the run's dtype, and disposes it. */
export async function withModel(g: Golden, folder: string, body: (model: VisionLanguageModel) => Promise<void>): Promise<void> {
  const { root, device, dtype } = g.options;
  using model = await loadModel(join(root, folder), { device, dtype });
  await body(model);
}

function integers(g: Golden, name: string): Int32Array | null {
  return g.has(name) ? Int32Array.from(g.stored(name).data) : null;
}

/** The inputs of a model case. Padding is on the right, and the reference's mixers do not mask it, so the mask is not given. */
export function batchOf(g: Golden): Batch {
  const [size, length] = g.stored('in.input_ids').shape as [number, number];
  const pixels = g.has('in.pixel_values') ? (g.stored('in.pixel_values').data as Float32Array) : null;
  return {
    size,
    length,
    inputIds: integers(g, 'in.input_ids')!,
    positionIds: integers(g, 'in.position_ids'),
    pixelValues: pixels,
    imageFlags: pixels && (integers(g, 'in.image_flags') ?? new Int32Array(g.stored('in.pixel_values').shape[0]!).fill(1)),
    patchIds: integers(g, 'in.hd_input_ids'),
    patchPositionIds: integers(g, 'in.hd_position_ids'),
  };
}

/** Whether a row of (B, L, ...) is a token; what stands at padding is an artefact of the reference. */
export function atTokens(g: Golden): (row: number) => boolean {
  const mask = g.has('in.attention_mask') ? g.stored('in.attention_mask').data : null;
  return (row) => mask === null || mask[row] !== 0;
}

/** Keeps a tensor that only lives as long as a call for as long as the case. */
export function kept(g: Golden, t: Tensor): Tensor {
  return g.run(() => noGrad(() => t.aliased(t.shape, t.strides, 0)));
}

/** Judges named intermediates, those that the file has. */
export async function judgeTaps(g: Golden, taps: ReadonlyMap<string, Tensor>): Promise<void> {
  const tokens = g.stored('in.input_ids').shape.join();
  for (const [name, t] of taps) {
    if (!g.has(`out.${name}`)) continue;
    const { shape } = g.stored(`out.${name}`);
    const padded = shape.slice(0, 2).join() === tokens;
    const flat = t.size === shape.reduce((a, b) => a * b, 1) ? g.run(() => reshape(t, shape)) : t;
    await g.judge(`out.${name}`, flat, padded ? { where: atTokens(g) } : {});
  }
}

/** In f32 the logits entry by entry; in bf16, where the folder lists a limit, by their relative L2 error. */
export async function judgeLogits(g: Golden, name: string, logits: Tensor, tokensOnly = true): Promise<void> {
  const where = tokensOnly ? atTokens(g) : () => true;
  if (g.options.dtype === 'f32') return g.judge(name, logits, { where });
  const listed = g.tolerance('bf16_logits_relL2');
  if (listed === undefined) return g.seen(name);
  const stats = g.entry.stats ?? {};
  const own = stats['bf16_model_l2'] ?? (stats['bf16_model'] as { l2?: number } | undefined)?.l2;
  await g.judgeL2(name, logits, Math.max(listed, 3 * (typeof own === 'number' ? own : 0)), where);
}

/** Judges the state of every layer against `<prefix><layer>.conv`, `.ssm`, `.key`, `.value`. */
export async function judgeState(g: Golden, prefix: string, model: VisionLanguageModel, state: RecurrentState): Promise<void> {
  const first = model.config.embedding.blocks.length;
  for (const [i, layer] of state.layers.entries()) {
    const label = `${prefix}${model.blocks[i]!.label}`;
    const consumed = Math.max(...(i < first ? state.consumed.embedding : state.consumed.llm));
    const parts: [string, Tensor | null][] =
      layer.type === 'mamba2'
        ? [['conv', layer.conv], ['ssm', layer.ssm]]
        : (['key', 'value'] as const).map((part) => [part, g.run(() => noGrad(() => permute(slice(layer[part], 1, 0, consumed), [0, 2, 1, 3])))]);
    for (const [part, t] of parts) if (t && g.has(`${label}.${part}`)) await g.judge(`${label}.${part}`, t);
  }
}

// Each is laid over those before it.
const chain = ['student_seeded', 'student_stage1', 'student_stage2'].map((name) => `${name}.safetensors`);

/** The files of a student: attrs.student, and before it those of the chain that its folder has. */
async function overlays(g: Golden): Promise<ReadonlyMap<string, RawTensor>> {
  const last = join(g.options.root, g.text('student'));
  const before = chain.slice(0, Math.max(0, chain.indexOf(basename(last)))).map((file) => join(dirname(last), file));
  const all = new Map<string, RawTensor>();
  for (const path of [...before.filter((file) => existsSync(file)), last])
    for (const [name, t] of (await readSafetensors(path)).tensors) all.set(name, t);
  return all;
}

/** Layers that stay softmax attention. */
export function attentionLayers(g: Golden): number[] {
  return (g.attrs['softmax_attention'] ?? []) as number[];
}

/** The student of a case: seeded from the teacher, then overlaid; softmax layers take nothing of the overlay. The caller disposes it. */
export async function studentOf(g: Golden, teacher: VisionLanguageModel): Promise<VisionLanguageModel> {
  const layers = attentionLayers(g);
  const tensors = await overlays(g);
  const student = seedStudent(teacher, { seed: 0, attentionLayers: layers });
  try {
    const paths = layers.map((i) => `${student.blocks[i]!.path}.`);
    loadRawState(student, new Map([...tensors].filter(([name]) => !paths.some((p) => name.startsWith(p)))), { partial: true });
    return student;
  } catch (error) {
    student.dispose();
    throw error;
  }
}
