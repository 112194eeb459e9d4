import { noGrad } from '../../../lib/autograd/tape.js';
import { distillLayers, distillLogits, type LogitDistillResult } from '../../../lib/models/distill.js';
import type { ModelInputs } from '../../../lib/models/inputs.js';
import type { VisionLanguageModel } from '../../../lib/models/model.js';
import { withGradients, type Gradients } from '../../../lib/nn/gradients.js';
import { klDiv, mul, permute, scale } from '../../../lib/ops/index.js';
import { Tensor } from '../../../lib/tensor/tensor.js';
import { trainableByPreset, type Stage } from '../../../lib/train/trainable.js';
import type { Golden, Handler } from '../golden.js';
import { atTokens, attentionLayers, batchOf, studentOf, withModel } from './support.js';

/** Runs with teacher and student of a case, the student trainable as the reference has it in that stage. */
function withPair(g: Golden, stage: Stage, body: (teacher: VisionLanguageModel, student: VisionLanguageModel) => Promise<void>): Promise<void> {
  return withModel(g, g.text('teacher'), async (teacher) => {
    using student = await studentOf(g, teacher);
    student.setTrainable(trainableByPreset(stage, 'reference'));
    await body(teacher, student);
  });
}

/** In bf16 the loss alone has a limit, relative to the expected one. */
async function lossAlone(g: Golden, loss: Tensor): Promise<void> {
  const limit = g.tolerance('bf16_loss');
  if (limit !== undefined) await g.judge('out.loss', loss, { limit });
  for (const prefix of ['out.', 'grad.']) g.names(prefix).forEach((name) => g.seen(prefix + name));
}

async function judgeGradients(g: Golden, gradients: Gradients): Promise<void> {
  const byName = new Map([...gradients].map(([p, t]) => [p.name, t]));
  for (const name of g.names('grad.')) {
    const t = byName.get(name);
    if (t) await g.judge(`grad.${name}`, t);
    else g.wrong(`grad.${name}: there is no gradient of it`);
  }
}

/** Stages 1 and 2. */
async function layers(g: Golden): Promise<void> {
  const stage = g.number('stage') as Stage;
  await withPair(g, stage, async (teacher, student) => {
    const heads = new Map<string, Tensor>();
    const byHead = (t: Tensor): Tensor => g.run(() => noGrad(() => permute(t, [0, 2, 1, 3])));
    const onLayer = (label: string, predicted: Tensor, target: Tensor): void => {
      heads.set(`${label}.y_pred`, byHead(predicted));
      heads.set(`${label}.y_true`, byHead(target));
    };
    const factor = g.number('mse_factor', 1000);
    const { result, logits } = g.run(() => {
      const inputs = teacher.prepare(batchOf(g));
      const result = distillLayers(teacher, student, inputs, { factor, onLayer });
      return { result, logits: noGrad(() => teacher.head(result.hidden, inputs, 'all')) };
    });
    if (g.options.dtype !== 'f32') return lossAlone(g, result.loss);
    await g.judge('out.loss', result.loss);
    if (g.has('out.mse_per_layer'))
      await g.judge('out.mse_per_layer', g.run(() => noGrad(() => scale({ x: result.terms }, { factor: result.labels.length / factor }))));
    if (g.has('out.logits')) await g.judge('out.logits', logits, { where: atTokens(g) });
    for (const [name, t] of heads) if (g.has(`out.${name}`)) await g.judge(`out.${name}`, t);
    await judgeGradients(g, result.gradients);
  });
}

/**
 * A forward pass as the reference's attention kernel has it under padding: attention gives 0 to a padding query. Only the
 * losses, which count padding, see the difference.
 */
function flashForward(g: Golden, model: VisionLanguageModel, inputs: ModelInputs): Tensor {
  const [batch, length] = g.stored('in.input_ids').shape as [number, number];
  const mask = Tensor.from(Float32Array.from(g.stored('in.attention_mask').data), [batch, length, 1, 1], model.placement);
  const h = model.run(inputs, (x, block, _, context) => {
    if (block.mixer.type !== 'mha') return block.forward(x, context);
    return block.finish(x, mul({ a: block.mixer.heads(block.mixerNorm.forward(x), context), b: mask }));
  });
  return model.head(h, inputs, 'all');
}

/** distillLogits with that forward pass. */
function flashDistill(
  g: Golden, teacher: VisionLanguageModel, student: VisionLanguageModel, inputs: ModelInputs, temperature: number,
): LogitDistillResult {
  const target = noGrad(() => flashForward(g, teacher, inputs));
  return withGradients(student.parameters(), () => {
    const { loss, perPosition } = klDiv({ student: flashForward(g, student, inputs), teacher: target }, { temperature });
    return { loss, perPosition };
  });
}

/** Stage 3. */
async function logits(g: Golden): Promise<void> {
  await withPair(g, 3, async (teacher, student) => {
    const { result, teacherLogits, studentLogits } = g.run(() => {
      const inputs = teacher.prepare(batchOf(g));
      const temperature = g.number('temperature', 1);
      const padded = g.has('in.attention_mask') && g.stored('in.attention_mask').data.includes(0);
      const result = padded ? flashDistill(g, teacher, student, inputs, temperature) : distillLogits(teacher, student, inputs, { temperature });
      return noGrad(() => ({ result, teacherLogits: teacher.forward(inputs), studentLogits: student.forward(inputs) }));
    });
    if (g.options.dtype !== 'f32') return lossAlone(g, result.loss);
    const where = atTokens(g);
    await g.judge('out.loss', result.loss);
    if (g.has('out.kl_per_position')) await g.judge('out.kl_per_position', result.perPosition);
    if (g.has('out.teacher_logits')) await g.judge('out.teacher_logits', teacherLogits, { where });
    if (g.has('out.student_logits')) await g.judge('out.student_logits', studentLogits, { where });
    await judgeGradients(g, result.gradients);
    if (g.attrs['layer_kinds'] !== undefined) g.exactly('layer kinds', student.blockTypes, g.attrs['layer_kinds']);
    g.exactly('softmax layers', student.blockTypes.flatMap((type, i) => (type === 'mha' ? [i] : [])), attentionLayers(g));
  });
}

/** Which parameters train in each stage, from the lists of a student's names. */
async function names(g: Golden): Promise<void> {
  const lists = (await g.json()) as Record<string, unknown>;
  const list = (key: string): string[] => {
    const value = lists[key];
    if (!Array.isArray(value)) throw new Error(`${g.entry.file} has no list ${key}`);
    return value as string[];
  };
  const sorted = (of: readonly string[]): string[] => [...of].sort();
  const chosen = (stage: Stage, of: readonly string[]): string[] => sorted(of.filter(trainableByPreset(stage, 'reference')));
  const all = list('student_state_dict_names');
  g.exactly('stage 1', chosen(1, all), sorted(list('stage1')));
  g.exactly('stage 2', chosen(2, all), sorted(list('stage2')));
  for (const kind of Object.keys(lists).flatMap((key) => /^(stage3_.*)_state_dict_names$/.exec(key)?.[1] ?? [])) {
    const declared = list(`${kind}_state_dict_names`);
    g.exactly(kind, chosen(3, declared), sorted(list(kind)));
    // what a stage-2 checkpoint holds for layers that are attention now, o_proj under its old name aside
    const left = all.filter((name) => !declared.includes(name) && !name.endsWith('.o_proj.weight'));
    g.exactly(`unexpected keys of ${kind}`, sorted(left), sorted(list(`${kind}_unexpected_checkpoint_keys`)));
  }
}

export const distill: Record<string, Handler> = { stage1_distill: layers, stage2_distill: layers, stage3_kl: logits, names };
