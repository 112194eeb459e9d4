import { normal, type Draw, type OpCase } from '../case.js';

const over = (op: string, name: string, x: Draw, attrs: OpCase['attrs'] = {}): OpCase => ({ op, name, inputs: { x }, attrs });
const family = (op: string): OpCase[] => [
  over(op, 'a scalar', normal([], 1, 2)),
  over(op, 'all', normal([7, 65], 1, 0.5)),
  over(op, 'all, kept', normal([3, 5, 17], 1, 0.5), { keepDims: true }),
  over(op, 'all of many', normal([130, 517], 1, 0.5)),
  over(op, 'last axis', normal([33, 130], 1, 0.5), { axis: -1 }),
  over(op, 'first axis', normal([517, 33], 1, 0.5), { axis: 0 }),
  over(op, 'middle axis, kept', normal([2, 65, 7], 1, 0.5), { axis: 1, keepDims: true }),
  over(op, 'an axis of one', normal([7, 1, 5]), { axis: 1 }),
  over(op, 'permuted', normal([5, 17, 65], 1, 0.5, { order: [2, 0, 1] }), { axis: 1 }),
  over(op, 'all of a permuted one', normal([17, 65], 1, 0.5, { order: [1, 0] })),
  over(op, 'no rows', normal([0, 7]), { axis: 1 }),
];

export const cases: OpCase[] = [...family('sum'), ...family('mean'), ...family('max'), over('sum', 'over nothing', normal([7, 0]), { axis: 1 })];
