import { ints, normal, values, type OpCase } from '../case.js';

const lookup = (name: string, vocabulary: number, width: number, ids: OpCase['inputs'][string]): OpCase => ({
  op: 'embedding',
  name,
  inputs: { weight: normal([vocabulary, width]), ids },
});

export const cases: OpCase[] = [
  lookup('one id, one column', 1, 1, values([1], [0])),
  lookup('a scalar id', 9, 7, values([], [4])),
  lookup('repeated ids', 5, 33, values([2, 4], [3, 3, 0, 3, 4, 3, 0, 3])),
  lookup('many ids', 37, 65, ints([3, 130], 0, 37)),
  lookup('wide rows', 11, 517, ints([7], 0, 11)),
  lookup('no ids', 11, 16, ints([0, 5], 0, 11)),
];
