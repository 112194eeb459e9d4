import { distillLogits } from '../../models/distill.js';
import type { VisionLanguageModel } from '../../models/model.js';
import { Tensor } from '../../tensor/tensor.js';
import type { KlStage } from '../config.js';
import type { Objective } from '../loop.js';
import { countedPositions } from '../positions.js';

/** Stage 3 (arXiv 2502.13145, section 3.3): the student's logits imitate the teacher's, end to end. */
export function logitObjective(
  teacher: VisionLanguageModel,
  student: VisionLanguageModel,
  { temperature, positions, reduction }: Pick<KlStage, 'temperature' | 'positions' | 'reduction'>,
): Objective {
  return {
    gradients: (rows) => {
      const { size, length, inputIds, pixelValues, imageFlags } = rows;
      const counted = countedPositions(rows, positions);
      const { loss, gradients } = distillLogits(teacher, student, teacher.prepare({ size, length, inputIds, pixelValues, imageFlags }), {
        temperature,
        positions: counted === null ? undefined : Tensor.from(counted, [counted.length], { device: teacher.placement.device }),
        divisor: reduction === 'batch' ? size : (counted?.length ?? size * length),
      });
      return { loss, gradients };
    },
    weight: (rows) => (reduction === 'batch' ? rows.size : (countedPositions(rows, positions)?.length ?? rows.size * rows.length)),
  };
}
