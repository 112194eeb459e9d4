import type { Random } from '../tensor/random.js';

/** Draws the initial values of a parameter of the given shape. */
export type Initialiser = (random: Random, shape: readonly number[]) => Float32Array;

const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
/** Inputs that one output of a (out, in, ...) weight sums over. */
const fanIn = (shape: readonly number[]): number => sizeOf(shape.slice(1));

export function constant(value: number): Initialiser {
  return (_, shape) => new Float32Array(sizeOf(shape)).fill(value);
}
export const zeros: Initialiser = constant(0);
export const ones: Initialiser = constant(1);

export function normal(std: number): Initialiser {
  return (random, shape) => random.fill(sizeOf(shape), (r) => r.normal(0, std));
}

/** Uniform in ±1/sqrt(fan in): the default of torch.nn.Linear and Conv1d, for weights and, with `inputs` given, biases. */
export function linearDefault(inputs?: number): Initialiser {
  return (random, shape) => {
    const bound = 1 / Math.sqrt(inputs ?? fanIn(shape));
    return random.fill(sizeOf(shape), (r) => r.uniform(-bound, bound));
  };
}

/** Uniform in ±gain sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010). */
export function xavierUniform(gain: number): Initialiser {
  return (random, shape) => {
    const bound = gain * Math.sqrt(6 / (fanIn(shape) + shape[0]! * sizeOf(shape.slice(2))));
    return random.fill(sizeOf(shape), (r) => r.uniform(-bound, bound));
  };
}
