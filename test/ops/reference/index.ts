import { zeros, type NdArray, type Reference } from '../case.js';

const rowSize = (x: NdArray): number => x.shape.slice(1).reduce((a, b) => a * b, 1);

export const gatherRows: Reference = ({ x, index }) => {
  const n = rowSize(x!);
  const y = zeros([index!.shape[0]!, ...x!.shape.slice(1)]);
  index!.data.forEach((row, m) => y.data.set(x!.data.subarray(row * n, (row + 1) * n), m * n));
  return { y };
};

export const scatterRows: Reference = ({ x, index, src }) => {
  const n = rowSize(x!);
  const y = { shape: x!.shape, data: x!.data.slice() };
  index!.data.forEach((row, m) => y.data.set(src!.data.subarray(m * n, (m + 1) * n), row * n));
  return { y };
};

export const scatterAddRows: Reference = ({ x, index, src }) => {
  const n = rowSize(x!);
  const y = { shape: x!.shape, data: x!.data.slice() };
  index!.data.forEach((row, m) => {
    for (let j = 0; j < n; j++) y.data[row * n + j]! += src!.data[m * n + j]!;
  });
  return { y };
};

export const concat: Reference = (inputs, { axis = 0 }) => {
  const list = inputs['x[]']!;
  const rank = list[0]!.shape.length;
  const at = Number(axis) < 0 ? Number(axis) + rank : Number(axis);
  const y = zeros(list[0]!.shape.map((d, i) => (i === at ? list.reduce((sum, x) => sum + x.shape[at]!, 0) : d)));
  const inner = y.shape.slice(at + 1).reduce((a, b) => a * b, 1);
  const outer = y.shape.slice(0, at).reduce((a, b) => a * b, 1);
  let position = 0;
  for (let o = 0; o < outer; o++)
    for (const x of list) {
      const size = x.shape[at]! * inner;
      y.data.set(x.data.subarray(o * size, (o + 1) * size), position);
      position += size;
    }
  return { y };
};
