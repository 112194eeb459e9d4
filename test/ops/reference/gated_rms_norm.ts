import { zeros, type Reference } from '../case.js';
import { rmsNorm } from './rms_norm.js';

export const gatedRmsNorm: Reference = ({ x, gate, weight }, { eps = 1e-5 }) => {
  const normed = rmsNorm({ x, weight } as Parameters<Reference>[0], { eps })['y']!;
  const y = zeros(x!.shape);
  for (let i = 0; i < y.data.length; i++) {
    const g = gate!.data[i]!;
    y.data[i] = (normed.data[i]! * g) / (1 + Math.exp(-g));
  }
  return { y };
};
