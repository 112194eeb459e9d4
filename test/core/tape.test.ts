import test from 'ava';
import {
  add, checkpoint, concat, copyInto, gatherRows, linear, mul, noGrad, reshape, scale, scope, slice, split, sum, Tape, Tensor, type Dtype,
} from '../../lib/index.js';
import { balanced, fails } from './support.js';

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

test.serial('a backward that throws drops everything, and the tape says so', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    for (const failing of ['rule', 'start']) {
      const tape = new Tape();
      using loss = scope(() =>
        tape.record(() => {
          const y = square(x);
          const out = y.aliased(y.shape, y.strides, 0);
          tape.recordNode([y], [out], [y], () => {
            Tensor.zeros([1]);
            throw new Error('no rule');
          });
          return failing === 'rule' ? sum({ x: square(out) }) : square(out);
        }),
      );
      t.throws(() => tape.backward(loss, [x]), { message: failing === 'rule' ? 'no rule' : /starts from one element/ });
      await fails(t, () => tape.backward(loss, [x]), 'ERR_DISPOSED', /tape was used up/);
    }
  });
});

test.serial('record refuses an async function', async (t) => {
  await balanced(t, async () => {
    using tape = new Tape();
    await fails(t, () => tape.record(async () => Promise.resolve()), 'ERR_ARGUMENT', /record\(\) takes a synchronous function/);
  });
});

test.serial('backward gives the gradients of intermediates that are asked for', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    using tape = new Tape();
    let middle: Tensor | undefined;
    using loss = scope(() =>
      tape.record(() => {
        middle = square(x);
        return sum({ x: square(middle) });
      }),
    );
    const grads = tape.backward(loss, [middle!, x, loss]);
    t.deepEqual(await Promise.all(grads.map(async (g) => [...(await g!.toFloat32())])), [[2, 8], [4, 32], [1]]);
    for (const g of grads) g!.dispose();
  });
});

test.serial('a checkpoint that returns an input, or something else that exists, passes its gradient on', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    using one = Tensor.from([1, 1]);
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(([a]) => a!, [x]) })), [[1, 1]]);
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(([a]) => a!, [square(x)]) })), [[2, 4]]);
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(() => x, [one]) })), [[1, 1]]);
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(() => one, [x]) })), [null]);
  });
});

test.serial('a checkpoint passes gradients to what its function reads beside the inputs', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    using w = leaf([3, 4], [2]);
    const cube = [[3, 12]];
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(([a]) => mul({ a: square(a!), b: x }), [x]) })), cube, 'the input itself');
    t.deepEqual(await gradients([x, w], () => scope(() => {
      const result = square(x);
      return sum({ x: checkpoint(([a]) => mul({ a: a!, b: mul({ a: result, b: w }) }), [x]) });
    })), [[9, 48], [1, 8]], 'a result of the tape whose scope is closed');
    t.deepEqual(await gradients([x], () => {
      const result = square(x);
      return sum({ x: checkpoint(([a]) => checkpoint(([b]) => mul({ a: b!, b: result }), [scale({ x: a! }, { factor: 1 })]), [x]) });
    }), cube, 'a result of the tape around two checkpoints');
    t.deepEqual(await gradients([x], () => sum({ x: checkpoint(([a]) => {
      const inside = square(a!);
      return checkpoint(([b]) => mul({ a: b!, b: inside }), [a!]);
    }, [x]) })), cube, 'a result of the checkpoint around it');
  });
});

test.serial('a checkpoint whose function throws during backward leaves nothing behind', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    using tape = new Tape();
    let runs = 0;
    using loss = scope(() =>
      tape.record(() =>
        sum({ x: checkpoint(([a]) => {
          if (runs++) throw new Error('the second time');
          return square(square(a!));
        }, [x]) }),
      ),
    );
    t.throws(() => tape.backward(loss, [x]), { message: 'the second time' });
  });
});

test.serial('writing a tracked tensor in place is refused where its gradient would be lost', async (t) => {
  await balanced(t, async () => {
    using x = leaf([1, 2], [2]);
    using buffer = Tensor.zeros([2, 2]);
    const write = (src: Tensor): void => copyInto({ dst: reshape(slice(buffer, 0, 0, 1), [2]), src });
    using tape = new Tape();
    const refused = (fn: () => void): Promise<unknown> =>
      fails(t, () => scope(() => tape.record(fn)), 'ERR_ARGUMENT', /copyInto: src leads back to a tensor with requiresGrad.*noGrad/);
    await refused(() => write(x));
    await refused(() => write(square(x)));
    await refused(() => checkpoint(([a]) => {
      write(a!);
      return a!;
    }, [x]));
    t.deepEqual([...(await buffer.toFloat32())], [0, 0, 0, 0]);
    scope(() => tape.record(() => noGrad(() => write(x))));
    scope(() => tape.record(() => write(Tensor.from([5, 6]))));
    t.deepEqual([...(await buffer.toFloat32())], [5, 6, 0, 0]);
  });
});
