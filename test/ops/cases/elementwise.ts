import { normal, uniform, type Draw, type OpCase } from '../case.js';

const binary = (op: string, name: string, a: Draw, b: Draw): OpCase => ({ op, name, inputs: { a, b } });
const pairs = (op: string, second: (shape: number[], extra?: Partial<Draw>) => Draw): OpCase[] => [
  binary(op, 'equal shapes', normal([3, 5, 65]), second([3, 5, 65])),
  binary(op, 'one element', normal([1]), second([1])),
  binary(op, 'a row for every row', normal([130, 33]), second([33])),
  binary(op, 'a column for every column', normal([7, 65]), second([7, 1])),
  binary(op, 'a scalar', normal([517]), second([])),
  binary(op, 'a grows', normal([65]), second([7, 65])),
  binary(op, 'both grow', normal([7, 1, 5]), second([3, 1])),
  binary(op, 'axes in between', normal([2, 7, 3, 16]), second([2, 1, 3, 16])),
  binary(op, 'many rows into one', normal([517, 4]), second([4])),
  binary(op, 'permuted', normal([7, 65], 1, 0, { order: [1, 0] }), second([7, 65])),
  binary(op, 'both permuted', normal([2, 5, 17], 1, 0, { order: [0, 2, 1] }), second([2, 5, 17], { order: [2, 1, 0] })),
  binary(op, 'nothing', normal([0, 7]), second([7])),
];
const near1 = (shape: number[], extra: Partial<Draw> = {}): Draw => uniform(shape, 0.5, 2, extra);
const any = (shape: number[], extra: Partial<Draw> = {}): Draw => normal(shape, 1, 0, extra);

const unary = (kind: string, x: Draw): OpCase => ({ op: 'unary', name: `${kind} of [${x.shape.join(', ')}]`, inputs: { x }, attrs: { kind } });

export const cases: OpCase[] = [
  ...pairs('add', any),
  ...pairs('sub', any),
  ...pairs('mul', any),
  ...pairs('div', near1),
  { op: 'scale', name: 'factor and shift', inputs: { x: normal([7, 65]) }, attrs: { factor: 1.5, shift: -0.25 } },
  { op: 'scale', name: 'a permuted tensor', inputs: { x: normal([3, 17, 5], 1, 0, { order: [2, 1, 0] }) }, attrs: { factor: -2, shift: 0 } },
  { op: 'scale', name: 'nothing', inputs: { x: normal([0]) }, attrs: { factor: 2, shift: 1 } },
  ...['neg', 'exp', 'sigmoid', 'tanh', 'softplus', 'square', 'abs'].flatMap((kind) => [unary(kind, normal([1])), unary(kind, normal([7, 65], 2))]),
  ...['log', 'sqrt'].flatMap((kind) => [unary(kind, near1([1])), unary(kind, near1([7, 65]))]),
  unary('tanh', normal([130], 0.01)),
  unary('softplus', normal([130], 30)),
  unary('exp', normal([5, 17], 1, 0, { order: [1, 0] })),
  unary('sigmoid', normal([0, 3])),
];
