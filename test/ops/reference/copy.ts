import { zeros, type NdArray, type Reference } from '../case.js';
import { rounded } from '../draw.js';
import type { Dtype } from '../../../lib/tensor/dtype.js';

const copied = (x: NdArray): NdArray => ({ shape: [...x.shape], data: x.data.slice() });

export const copy: Reference = ({ x }) => ({ y: copied(x!) });

export const copyInto: Reference = ({ src }) => ({ dst: copied(src!) });

const limits: Record<string, [number, number]> = { i32: [-(2 ** 31), 2 ** 31 - 1], u8: [0, 255] };

export const cast: Reference = ({ x }, { dtype }) => {
  const y = copied(x!);
  const limit = limits[String(dtype)];
  y.data.forEach((v, i) => {
    // f32 holds every drawn value as it is; rounding would only blur finite differences
    y.data[i] = limit ? Math.min(Math.max(Math.trunc(v), limit[0]), limit[1]) : dtype === 'f32' ? v : rounded(v, dtype as Dtype);
  });
  return { y };
};

export const fill: Reference = ({ x }, { value }) => {
  const filled = zeros(x!.shape);
  filled.data.fill(Number(value));
  return { x: filled };
};
