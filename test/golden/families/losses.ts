import { crossEntropy, klDiv, mse, scale, slice } from '../../../lib/ops/index.js';
import type { Handler } from '../golden.js';
import { op } from './ops.js';

export const losses: Record<string, Handler> = {
  cross_entropy: op((input, g) => {
    g.only('kind', 'plain', 'shift', 'weighted');
    g.only('reduction', 'mean');
    const logits = input('logits')!;
    const labels = input('labels')!;
    const weight = g.text('kind') === 'weighted' ? input('loss_weight', 'f32')! : null;
    const options = { ignoreIndex: g.number('ignore_index', -100) };
    if (g.text('kind') === 'plain') return { loss: crossEntropy({ logits, labels }, options).loss };
    // position t predicts the label of t + 1
    const n = labels.dim(1);
    const ahead = { logits: slice(logits, 1, 0, n - 1), labels: slice(labels, 1, 1, n), lossWeight: weight && slice(weight, 1, 1, n) };
    return { loss: crossEntropy(ahead, options).loss };
  }),
  kl_batchmean: op((input, g) => {
    const { loss } = klDiv({ student: input('student_logits')!, teacher: input('teacher_logits')! }, { temperature: g.number('temperature', 1) });
    return { loss: scale({ x: loss }, { factor: g.number('alpha', 1) }) };
  }),
  mse_distill: op((input, g) => ({ loss: mse({ pred: input('y_pred')!, target: input('y_true')! }, { factor: g.number('mse_factor', 1000) }) })),
};
