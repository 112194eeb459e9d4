import type { NdArray, Reference } from '../case.js';

const each = (x: NdArray, f: (value: number, i: number) => number): NdArray => ({ shape: x.shape, data: x.data.map(f) });
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** The error function by its series, which terminates in float64; beyond 6 it is 1. */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let total = x;
  for (let n = 1; Math.abs(term) > 1e-20 * Math.abs(total); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    total += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
}

export const silu: Reference = ({ x }) => ({ y: each(x!, (v) => v * sigmoid(v)) });
export const gelu: Reference = ({ x }) => ({ y: each(x!, (v) => (v / 2) * (1 + erf(v / Math.SQRT2))) });
export const swiglu: Reference = ({ a, b }) => ({ y: each(a!, (v, i) => v * sigmoid(v) * b!.data[i]!) });
