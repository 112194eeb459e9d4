import { normal, type Draw, type OpCase } from '../case.js';

const shapes: [string, number[], number[]?][] = [
  ['one element', [1]],
  ['7 elements', [7]],
  ['65 x 33', [65, 33]],
  ['517 elements', [517]],
  ['three axes', [3, 130, 5]],
  ['transposed', [20, 33], [1, 0]],
  ['rows in another order', [5, 7, 33], [1, 0, 2]],
  ['empty', [0, 8]],
];

export const cases: OpCase[] = shapes.flatMap(([name, shape, order]): OpCase[] => {
  const draw = (): Draw => normal(shape, 3, 0, { order });
  return [
    { op: 'silu', name, inputs: { x: draw() } },
    { op: 'gelu', name, inputs: { x: draw() } },
    { op: 'swiglu', name, inputs: { a: draw(), b: draw() } },
    ...(order ? [{ op: 'swiglu', name: `${name}, b dense`, inputs: { a: draw(), b: normal(shape) } }] : []),
  ];
});
