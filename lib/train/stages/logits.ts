import { distillLogits } from '../../models/distill.js';
import type { ModelInputs } from '../../models/inputs.js';
import type { VisionLanguageModel } from '../../models/model.js';
import { Tensor } from '../../tensor/tensor.js';
import type { KlStage } from '../config.js';
import type { Objective } from '../loop.js';
import { countedPositions, padded } from '../positions.js';

export interface LogitInputs {
  inputs: ModelInputs;
  /** i32 (M) flat positions that count, f32 (M) how much; null where all do */
  counted: { positions: Tensor; mask: Tensor } | null;
  divisor: number;
}

/** Stage 3 (arXiv 2502.13145, section 3.3): the student's logits imitate the teacher's, end to end. */
export function logitObjective(
  teacher: VisionLanguageModel,
  student: VisionLanguageModel,
  { temperature, positions, reduction }: Pick<KlStage, 'temperature' | 'positions' | 'reduction'>,
): Objective<LogitInputs> {
  const { device } = teacher.placement;
  return {
    inputs: (rows) => {
      const { size, length, inputIds, pixelValues, imageFlags } = rows;
      const inputs = teacher.prepare({ size, length, inputIds, pixelValues, imageFlags });
      const at = countedPositions(rows, positions);
      if (at === null) return { inputs, counted: null, divisor: reduction === 'batch' ? size : size * length };
      const all = padded(at, size, 0);
      const mask = new Float32Array(all.length).fill(reduction === 'batch' ? 1 : size / at.length, 0, at.length);
      const counted = { positions: Tensor.from(all, [all.length], { device }), mask: Tensor.from(mask, [mask.length], { device }) };
      return { inputs, counted, divisor: size };
    },
    gradients: ({ inputs, counted, divisor }) => {
      const { loss, gradients } = distillLogits(teacher, student, inputs, { temperature, ...counted, divisor });
      return { loss, gradients };
    },
    weight: (rows) => (reduction === 'batch' ? rows.size : (countedPositions(rows, positions)?.length ?? rows.size * rows.length)),
  };
}
