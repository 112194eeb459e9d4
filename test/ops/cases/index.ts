import { ints, normal, values, type OpCase } from '../case.js';

const gather = (name: string, shape: number[], count: number): OpCase => ({
  op: 'gatherRows',
  name,
  inputs: { x: normal(shape), index: ints([count], 0, shape[0]!) },
});
const scatter = (op: string, name: string, shape: number[], index: number[]): OpCase => ({
  op,
  name,
  inputs: { x: normal(shape), index: values([index.length], index), src: normal([index.length, ...shape.slice(1)]) },
});
const concat = (name: string, shapes: number[][], axis: number, order?: number[]): OpCase => ({
  op: 'concat',
  name,
  inputs: { x: shapes.map((shape) => ({ ...normal(shape), ...(order && { order }) })) },
  attrs: { axis },
});

export const cases: OpCase[] = [
  gather('one of one', [1, 1], 1),
  gather('repeated rows', [7, 65], 130),
  gather('few of many', [517, 33], 5),
  gather('numbers', [65], 17),
  gather('rows of matrices', [5, 3, 16], 7),
  gather('none', [5, 7], 0),
  ...['scatterRows', 'scatterAddRows'].flatMap((op) => [
    scatter(op, 'one into one', [1, 1], [0]),
    scatter(op, 'distinct rows', [17, 65], [3, 0, 16, 7]),
    scatter(op, 'repeated rows', [7, 33], [2, 5, 2, 2, 0, 5]),
    scatter(op, 'rows of matrices', [5, 3, 16], [4, 1]),
    scatter(op, 'none', [5, 7], []),
  ]),
  concat('one', [[3, 5]], 0),
  concat('rows', [[1, 65], [7, 65], [3, 65]], 0),
  concat('columns', [[5, 1], [5, 130], [5, 16]], -1),
  concat('in the middle', [[2, 3, 16], [2, 7, 16]], 1),
  concat('permuted', [[5, 17], [5, 33]], 1, [1, 0]),
  concat('with an empty one', [[3, 4], [0, 4], [2, 4]], 0),
];
