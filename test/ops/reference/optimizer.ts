import { zeros, type NdArray, type Reference } from '../case.js';

export const adamW: Reference = (inputs, attrs) => {
  const [lr, beta1, beta2, eps, decay, step] = (
    [['lr', 1e-3], ['beta1', 0.9], ['beta2', 0.999], ['eps', 1e-8], ['weightDecay', 0.01], ['step', 1]] as const
  ).map(([name, value]) => Number(attrs[name] ?? value)) as [number, number, number, number, number, number];
  const scale = inputs['gradScale']?.data[0] ?? 1;
  const out: Record<string, NdArray> = {};
  inputs['params[]']!.forEach((params, i) => {
    const p = zeros(params.shape);
    const m = zeros(params.shape);
    const v = zeros(params.shape);
    for (let j = 0; j < p.data.length; j++) {
      const g = inputs['grads[]']![i]!.data[j]! * scale;
      m.data[j] = beta1 * inputs['expAvg[]']![i]!.data[j]! + (1 - beta1) * g;
      v.data[j] = beta2 * inputs['expAvgSq[]']![i]!.data[j]! + (1 - beta2) * g * g;
      const mean = m.data[j]! / (1 - beta1 ** step);
      const square = v.data[j]! / (1 - beta2 ** step);
      p.data[j] = params.data[j]! * (1 - lr * decay) - (lr * mean) / (Math.sqrt(square) + eps);
    }
    out[`params[${i}]`] = p;
    out[`expAvg[${i}]`] = m;
    out[`expAvgSq[${i}]`] = v;
    if (inputs['compute[]']) out[`compute[${i}]`] = p;
  });
  return out;
};

export const gradNorm: Reference = (inputs, { maxNorm = 0 }) => {
  const squares = inputs['grads[]']!.reduce((sum, g) => sum + g.data.reduce((s, v) => s + v * v, 0), 0);
  const norm = Math.sqrt(squares);
  const scale = Number(maxNorm) > 0 ? Math.min(1, Number(maxNorm) / (norm + 1e-6)) : 1;
  return { norm: { shape: [], data: Float64Array.of(norm) }, scale: { shape: [], data: Float64Array.of(scale) } };
};
