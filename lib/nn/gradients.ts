import { Tape } from '../autograd/tape.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Parameter } from './parameter.js';

/** Gradients by parameter, f32; parameters that the loss does not depend on are absent. */
export type Gradients = Map<Parameter, Tensor>;

/**
 * Records `fn` and computes the gradients of its loss with respect to the trainable ones of `parameters`. What `fn`
 * returns beside the loss is handed through. All tensors of the result belong to the enclosing scope.
 */
export function withGradients<T extends { loss: Tensor }>(parameters: readonly Parameter[], fn: () => T): T & { gradients: Gradients } {
  return scope(() => {
    using tape = new Tape();
    const result = tape.record(() => scope(fn));
    const wanted = parameters.filter((p) => p.trainable);
    const found = tape.backward(result.loss, wanted.map((p) => p.value));
    const gradients: Gradients = new Map();
    wanted.forEach((p, i) => {
      const g = found[i];
      if (g) gradients.set(p, g);
    });
    return { ...result, gradients };
  });
}
