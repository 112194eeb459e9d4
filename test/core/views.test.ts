import test from 'ava';
import { concat, mul, noGrad, permute, reshape, scale, slice, split, sum, Tape, Tensor, transpose, checkpoint, scope } from '../../lib/index.js';
import { balanced, fails } from './support.js';

const counting = (shape: number[]): Tensor => Tensor.from(Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i), shape);
const list = async (x: Tensor): Promise<number[]> => [...(await x.toFloat32())];

test.serial('reshape, permute, transpose, slice and split show the right elements', async (t) => {
  await balanced(t, () => scoped(async (keep) => {
    const x = keep(counting([2, 3, 4]));
    t.deepEqual(await list(keep(permute(x, [2, 0, 1]))), [0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19, 23]);
    t.deepEqual(await list(keep(slice(x, 1, -2, 3))), [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]);
    t.deepEqual(await list(keep(slice(keep(transpose(x, 0, 2)), 0, 1, 2))), [1, 13, 5, 17, 9, 21]);
    const parts = split(x, 2, [1, 3]);
    parts.forEach(keep);
    t.deepEqual(await list(parts[0]!), [0, 4, 8, 12, 16, 20]);
    t.deepEqual(parts[1]!.shape, [2, 3, 3]);
    t.deepEqual(keep(reshape(x, [4, -1])).shape, [4, 6]);
    // a permuted layout cannot be shown flat: it is copied
    t.deepEqual(await list(keep(reshape(keep(transpose(keep(counting([2, 3])), 0, 1)), [6]))), [0, 3, 1, 4, 2, 5]);
    // splitting an axis of a permuted view needs no copy
    const split4 = keep(reshape(keep(permute(x, [2, 0, 1])), [2, 2, 2, 3]));
    t.deepEqual(await list(split4), await list(keep(permute(x, [2, 0, 1]))));
  }));
});

/** Gradient of sum(f(x) * f(x)) / 2 = J^T f(x), for an f that only moves elements. */
async function moved(x: Tensor, f: (x: Tensor) => Tensor): Promise<number[]> {
  x.requiresGrad = true;
  using tape = new Tape();
  using loss = scope(() => tape.record(() => {
    const y = f(x);
    return scale({ x: sum({ x: mul({ a: y, b: y }) }) }, { factor: 0.5 });
  }));
  const [g] = tape.backward(loss, [x]);
  const out = await list(g!);
  g!.dispose();
  return out;
}

test.serial('views pass gradients back', async (t) => {
  await balanced(t, async () => {
    using x = counting([2, 3, 4]);
    const all = await list(x);
    t.deepEqual(await moved(x, (v) => reshape(v, [6, 4])), all);
    t.deepEqual(await moved(x, (v) => permute(v, [1, 2, 0])), all);
    t.deepEqual(await moved(x, (v) => reshape(permute(v, [2, 1, 0]), [-1])), all);
    t.deepEqual(await moved(x, (v) => slice(v, 1, 1, 3)), all.map((n) => (n % 12 < 4 ? 0 : n)));
    t.deepEqual(await moved(x, (v) => split(v, 2, [1, 2, 1])[1]!), all.map((n) => (n % 4 === 1 || n % 4 === 2 ? n : 0)));
    t.deepEqual(await moved(x, (v) => concat({ x: split(v, 1, [1, 2]) }, { axis: 1 })), all);
    t.deepEqual(await moved(x, (v) => concat({ x: [v, v] }, { axis: 0 })), all.map((n) => 2 * n));
  });
});

test.serial('a checkpoint computes again and gives the same gradients', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.from([0.5, -1, 2]);
    using w = Tensor.from([1, 2, 3]);
    x.requiresGrad = w.requiresGrad = true;
    const layer = (v: Tensor): Tensor => mul({ a: mul({ a: v, b: w }), b: v });
    const results: number[][] = [];
    for (const kept of [true, false]) {
      using tape = new Tape();
      const again = (v: Tensor): Tensor => checkpoint(([input]) => layer(input!), [v]);
      using loss = scope(() => tape.record(() => sum({ x: kept ? layer(layer(x)) : again(again(x)) })));
      const grads = tape.backward(loss, [x, w]);
      for (const g of grads) {
        results.push(await list(g!));
        g!.dispose();
      }
    }
    t.deepEqual(results.slice(2), results.slice(0, 2));
  });
});

test.serial('noGrad records nothing, and a loss off the tape has no gradient', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.from([1, 2]);
    x.requiresGrad = true;
    using tape = new Tape();
    using loss = scope(() => tape.record(() => noGrad(() => sum({ x: mul({ a: x, b: x }) }))));
    t.deepEqual(tape.backward(loss, [x]), [null]);
    await fails(t, () => tape.backward(loss, [x]), 'ERR_DISPOSED', /tape was used up/);
  });
});

test.serial('backward starts from one element unless the upstream gradient is given', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.from([1, 2]);
    x.requiresGrad = true;
    {
      using tape = new Tape();
      using y = tape.record(() => scale({ x }, { factor: 2 }));
      await fails(t, () => tape.backward(y, [x]), 'ERR_SHAPE', /starts from one element; the shape is \[2\]/);
    }
    using tape = new Tape();
    using y = tape.record(() => scale({ x }, { factor: 2 }));
    using up = Tensor.from([3, 4]);
    const [g] = tape.backward(y, [x], up);
    t.deepEqual(await list(g!), [6, 8]);
    g!.dispose();
  });
});

async function scoped(body: (keep: (x: Tensor) => Tensor) => Promise<void>): Promise<void> {
  const kept: Tensor[] = [];
  try {
    await body((x) => {
      kept.push(x);
      return x;
    });
  } finally {
    for (const x of kept) x.dispose();
  }
}
