import test from 'ava';
import {
  add, concat, gatherRows, linear, mul, scale, scope, split, sum, Tape, Tensor, type Dtype,
} from '../../lib/index.js';
import { balanced } from './support.js';

const leaf = (data: number[], shape: number[], dtype: Dtype = 'f32'): Tensor => {
  const t = Tensor.from(data, shape, { dtype });
  t.requiresGrad = true;
  return t;
};
const square = (x: Tensor): Tensor => mul({ a: x, b: x });

/** Gradients of `fn` with respect to `wrt`, which it disposes. */
async function gradients(wrt: Tensor[], fn: () => Tensor): Promise<(number[] | null)[]> {
  using tape = new Tape();
  using loss = scope(() => tape.record(fn));
  const grads = tape.backward(loss, wrt);
  const lists: (number[] | null)[] = [];
  for (const g of grads) {
    lists.push(g && [...(await g.toFloat32())]);
    g?.dispose();
  }
  return lists;
}

for (const dtype of ['bf16', 'f16'] as const)
  test.serial(`a ${dtype} weight, whose gradient linear gives in f32, may be used in any other way too`, async (t) => {
    await balanced(t, async () => {
      using w = leaf([1, 2, 3, 4], [2, 2], dtype);
      using v = leaf([5, 6], [1, 2], dtype);
      using x = Tensor.from([1, 1], [1, 2], { dtype });
      using rows = Tensor.from(Int32Array.of(1, 0, 1));
      const by = (weight: Tensor): Tensor => sum({ x: linear({ x, weight }) });
      t.deepEqual(await gradients([w], () => add({ a: by(w), b: sum({ x: square(w) }) })), [[3, 5, 7, 9]]);
      t.deepEqual(await gradients([w], () => add({ a: sum({ x: square(w) }), b: by(w) })), [[3, 5, 7, 9]]);
      t.deepEqual(await gradients([w], () => by(split(w, 0, [1, 1])[0]!)), [[1, 1, 0, 0]]);
      t.deepEqual(await gradients([w, v], () => by(concat({ x: [w, v] }, { axis: 0 }))), [[1, 1, 1, 1], [1, 1]]);
      t.deepEqual(await gradients([w], () => by(square(w))), [[2, 4, 6, 8]]);
      t.deepEqual(await gradients([w], () => by(gatherRows({ x: w, index: rows }))), [[1, 1, 2, 2]]);
      using tape = new Tape();
      using loss = scope(() => tape.record(() => add({ a: by(w), b: by(scale({ x: w }, { factor: 2 })) })));
      const [g] = tape.backward(loss, [w]);
      t.is(g!.dtype, 'f32', 'f32 where all parts are');
      g!.dispose();
    });
  });
