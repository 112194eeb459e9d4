import { distillLayers } from '../../models/distill.js';
import type { ModelInputs } from '../../models/inputs.js';
import type { VisionLanguageModel } from '../../models/model.js';
import type { Objective } from '../loop.js';

/**
 * Stages 1 and 2 (arXiv 2502.13145, section 3.3): every mixer imitates the attention of the teacher's layer, fed the
 * teacher's hidden state. The two differ in what is trainable only.
 * @param factor of the mean squared error
 */
export function layerObjective(teacher: VisionLanguageModel, student: VisionLanguageModel, { factor }: { factor: number }): Objective<ModelInputs> {
  return {
    inputs: ({ size, length, inputIds, pixelValues, imageFlags }) => teacher.prepare({ size, length, inputIds, pixelValues, imageFlags }),
    gradients: (inputs) => {
      const { loss, gradients } = distillLayers(teacher, student, inputs, { factor });
      return { loss, gradients };
    },
    weight: ({ size }) => size,
  };
}
