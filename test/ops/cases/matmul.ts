import { normal, type Draw, type OpCase } from '../case.js';

const product = (name: string, a: number[], b: number[], attrs: OpCase['attrs'] = {}, orders: { a?: number[]; b?: number[] } = {}): OpCase => {
  const drawn = (shape: number[], order?: number[]): Draw => normal(shape, 1, 0, order ? { order } : {});
  return { op: 'matmul', name, inputs: { a: drawn(a, orders.a), b: drawn(b, orders.b) }, attrs: { transposeA: false, transposeB: false, ...attrs } };
};

export const cases: OpCase[] = [
  product('one by one', [1, 1], [1, 1]),
  product('odd', [7, 65], [65, 33]),
  product('a transposed', [65, 7], [65, 33], { transposeA: true }),
  product('b transposed', [7, 65], [33, 65], { transposeB: true }),
  product('both transposed', [65, 7], [33, 65], { transposeA: true, transposeB: true }),
  product('row by matrix', [1, 130], [130, 65]),
  product('row by transposed matrix', [1, 130], [65, 130], { transposeB: true }),
  product('matrix by column', [65, 130], [130, 1]),
  product('outer product', [65, 1], [1, 33]),
  product('several blocks', [300, 40], [40, 600]),
  product('long sum', [20, 1100], [1100, 30]),
  product('batched', [2, 3, 17, 20], [2, 3, 20, 9]),
  product('batched, both transposed', [3, 20, 17], [3, 9, 20], { transposeA: true, transposeB: true }),
  product('b without batch', [2, 3, 17, 20], [20, 9]),
  product('b without batch, transposed', [3, 17, 20], [9, 20], { transposeB: true }),
  product('a transposed, b without batch', [3, 20, 17], [20, 9], { transposeA: true }),
  product('a without batch', [17, 20], [2, 3, 20, 9]),
  product('a without batch, both transposed', [20, 17], [2, 3, 9, 20], { transposeA: true, transposeB: true }),
  product('one row a batch', [5, 1, 20], [20, 9]),
  product('batch axes broadcast against each other', [4, 1, 7, 5], [3, 5, 6]),
  product('heads inside rows', [2, 3, 17, 20], [2, 3, 9, 20], { transposeB: true }, { a: [0, 2, 1, 3], b: [0, 2, 1, 3] }),
  product('a column-major', [17, 20], [20, 9], {}, { a: [1, 0] }),
  product('empty batch', [0, 7, 5], [5, 3]),
  product('no rows', [0, 5], [5, 3]),
  product('empty sum', [4, 0], [0, 3]),
];
