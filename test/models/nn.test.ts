import test from 'ava';
import { adamW, cast, mul, sum } from '../../lib/ops/index.js';
import { withGradients } from '../../lib/nn/gradients.js';
import { normal, ones } from '../../lib/nn/initialise.js';
import { joinRows, Linear } from '../../lib/nn/layers.js';
import { Parameter } from '../../lib/nn/parameter.js';
import { Tape } from '../../lib/autograd/tape.js';
import { Random } from '../../lib/tensor/random.js';
import { Scope } from '../../lib/tensor/scope.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { fails } from '../io/_helpers.js';
import { leakFree } from './_golden.js';

const cpu = { device: 'cpu', dtype: 'f32' } as const;

test('the generator is Philox4x32-10', (t) => {
  // Known answers of the paper's authors (Random123, kat_vectors): counter 0 and key 0.
  const random = new Random(0);
  t.deepEqual([random.bits(), random.bits(), random.bits(), random.bits()], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
});

test('the generator: ranges, distributions, streams, save and restore', (t) => {
  const random = new Random(2 ** 40 + 3, 7);
  const uniform = Array.from({ length: 20000 }, () => random.uniform(-2, 4));
  t.true(Math.min(...uniform) >= -2 && Math.max(...uniform) < 4 && Math.abs(uniform.reduce((a, b) => a + b) / 20000 - 1) < 0.05);
  const normals = Array.from({ length: 20000 }, () => random.normal(1, 2));
  const mean = normals.reduce((a, b) => a + b) / 20000;
  const variance = normals.reduce((a, b) => a + (b - mean) ** 2, 0) / 20000;
  t.true(Math.abs(mean - 1) < 0.06 && Math.abs(variance - 4) < 0.15);
  const counts = new Array<number>(5).fill(0);
  for (let i = 0; i < 10000; i++) counts[random.int(10, 15) - 10]!++;
  t.true(counts.every((n) => Math.abs(n - 2000) < 200));
  const saved = JSON.parse(JSON.stringify(random.state)) as Random['state'];
  t.deepEqual(random.fill(9, (r) => r.normal()), Random.restore(saved).fill(9, (r) => r.normal()));
  t.not(new Random(1, 0).bits(), new Random(1, 1).bits());
  t.throws(() => new Random(-1), { message: /seed: expected an integer from 0/ });
  t.throws(() => random.int(3, 3), { message: /low < high/ });
});

test.serial('parameters in f32: one tensor; frozen ones take no gradient', (t) =>
  leakFree(t, async () => {
    using p = new Parameter('p.weight', [2, 3], cpu, { init: ones });
    await fails(t, () => p.value, 'ERR_ARGUMENT', /p\.weight has no value yet/);
    p.initialise(new Random(1));
    t.is(p.master, p.value);
    t.false(p.value.requiresGrad);
    p.trainable = true;
    t.true(p.value.requiresGrad);
    t.is(p.master, p.value);
    using wrong = Tensor.zeros([3, 2]);
    await fails(t, () => p.adopt(wrong), 'ERR_SHAPE', /p\.weight has shape \[2, 3\], not \[3, 2\]/);
  }),
);

test.serial('parameters in bf16: a trainable matrix has an f32 master, vectors stay f32', (t) =>
  leakFree(t, async () => {
    const placement = { device: 'cpu', dtype: 'bf16' } as const;
    using matrix = new Parameter('m', [4, 8], placement, { init: normal(1) });
    using vector = new Parameter('v', [8], placement, { init: ones });
    matrix.trainable = vector.trainable = true;
    for (const p of [matrix, vector]) p.initialise(new Random(3));
    t.deepEqual([matrix.value.dtype, matrix.master.dtype, vector.value.dtype], ['bf16', 'f32', 'f32']);
    t.is(vector.master, vector.value);
    using held = new Scope();
    const state = (): Tensor[] => held.run(() => [matrix, vector].map((p) => Tensor.zeros(p.shape)));
    const { gradients } = held.run(() =>
      withGradients([matrix, vector], () => ({ loss: sum({ x: mul({ a: cast({ x: matrix.value }, { dtype: 'f32' }), b: vector.value }) }) })),
    );
    t.is(gradients.size, 2);
    const before = await matrix.value.toFloat32();
    held.run(() =>
      adamW(
        { params: [matrix.master], grads: [gradients.get(matrix)!], expAvg: [state()[0]!], expAvgSq: [state()[0]!], compute: [matrix.value] },
        { lr: 0.1, step: 1, weightDecay: 0 },
      ),
    );
    const after = await matrix.value.toFloat32();
    t.true(after.every((x, i) => Math.abs(before[i]! - x - 0.1) < 0.02));
    matrix.trainable = false;
    t.is(matrix.master, matrix.value);
    t.is(matrix.value.dtype, 'bf16');
  }),
);

test.serial('rows in another order in memory than in the file', (t) =>
  leakFree(t, async () => {
    using p = new Parameter('p', [3, 2], cpu, { init: ones, fileRows: Int32Array.of(2, 0, 1) });
    p.adopt(Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]));
    t.deepEqual([...(await p.value.toFloat32())], [5, 6, 1, 2, 3, 4]);
    using file = p.fileTensor();
    t.deepEqual([...(await file.toFloat32())], [1, 2, 3, 4, 5, 6]);
  }),
);

test.serial('joined rows: gradients go back to the parts that want them', (t) =>
  leakFree(t, async () => {
    using held = new Scope();
    await held.run(async () => {
      const a = Tensor.from([1, 2], [1, 2]);
      const b = Tensor.from([3, 4, 5, 6], [2, 2]);
      a.requiresGrad = true;
      const w = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]);
      const tape = new Tape();
      const loss = tape.record(() => sum({ x: mul({ a: joinRows([b, a]), b: w }) }));
      const [g, none] = tape.backward(loss, [a, b]);
      t.is(none, null);
      const both = await Promise.all([g!.toFloat32(), loss.item()]);
      t.deepEqual([...both[0]], [5, 6]);
      t.is(both[1], 3 + 8 + 15 + 24 + 5 + 12);
    });
  }),
);

test.serial('a module lists, loads and compares its parameters by name', (t) =>
  leakFree(t, async () => {
    using layer = new Linear('block.proj', cpu, 3, 2, { bias: true });
    t.deepEqual([...layer.namedParameters().keys()], ['block.proj.weight', 'block.proj.bias']);
    layer.initialise(new Random(1));
    using held = new Scope();
    const state = held.run(() => new Map([['block.proj.weight', Tensor.full([2, 3], 2)], ['block.proj.bias', Tensor.full([2], 1)]]));
    layer.loadState(state);
    const y = held.run(() => layer.forward(Tensor.full([1, 3], 1)));
    t.deepEqual([...(await y.toFloat32())], [7, 7]);
    const wrong = held.run(() => new Map([['block.proj.weight', Tensor.full([2, 3], 9)], ['block.proj.bias', Tensor.full([3], 9)]]));
    await fails(t, () => layer.loadState(wrong), 'ERR_SHAPE', /of another shape \(1\):\n {2}block\.proj\.bias: \[3\] instead of \[2\]/);
    t.deepEqual([...(await held.run(() => layer.forward(Tensor.full([1, 3], 1))).toFloat32())], [7, 7], 'nothing was loaded');
    state.delete('block.proj.bias');
    await fails(t, () => layer.loadState(state), 'ERR_SHAPE', /missing \(1\):\n {2}block\.proj\.bias/);
    layer.loadState(state, { partial: true });
    t.deepEqual(layer.setTrainable((n) => n.endsWith('bias')).map((p) => p.name), ['block.proj.bias']);
  }),
);
