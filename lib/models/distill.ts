import { noGrad } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import { withGradients, type Gradients } from '../nn/gradients.js';
import { concat, klDiv, mse, reshape, sum } from '../ops/index.js';
import { Scope, scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import type { DecoderBlock } from './hovle/block.js';
import type { ModelInputs } from './inputs.js';
import type { VisionLanguageModel } from './model.js';

export interface LayerDistillOptions {
  /** of the loss; default 1000, as in the paper */
  factor?: number;
  /** compute gradients of the trainable mixer parameters; default true */
  gradients?: boolean;
  /** sees each layer's heads before the output projection, (B, L, H, D); the tensors live as long as the call */
  onLayer?: (label: string, predicted: Tensor, target: Tensor) => void;
}

export interface LayerDistillResult {
  /** (), f32: factor times the mean over layers of the mean squared error */
  loss: Tensor;
  /** (layers with a mixer), f32: the loss's terms, factor / layers times each layer's mean squared error */
  terms: Tensor;
  /** labels of the terms: `embed.<i>`, `llm.<i>` */
  labels: string[];
  gradients: Gradients;
  /** the teacher's hidden state behind the last layer, (B, L, C) */
  hidden: Tensor;
}

/**
 * Stages 1 and 2: every mixer of the student against the attention of the teacher's same layer, before the output
 * projection. All layers are fed the teacher's hidden state, so that their gradients are independent: each layer is
 * recorded, walked backwards and freed on its own, and the hidden state is computed once. Softmax layers of the student
 * are skipped. Padding counts, as in the reference.
 */
export function distillLayers(
  teacher: VisionLanguageModel,
  student: VisionLanguageModel,
  inputs: ModelInputs,
  options: LayerDistillOptions = {},
): LayerDistillResult {
  const { factor = 1000, gradients: wanted = true, onLayer } = options;
  const pairs = student.blocks;
  if (pairs.length !== teacher.blocks.length)
    throw new MmError('ERR_ARGUMENT', `the student has ${pairs.length} layers, the teacher ${teacher.blocks.length}; they must be the same`);
  const labels = pairs.filter((b) => b.mixer.type === 'mamba2').map((b) => b.label);
  if (labels.length === 0) throw new MmError('ERR_ARGUMENT', 'the student has no Mamba-2 layer to distil');

  using results = new Scope();
  const terms: Tensor[] = [];
  const gradients: Gradients = new Map();
  const layer = (x: Tensor, target: Tensor, block: DecoderBlock, context: Parameters<DecoderBlock['forward']>[1]): void => {
    const { mixer } = block;
    if (mixer.type !== 'mamba2') return;
    const compare = (): { loss: Tensor } => {
      const predicted = mixer.heads(x, context);
      onLayer?.(block.label, predicted, target);
      return { loss: mse({ pred: predicted, target }, { factor: factor / labels.length }) };
    };
    const result: { loss: Tensor; gradients?: Gradients } = results.run(() =>
      wanted ? withGradients(mixer.parameters(), compare) : scope(compare),
    );
    terms.push(result.loss);
    for (const [parameter, gradient] of result.gradients ?? []) gradients.set(parameter, gradient);
  };

  const hidden = noGrad(() =>
    teacher.run(inputs, (h, block, i, context) =>
      scope(() => {
        const x = block.mixerNorm.forward(h);
        const target = block.mixer.heads(x, context);
        layer(x, target, pairs[i]!, context);
        return block.finish(h, target);
      }),
    ),
  );
  const stacked = results.run(() => concat({ x: terms.map((t) => reshape(t, [1])) }, { axis: 0 }));
  const loss = results.run(() => sum({ x: stacked }));
  return { ...results.release({ loss, terms: stacked, gradients }), labels, hidden };
}

export interface LogitDistillOptions {
  /** default 1 */
  temperature?: number;
  /** i32 (M) flat positions that count, on both sides; default all. Logits are computed at these alone */
  positions?: Tensor;
  /** f32 (B, L), or (M) with positions: weight of each position; default 1 */
  mask?: Tensor;
  /** of the sum over positions; default the number of rows B, as in the reference */
  divisor?: number;
  /** compute gradients of the student's trainable parameters; default true */
  gradients?: boolean;
  /** keep only layers' inputs and compute the rest again during backward */
  checkpoint?: boolean;
}

export interface LogitDistillResult {
  /** (), f32 */
  loss: Tensor;
  /** (B, L) or (M), f32, unmasked, times temperature squared */
  perPosition: Tensor;
  gradients: Gradients;
}

/** Stage 3: KL(teacher || student) of the logits, end to end: `T² sum p_t (log p_t - log p_s) / divisor`. */
export function distillLogits(
  teacher: VisionLanguageModel,
  student: VisionLanguageModel,
  inputs: ModelInputs,
  options: LogitDistillOptions = {},
): LogitDistillResult {
  const { temperature = 1, positions, mask, divisor = inputs.batch, gradients = true } = options;
  const logits = positions ?? 'all';
  return scope(() => {
    const target = noGrad(() => teacher.forward(inputs, { logits }));
    const compare = (): { loss: Tensor; perPosition: Tensor } => {
      const predicted = student.forward(inputs, { logits, checkpoint: options.checkpoint });
      const { loss, perPosition } = klDiv({ student: predicted, teacher: target, mask }, { temperature, divisor });
      return { loss, perPosition };
    };
    return gradients ? withGradients(student.parameters(), compare) : { ...noGrad(() => scope(compare)), gradients: new Map() as Gradients };
  });
}
