import { zeros, type NdArray, type Reference } from '../case.js';

/** The last two axes swapped. */
function transposed(x: NdArray): NdArray {
  const [rows, cols] = x.shape.slice(-2) as [number, number];
  const t = zeros([...x.shape.slice(0, -2), cols, rows]);
  for (let i = 0; i < x.data.length; i++) {
    const matrix = Math.floor(i / (rows * cols));
    const row = Math.floor(i / cols) % rows;
    t.data[matrix * rows * cols + (i % cols) * rows + row] = x.data[i]!;
  }
  return t;
}

export const matmul: Reference = ({ a, b }, { transposeA, transposeB }) => {
  const left = transposeA ? transposed(a!) : a!;
  const right = transposeB ? transposed(b!) : b!;
  const [m, k] = left.shape.slice(-2) as [number, number];
  const n = right.shape.at(-1)!;
  const rank = Math.max(left.shape.length, right.shape.length) - 2;
  const batch = (x: NdArray): number[] => [...new Array<number>(rank + 2 - x.shape.length).fill(1), ...x.shape.slice(0, -2)];
  const batches = batch(left).map((size, i) => (size === 1 ? batch(right)[i]! : size));
  const y = zeros([...batches, m, n]);
  /** Which matrix of x belongs to matrix number `index` of y. */
  const matrixOf = (x: NdArray, index: number): number => {
    const sizes = batch(x);
    let at = 0;
    let step = 1;
    for (let i = rank - 1; i >= 0; i--) {
      if (sizes[i]! > 1) at += (index % batches[i]!) * step;
      step *= sizes[i]!;
      index = Math.floor(index / batches[i]!);
    }
    return at;
  };
  for (let matrix = 0; matrix * m * n < y.data.length; matrix++) {
    const fromLeft = matrixOf(left, matrix) * m * k;
    const fromRight = matrixOf(right, matrix) * k * n;
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) sum += left.data[fromLeft + i * k + p]! * right.data[fromRight + p * n + j]!;
        y.data[(matrix * m + i) * n + j] = sum;
      }
  }
  return { y };
};
