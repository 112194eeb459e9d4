import { zeros, type NdArray, type Reference } from '../case.js';

/** Flat index into `a` of a flat index into the broadcast shape. */
function broadcastIndex(flat: number, shape: number[], a: NdArray): number {
  let index = 0;
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    const at = flat % shape[i]!;
    flat = Math.floor(flat / shape[i]!);
    const size = a.shape[i - (shape.length - a.shape.length)];
    if (size === undefined) break;
    if (size > 1) index += at * step;
    step *= size;
  }
  return index;
}

const binary =
  (f: (a: number, b: number) => number): Reference =>
  ({ a, b }) => {
    const rank = Math.max(a!.shape.length, b!.shape.length);
    const size = (x: NdArray, i: number): number => x.shape[i - (rank - x.shape.length)] ?? 1;
    const y = zeros(Array.from({ length: rank }, (_, i) => (size(a!, i) === 1 ? size(b!, i) : size(a!, i))));
    for (let i = 0; i < y.data.length; i++) y.data[i] = f(a!.data[broadcastIndex(i, y.shape, a!)]!, b!.data[broadcastIndex(i, y.shape, b!)]!);
    return { y };
  };

export const add = binary((a, b) => a + b);
export const sub = binary((a, b) => a - b);
export const mul = binary((a, b) => a * b);
export const div = binary((a, b) => a / b);

export const scale: Reference = ({ x }, { factor, shift }) => {
  const y = zeros(x!.shape);
  x!.data.forEach((v, i) => (y.data[i] = v * Number(factor ?? 1) + Number(shift ?? 0)));
  return { y };
};

const functions: Record<string, (x: number) => number> = {
  neg: (x) => -x,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  tanh: Math.tanh,
  softplus: (x) => (x > 30 ? x : Math.log1p(Math.exp(x))),
  square: (x) => x * x,
  abs: Math.abs,
};

export const unary: Reference = ({ x }, { kind }) => {
  const y = zeros(x!.shape);
  x!.data.forEach((v, i) => (y.data[i] = functions[String(kind)]!(v)));
  return { y };
};
