import { ints, normal, uniform, values, type Draw, type OpCase } from '../case.js';

const layout = (name: string, shape: number[], order?: number[], draw: (shape: number[]) => Draw = normal): OpCase => ({
  op: 'copy',
  name,
  inputs: { x: { ...draw(shape), ...(order && { order }) } },
});
const into = (name: string, shape: number[], dst?: number[], src?: number[]): OpCase => ({
  op: 'copyInto',
  name,
  inputs: { dst: { ...normal(shape), ...(dst && { order: dst }) }, src: { ...normal(shape), ...(src && { order: src }) } },
});
const cast = (name: string, x: Draw, dtype: string): OpCase => ({
  op: 'cast',
  name,
  inputs: { x },
  attrs: { dtype },
  ...(dtype !== 'f32' && { grads: [] }), // rounding is no smooth function
});
const bytes = (shape: number[]): Draw => ({ kind: 'ints', shape, low: 0, high: 256, dtype: 'u8' });

export const cases: OpCase[] = [
  layout('a scalar', []),
  layout('dense', [3, 5, 7]),
  layout('transposed', [65, 130], [1, 0]),
  layout('transposed, one column', [517, 1], [1, 0]),
  layout('transposed, narrow', [3, 517], [1, 0]),
  layout('channel-last', [2, 33, 65], [0, 2, 1]),
  layout('heads first', [2, 7, 4, 16], [0, 2, 1, 3]),
  layout('reversed axes', [5, 4, 3, 2, 7, 2], [5, 4, 3, 2, 1, 0]),
  layout('several tiles', [130, 200], [1, 0]),
  layout('integers, transposed', [65, 33], [1, 0], (shape) => ints(shape, -1000, 1000)),
  layout('bytes, transposed', [65, 130], [1, 0], bytes),
  layout('nothing', [0, 7], [1, 0]),
  into('dense', [7, 65]),
  into('a permuted source', [7, 65], undefined, [1, 0]),
  into('a permuted target', [2, 17, 33], [1, 2, 0]),
  into('both permuted', [5, 17, 33], [2, 0, 1], [0, 2, 1]),
  into('nothing', [3, 0]),
  cast('to f32', normal([7, 65]), 'f32'),
  cast('to f32, transposed', normal([7, 65], 1, 0, { order: [1, 0] }), 'f32'),
  cast('to bf16', normal([517]), 'bf16'),
  cast('to f16', normal([3, 130]), 'f16'),
  cast('to i32, towards zero', uniform([130], -100, 100), 'i32'),
  cast('to u8, saturated', uniform([130], -300, 600), 'u8'),
  cast('i32 to f32', ints([65], -1000, 1000), 'f32'),
  cast('i32 to u8, saturated', ints([65], -300, 600), 'u8'),
  cast('u8 to f32', bytes([33, 3]), 'f32'),
  cast('u8 to i32', bytes([33]), 'i32'),
  cast('nothing', normal([0]), 'f32'),
  { op: 'fill', name: 'floats', inputs: { x: normal([7, 65]) }, attrs: { value: -2.5 } },
  { op: 'fill', name: 'a permuted tensor', inputs: { x: normal([3, 5, 17], 1, 0, { order: [2, 0, 1] }) }, attrs: { value: 1 } },
  { op: 'fill', name: 'integers that f32 cannot hold', inputs: { x: values([3], [1, 2, 3]) }, attrs: { value: 16777217 } },
  { op: 'fill', name: 'a scalar', inputs: { x: normal([]) }, attrs: { value: 3 } },
];
