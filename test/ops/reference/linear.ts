import { zeros, type Reference } from '../case.js';

/** Error function by its Taylor series, and near 1 by the continued fraction of erfc. */
function erf(x: number): number {
  const a = Math.abs(x);
  if (a > 3) {
    let f = a;
    for (let k = 80; k > 0; k--) f = a + k / 2 / f;
    return Math.sign(x) * (1 - Math.exp(-a * a) / (f * Math.sqrt(Math.PI)));
  }
  let term = x;
  let sum = x;
  for (let n = 1; n < 80; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const activations: Record<string, (x: number) => number> = {
  none: (x) => x,
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  silu: (x) => x / (1 + Math.exp(-x)),
};

export const linear: Reference = ({ x, weight, bias, residual }, { activation = 'none' }) => {
  const [n, k] = weight!.shape as [number, number];
  const y = zeros([...x!.shape.slice(0, -1), n]);
  const act = activations[String(activation)]!;
  for (let row = 0; row * n < y.data.length; row++)
    for (let j = 0; j < n; j++) {
      let z = bias ? bias.data[j]! : 0;
      for (let p = 0; p < k; p++) z += x!.data[row * k + p]! * weight!.data[j * k + p]!;
      y.data[row * n + j] = act(z) + (residual ? residual.data[row * n + j]! : 0);
    }
  return { y };
};
