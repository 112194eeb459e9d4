import test from 'ava';
import { readFileSync } from 'node:fs';
import { add, backends, concat, gatherRows, Graph, linear, MmError, permute, posEmbedBicubic, reshape, rmsNorm, scale, slice, split, sync, Tensor } from '../../lib/index.js';
import { run } from '../../lib/tensor/run.js';
import { Scope } from '../../lib/tensor/scope.js';
import { balanced, fails, runScript } from './support.js';

test.serial('a wrong shape names the operand, its shape and the right one', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.zeros([2, 8]);
    using weight = Tensor.zeros([7]);
    await fails(t, () => rmsNorm({ x, weight }), 'ERR_SHAPE', /rmsNorm: weight has shape \[7\]; expected .*\[8\]/);
    await fails(t, () => add({ a: x, b: weight }), 'ERR_SHAPE', /add: .*\[2, 8\].*\[7\]|add: .*\[7\].*\[2, 8\]/);
  });
});

test.serial('a wrong dtype names the operand and the dtypes it takes', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.zeros([2], { dtype: 'i32' });
    using y = Tensor.zeros([2]);
    using z = Tensor.zeros([2], { dtype: 'bf16' });
    await fails(t, () => scale({ x }, { factor: 1 }), 'ERR_DTYPE', /scale: x is i32; expected one of f32, bf16, f16/);
    await fails(t, () => add({ a: y, b: z }), 'ERR_DTYPE', /add: b is bf16; expected the dtype of a, f32/);
    await fails(t, () => Tensor.zeros([2], { dtype: 'f64' as 'f32' }), 'ERR_DTYPE', /unknown dtype 'f64'; expected one of f32, bf16/);
  });
});

test.serial('operands and options are checked by name', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.zeros([2]);
    await fails(t, () => run('rmsNorm', { x }), 'ERR_ARGUMENT', /rmsNorm: weight is missing: \(C\)/);
    await fails(t, () => run('rmsNorm', { x, wieght: x }), 'ERR_ARGUMENT', /rmsNorm: unknown operand 'wieght'; it takes x, weight/);
    await fails(t, () => run('rmsNorm', { x: 3 as never, weight: x }), 'ERR_ARGUMENT', /rmsNorm: x must be a tensor/);
    await fails(t, () => run('rmsNorm', { x, weight: x }, { epsilon: 1 }), 'ERR_ARGUMENT', /rmsNorm: unknown option 'epsilon'; it takes eps/);
    await fails(t, () => run('rmsNorm', { x, weight: x }, { eps: 'small' }), 'ERR_ARGUMENT', /rmsNorm: eps must be a finite number/);
    await fails(t, () => run('rmsNorm', { x, weight: x }, { eps: NaN }), 'ERR_ARGUMENT', /rmsNorm: eps must be a finite number/);
    await fails(t, () => run('cast', { x }, { dtype: 'f64' }), 'ERR_ARGUMENT', /cast: dtype must be one of f32\|bf16\|f16\|i32\|u8; got 'f64'/);
    await fails(t, () => run('concat', { x: [x] }, { axis: 1.5 }), 'ERR_ARGUMENT', /concat: axis must be an integer/);
    await fails(t, () => run('add', { a: [x, x], b: x }), 'ERR_ARGUMENT', /add: a is a list; it takes one tensor/);
    await fails(t, () => run('concat', { x }, { axis: 0 }), 'ERR_ARGUMENT', /concat: x is one tensor; it takes a list/);
    await fails(t, () => concat({ x: [] }, { axis: 0 }), 'ERR_ARGUMENT', /concat: x is an empty list/);
    await fails(t, () => run('noSuchOp', { x }), 'ERR_ARGUMENT', /unknown operator 'noSuchOp'/);
  });
});

test.serial('data that does not fit its shape', async (t) => {
  await balanced(t, async () => {
    await fails(t, () => Tensor.from([1, 2, 3], [2, 2]), 'ERR_SHAPE', /3 elements; shape \[2, 2\] needs 4/);
    await fails(t, () => Tensor.from([[1, 2], [3]]), 'ERR_SHAPE', /data\[1\] has 1 entries where its siblings have 2/);
    await fails(t, () => Tensor.from([1, [2, 3]] as never), 'ERR_SHAPE', /data\[1\] has 2 entries where its siblings have none/);
    await fails(t, () => Tensor.from([[1, 2], [3, [4]]] as never), 'ERR_SHAPE', /data\[1\]\[1\] has 1 entries where its siblings have none/);
    await fails(t, () => Tensor.from([[1, 2], null] as never), 'ERR_SHAPE', /data\[1\] has no entries where its siblings have 2/);
    await fails(t, () => Tensor.from([null] as never), 'ERR_SHAPE', /data\[0\] has no entries/);
    await fails(t, () => Tensor.from([[1, 2], 3] as never), 'ERR_SHAPE', /data\[1\] has no entries where its siblings have 2/);
    await fails(t, () => Tensor.fromBytes(new Uint8Array(7), 'f32', [2]), 'ERR_SHAPE', /7 bytes; shape \[2\] of f32 needs 8/);
    await fails(t, () => Tensor.fromBytes(new ArrayBuffer(8) as never, 'f32', [2]), 'ERR_ARGUMENT', /bytes must be a typed array/);
    await fails(t, () => Tensor.zeros([-1]), 'ERR_SHAPE', /shape\[0\] must be a non-negative integer/);
    await fails(t, () => Tensor.zeros([1.5]), 'ERR_SHAPE', /shape\[0\] must be a non-negative integer/);
    for (const make of [(d: number) => Tensor.zeros([d]), (d: number) => Tensor.full([d], 1)])
      for (const d of [-1, 1.5]) await fails(t, () => make(d), 'ERR_SHAPE', /shape\[0\] must be a non-negative integer/);
    await fails(t, () => Tensor.zeros([1, 1, 1, 1, 1, 1, 1, 1, 1]), 'ERR_SHAPE', /9 axes; at most/);
  });
});

test.serial('views out of range', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.zeros([2, 6]);
    await fails(t, () => reshape(x, [5, -1]), 'ERR_SHAPE', /reshape: \[2, 6\] has 12 elements and cannot become \[5, -1\]/);
    await fails(t, () => slice(x, 1, 2, 9), 'ERR_SHAPE', /slice: \[2, 9\) is outside axis 1 of \[2, 6\]/);
    await fails(t, () => slice(x, 2, 0, 1), 'ERR_SHAPE', /axis 2 is out of range for shape \[2, 6\]/);
    await fails(t, () => permute(x, [0, 0]), 'ERR_SHAPE', /permute: \[0, 0\] is no order of the 2 axes/);
    await fails(t, () => split(x, 1, [2, 3]), 'ERR_SHAPE', /split: sizes \[2, 3\] add up to 5; axis 1 of \[2, 6\] has 6/);
    await fails(t, () => x.item(), 'ERR_SHAPE', /item\(\) needs one element; the shape is \[2, 6\]/);
  });
});

test.serial('a shape beyond any memory is refused at the call', async (t) => {
  await balanced(t, async () => {
    await fails(t, () => Tensor.zeros([2 ** 40, 2 ** 20]), 'ERR_OUT_OF_MEMORY', /asks for more memory than any machine has/);
    await fails(t, () => Tensor.zeros([2 ** 40, 0, 2 ** 20]), 'ERR_OUT_OF_MEMORY', /asks for more memory than any machine has/);
    using long = Tensor.zeros([2 ** 32, 0]);
    await fails(t, () => linear({ x: long, weight: long }), 'ERR_OUT_OF_MEMORY', /linear: y of shape \[4294967296, 4294967296\] asks for more/);
    await fails(t, () => posEmbedBicubic({ posEmbed: long }, { outH: 2 ** 31, outW: 2 ** 33 }), 'ERR_SHAPE', /posEmbed has shape/);
    using grid = Tensor.zeros([1, 4, 8]);
    await fails(t, () => posEmbedBicubic({ posEmbed: grid }, { outH: 2 ** 31, outW: 2 ** 33 }), 'ERR_ARGUMENT', /both must be from 1 to 1048576/);
    await fails(t, () => run('sliceBackward', { dY: grid }, { axis: 0, start: 2 ** 63 - 1024, length: 4096 }), 'ERR_ARGUMENT', /start must be a safe integer/);
    await fails(t, () => grid.aliased([2], [2 ** 52], 2 ** 52), 'ERR_SHAPE', /reaches outside its storage/);
    await fails(t, () => grid.aliased([1], [1], 32), 'ERR_SHAPE', /reaches outside its storage/);
  });
});

// where the kernel promises memory without having it, asking for too much ends the process instead
const overcommits = readFileSync('/proc/sys/vm/overcommit_memory', 'utf8').trim() === '1';
(overcommits ? test.serial.skip : test.serial)('more memory than this machine has rejects the next wait, and work goes on', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.zeros([2 ** 43]);
    await fails(t, () => sync(), 'ERR_OUT_OF_MEMORY', /out of memory/);
    await fails(t, () => x.data(), 'ERR_OUT_OF_MEMORY', /no host memory for the 35184372088832 bytes/);
    x.dispose();
    using y = Tensor.full([2], 3);
    t.is((await y.toFloat32())[1], 3);
  });
});

test.serial('unknown and absent devices', async (t) => {
  await balanced(t, async () => {
    await fails(t, () => Tensor.zeros([1], { device: 'tpu' }), 'ERR_DEVICE', /unknown device 'tpu'; expected 'cpu', 'cuda' or 'cuda:<index>'/);
    await fails(t, () => Tensor.zeros([1], { device: 'cpu:1' }), 'ERR_DEVICE', /device 'cpu:1' does not exist: there are 1 cpu devices/);
    const cuda = backends().find((b) => b.name === 'cuda')!;
    if (cuda.available) {
      using here = Tensor.zeros([1]);
      using there = Tensor.zeros([1], { device: 'cuda' });
      await fails(t, () => add({ a: here, b: there }), 'ERR_DEVICE', /add: operands lie on different devices/);
    } else {
      t.truthy(cuda.reason);
      const error = await fails(t, () => Tensor.zeros([1], { device: 'cuda' }), 'ERR_DEVICE', /device 'cuda:0' is not available/);
      t.true(error.message.includes(cuda.reason!));
    }
  });
});

test("'auto' without CUDA runs on the CPU and says so once", async (t) => {
  const script = "for (let i = 0; i < 3; i++) console.log(mm.Tensor.zeros([1], { device: 'auto' }).device);";
  const ended = await runScript(script, { env: { MMMAMBA_CUDA_PATH: '/nonexistent/libmmmamba_cuda.so' } });
  t.is(ended.code, 0, ended.stderr);
  t.is(ended.stdout, 'cpu\ncpu\ncpu\n');
  t.is(ended.stderr.match(/running on the CPU/g)?.length, 1);
  t.regex(ended.stderr, /no such file/);
});

const badGather = (): { y: Tensor; dispose(): void } => {
  const x = Tensor.full([4, 3], 1);
  const index = Tensor.from([0, 9], [2], { dtype: 'i32' });
  const y = gatherRows({ x, index });
  return { y, dispose: () => [x, index, y].forEach((t) => t.dispose()) };
};

test.serial('a failed kernel poisons its result, and the process goes on', async (t) => {
  await balanced(t, async () => {
    const bad = badGather();
    const further = scale({ x: bad.y }, { factor: 2 });
    await fails(t, () => bad.y.data(), 'ERR_KERNEL', /gatherRows: .*9/);
    await fails(t, () => further.data(), 'ERR_KERNEL', /gatherRows: .*9/);
    using good = Tensor.full([3], 7);
    t.deepEqual([...(await good.toFloat32())], [7, 7, 7]);
    further.dispose();
    bad.dispose();
  });
});

test.serial('a failed kernel rejects the next wait, whichever it is, once', async (t) => {
  await balanced(t, async () => {
    const bad = badGather();
    bad.dispose();
    await fails(t, () => sync(), 'ERR_KERNEL', /gatherRows/);
    await sync();
    t.pass();
  });
});

test.serial('what a failed operand kept an op from writing in place is told by the next wait', async (t) => {
  await balanced(t, async () => {
    const bad = badGather();
    await fails(t, () => sync(), 'ERR_KERNEL', /gatherRows/);
    using kept = Tensor.zeros([2, 3]);
    run('copyInto', { dst: kept, src: bad.y });
    await fails(t, () => sync(), 'ERR_KERNEL', /gatherRows/);
    bad.dispose();
  });
});

test.serial('reading one failed result leaves the failure of another op to be told', async (t) => {
  await balanced(t, async () => {
    using cache = Tensor.zeros([1, 4, 1, 8]);
    using x = Tensor.zeros([1, 1, 1, 8]);
    using positions = Tensor.from([9], [1], { dtype: 'i32' });
    run('kvCacheAppend', { cache, x, positions });
    const bad = badGather();
    await fails(t, () => bad.y.data(), 'ERR_KERNEL', /gatherRows/);
    await fails(t, () => sync(), 'ERR_KERNEL', /kvCacheAppend/);
    await sync();
    const first = badGather();
    run('kvCacheAppend', { cache, x, positions });
    await fails(t, () => first.y.data(), 'ERR_KERNEL', /gatherRows/);
    await fails(t, () => sync(), 'ERR_KERNEL', /kvCacheAppend/);
    await sync();
    first.dispose();
    bad.dispose();
  });
});

test.serial('labels that were changed behind a forward pass are refused by the backward one', async (t) => {
  await balanced(t, async () => {
    using scope = new Scope();
    const { dLogits } = scope.run(() =>
      run('crossEntropyBackward', {
        logits: Tensor.zeros([2, 4]),
        labels: Tensor.from([1, -500_000_000], [2], { dtype: 'i32' }),
        lse: Tensor.zeros([2]),
        dLoss: Tensor.full([], 1),
      }),
    );
    await fails(t, () => dLogits!.data(), 'ERR_KERNEL', /crossEntropyBackward: label 1 is -500000000; expected a class in \[0, 4\)/);
  });
});

test.serial('a device without graphs says so', async (t) => {
  await balanced(t, async () => {
    await fails(t, () => Graph.capture('cpu', () => Tensor.zeros([1])), 'ERR_UNSUPPORTED', /cpu has no graphs; call the function itself/);
  });
});

test.serial('strides of large tensors are no shapes: their product means nothing', async (t) => {
  await balanced(t, async () => {
    using x = Tensor.full([3], 2);
    using view = x.aliased([1, 1, 1, 3], [2 ** 28, 2 ** 13, 2 ** 7, 1], 0);
    t.deepEqual([...(await view.toFloat32())], [2, 2, 2]);
  });
});

test('errors are of one class with a code', (t) => {
  const error = t.throws(() => Tensor.zeros([-1]));
  t.true(error instanceof MmError);
  t.is(error.name, 'MmError');
});
