import { join } from 'node:path';
import { readSharded } from '../../../lib/io/safetensors.js';
import { generateTokens } from '../../../lib/models/generate.js';
import { rawState } from '../../../lib/models/load.js';
import type { VisionLanguageModel } from '../../../lib/models/model.js';
import { noGrad } from '../../../lib/autograd/tape.js';
import { concat, reshape } from '../../../lib/ops/index.js';
import type { Tensor } from '../../../lib/tensor/tensor.js';
import type { Golden, Handler } from '../golden.js';
import { attentionLayers, batchOf, judgeLogits, judgeTaps, kept, withModel } from './support.js';

/** A forward pass over whole sequences; intermediates by name. */
export async function judgeForward(g: Golden, model: VisionLanguageModel): Promise<void> {
  const taps = new Map<string, Tensor>();
  const tap = (name: string, t: Tensor): void => void taps.set(name, kept(g, t));
  const logits = g.run(() => noGrad(() => model.forward(model.prepare(batchOf(g)), { tap })));
  await judgeLogits(g, 'out.logits', logits);
  if (g.options.dtype === 'f32') await judgeTaps(g, taps);
  else g.names('out.').forEach((name) => g.seen(`out.${name}`));
}

/** A folder loads, and what would be saved is what was read. */
async function folder(g: Golden): Promise<void> {
  const path = join(g.options.root, g.entry.file);
  await withModel(g, g.entry.file, async (model) => {
    const { tensors } = await readSharded(path);
    const written = await rawState(model, g.options.dtype === 'f32' ? undefined : 'f32');
    g.exactly('tensor names', [...written.keys()].sort(), [...tensors.keys()].sort());
    if (g.options.dtype === 'f32')
      for (const [name, { data }] of tensors) {
        const same = Buffer.compare(written.get(name)?.data ?? Buffer.alloc(0), data) === 0;
        if (!same) g.wrong(`${name}: what would be saved differs from the file`);
      }
    if (g.attrs['softmax_attention'] !== undefined)
      g.exactly('softmax layers', model.blockTypes.flatMap((type, i) => (type === 'mha' ? [i] : [])), attentionLayers(g));
    if (g.attrs['pixel_shuffle_loc'] !== undefined) g.exactly('pixel_shuffle_loc', model.config.vision.pixelShuffle, g.attrs['pixel_shuffle_loc']);
  });
}

/** Greedy generation that computes the whole sequence anew for every token and does not stop. */
async function greedy(g: Golden): Promise<void> {
  await withModel(g, g.text('model'), async (model) => {
    const prompt = batchOf(g);
    const expected = g.stored('out.tokens');
    const steps = expected.shape[1]!;
    const rows: Tensor[] = [];
    for (let t = 0; t < steps; t++) {
      const length = prompt.length + t;
      const extended = (ids: Int32Array, next: (row: number, i: number) => number): Int32Array =>
        Int32Array.from({ length: prompt.size * length }, (_, i) => {
          const row = Math.floor(i / length);
          const column = i % length;
          return column < prompt.length ? ids[row * prompt.length + column]! : next(row, column - prompt.length);
        });
      const batch = {
        ...prompt,
        length,
        inputIds: extended(prompt.inputIds, (row, i) => expected.data[row * steps + i]!),
        positionIds: prompt.positionIds ? extended(prompt.positionIds, (_, i) => prompt.length + i) : null,
      };
      rows.push(g.run(() => noGrad(() => model.forward(model.prepare(batch), { logits: 'last' }))));
    }
    await judgeSteps(g, rows);
    // with a cache of keys and values: the same, as long as the table of positions does not depend on the length
    if (g.options.dtype === 'f32' && exactTokens(g) && prompt.length + steps <= model.config.llm.rope.maxPosition) {
      const cached = await generateTokens(model, prompt, { maxTokens: steps, stopTokens: [] });
      g.exactly('tokens decoded with a cache', cached.flat(), [...expected.data]);
    }
  });
}

/** Whether the greatest logits stand apart far enough to ask for the very tokens. */
const exactTokens = (g: Golden): boolean => g.number('min_margin', 1) >= 1e-3;

/** Judges logits of single steps, (B, V) each, and the tokens that they choose. */
export async function judgeSteps(g: Golden, rows: readonly Tensor[]): Promise<void> {
  const [batch, steps, width] = g.stored('out.step_logits').shape as [number, number, number];
  const logits = g.run(() => noGrad(() => concat({ x: rows.map((r) => reshape(r, [batch, 1, width])) }, { axis: 1 })));
  await judgeLogits(g, 'out.step_logits', logits, false);
  g.seen('out.tokens');
  if (g.options.dtype !== 'f32' || !exactTokens(g)) return;
  const values = await logits.toFloat32();
  const chosen = Array.from({ length: batch * steps }, (_, i) => {
    const row = values.subarray(i * width, (i + 1) * width);
    return row.indexOf(row.reduce((a, b) => Math.max(a, b)));
  });
  g.exactly('tokens', chosen, [...g.stored('out.tokens').data]);
}

const forward: Handler = (g) => withModel(g, g.text('model'), (model) => judgeForward(g, model));

export const models: Record<string, Handler> = { model_folder: folder, hovle_forward: forward, hovle_post_forward: forward, hovle_greedy: greedy };
