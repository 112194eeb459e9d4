export { Parameter, type ComputeDtype, type ParameterOptions, type Placement } from './parameter.js';
export { Module, throwStateProblems, type StateProblems } from './module.js';
export { Embedding, joinRows, Linear, RmsNorm, type LinearOptions } from './layers.js';
export { withGradients, type Gradients } from './gradients.js';
export { constant, linearDefault, normal, ones, xavierUniform, zeros, type Initialiser } from './initialise.js';
