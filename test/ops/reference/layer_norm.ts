import { zeros, type Reference } from '../case.js';

export const layerNorm: Reference = ({ x, weight, bias }, { eps = 1e-5 }) => {
  const n = x!.shape.at(-1)!;
  const y = zeros(x!.shape);
  for (let start = 0; start < x!.data.length; start += n) {
    const row = x!.data.subarray(start, start + n);
    const mean = row.reduce((a, b) => a + b, 0) / n;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / n;
    for (let j = 0; j < n; j++)
      y.data[start + j] = ((row[j]! - mean) / Math.sqrt(variance + Number(eps))) * (weight ? weight.data[j]! : 1) + (bias ? bias.data[j]! : 0);
  }
  return { y };
};
