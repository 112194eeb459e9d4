import test from 'ava';
import { add, memoryStats, reshape, scale, Scope, scope, slice, sum, Tape, Tensor, untracked } from '../../lib/index.js';
import { balanced, fails, runScript } from './support.js';

const live = (): number => memoryStats().tensors;

test.serial('dispose is idempotent, and `using` disposes', async (t) => {
  await balanced(t, () => {
    const x = Tensor.zeros([2, 3]);
    x.dispose();
    x.dispose();
    t.true(x.disposed);
    {
      using y = Tensor.zeros([4]);
      t.false(y.disposed);
    }
  });
});

test.serial('use after dispose names the shape', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.zeros([2, 3]);
    x.dispose();
    await fails(t, () => scale({ x }, { factor: 2 }), 'ERR_DISPOSED', /shape \[2, 3\] was used after dispose/);
    await fails(t, () => x.data(), 'ERR_DISPOSED', /\[2, 3\]/);
    await fails(t, () => slice(x, 0, 0, 1), 'ERR_DISPOSED', /\[2, 3\]/);
  });
});

test.serial('a view keeps the storage after its source is disposed', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3]);
    using row = slice(x, 0, 1, 2);
    x.dispose();
    t.deepEqual([...(await row.toFloat32())], [4, 5, 6]);
  });
});

test.serial('queued work keeps its operands after dispose', async (t) => {
  await balanced(t, async () => {
    let x = Tensor.full([1 << 16], 1);
    for (let i = 0; i < 10; i++) {
      const next = scale({ x }, { factor: 2 });
      x.dispose();
      x = next;
    }
    t.is((await x.toFloat32())[99], 1024);
    x.dispose();
  });
});

test.serial('scope frees all but its result, also inside arrays, objects and maps', async (t) => {
  await balanced(t, () => {
    const before = live();
    const kept = scope(() => {
      Tensor.zeros([1]);
      return { a: Tensor.zeros([1]), b: [Tensor.zeros([1])], c: new Map([['d', Tensor.zeros([1])]]), n: 3 };
    });
    t.is(live(), before + 3);
    for (const x of [kept.a, ...kept.b, ...kept.c.values()]) x.dispose();
  });
});

test.serial('scopes nest: an inner result belongs to the outer scope', async (t) => {
  await balanced(t, () => {
    const before = live();
    const z = scope(() => {
      const x = Tensor.full([2], 1);
      const y = scope(() => {
        const two = add({ a: x, b: x });
        return add({ a: two, b: x });
      });
      t.is(live(), before + 2);
      return add({ a: y, b: y });
    });
    t.is(live(), before + 1);
    z.dispose();
  });
});

test.serial('a scope frees on a throw', async (t) => {
  await balanced(t, () => {
    t.throws(() =>
      scope(() => {
        Tensor.zeros([8]);
        throw new Error('stop');
      }),
    );
  });
});

test.serial('scope refuses an async function', async (t) => {
  await balanced(t, async () => {
    await fails(t, () => scope(async () => Tensor.zeros([1])), 'ERR_ARGUMENT', /synchronous function.*new Scope/);
  });
});

test.serial('untracked tensors outlive the scope', async (t) => {
  await balanced(t, () => {
    const x = scope(() => [untracked(() => Tensor.zeros([1]))])[0]!;
    let escaped: Tensor | undefined;
    scope(() => {
      escaped = untracked(() => Tensor.zeros([1]));
    });
    t.false(x.disposed);
    t.false(escaped!.disposed);
    x.dispose();
    escaped!.dispose();
  });
});

test.serial('scopes across awaits do not mix, however the work overlaps', async (t) => {
  await balanced(t, async () => {
    const before = live();
    const task = async (value: number): Promise<number> => {
      using s = new Scope();
      let x = s.run(() => Tensor.full([4], value));
      for (let i = 0; i < 5; i++) {
        await new Promise((resolve) => setTimeout(resolve, (value * 7 + i * 3) % 5));
        x = s.run(() => add({ a: x, b: x }));
        await x.data();
      }
      t.true(live() >= before + 6, 'the tensors of this scope live until it ends');
      return (await x.toFloat32())[0]!;
    };
    t.deepEqual(await Promise.all([1, 2, 3, 4].map(task)), [32, 64, 96, 128]);
  });
});

test.serial('a disposed scope cannot run', async (t) => {
  const s = new Scope();
  s.dispose();
  s.dispose();
  await fails(t, () => s.run(() => 1), 'ERR_DISPOSED', /scope was disposed before run/);
});

test.serial('the tape holds what backward needs, after dispose and after the scope', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.from([1, 2, 3]);
    x.requiresGrad = true;
    const tape = new Tape();
    using loss = scope(() =>
      tape.record(() => {
        const doubled = scale({ x }, { factor: 2 });
        return sum({ x: add({ a: doubled, b: reshape(x, [3]) }) });
      }),
    );
    const [g] = tape.backward(loss, [x]);
    t.deepEqual([...(await g!.toFloat32())], [3, 3, 3]);
    g!.dispose();
    x.dispose();
  });
});

test.serial('a tape that is dropped lets its saved tensors go', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.full([4], 2);
    x.requiresGrad = true;
    const tape = new Tape();
    scope(() => void tape.record(() => add({ a: x, b: scale({ x }, { factor: 3 }) })));
    tape.dispose();
    tape.dispose();
    await fails(t, () => tape.record(() => 1), 'ERR_DISPOSED', /tape was used up/);
    x.dispose();
  });
});

test.serial('device bytes and the peak are counted', async (t) => {
  await balanced(t, async () => {
    const x = Tensor.full([1 << 20], 1);
    await x.data();
    const cpu = memoryStats().devices['cpu']!;
    t.true(cpu.bytes >= 4 << 20);
    t.true(cpu.peakBytes >= cpu.bytes);
    x.dispose();
  });
});

test('tensors that nobody disposed go with the garbage collector', async (t) => {
  const ended = await runScript(
    `
    const make = () => { for (let i = 0; i < 100; i++) mm.Tensor.zeros([1024]); };
    make();
    const before = mm.memoryStats().tensors;
    for (let i = 0; i < 20 && mm.memoryStats().tensors > 0; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    console.log(before, mm.memoryStats().tensors, mm.memoryStats().devices.cpu.storages);`,
    { flags: ['--expose-gc'] },
  );
  t.is(ended.stdout.trim(), '100 0 0', ended.stderr);
});

test('V8 feels the memory behind tensors: without dispose the collector still bounds it', async (t) => {
  const ended = await runScript(`
    for (let i = 0; i < 400; i++) {
      mm.Tensor.zeros([1 << 21]);
      await mm.sync();
    }
    console.log(mm.memoryStats().devices.cpu.peakBytes);`);
  t.is(ended.code, 0, ended.stderr);
  t.true(Number(ended.stdout) < 400 * 2 ** 23 / 4, `peak of ${ended.stdout.trim()} bytes of ${400 * 2 ** 23} allocated`);
});

test('steps that dispose of what they make cost no collections', async (t) => {
  const ended = await runScript(
    `
    const kept = Array.from({ length: 10 }, () => mm.Tensor.zeros([1 << 20]));
    for (let step = 0; step < 60; step++) {
      mm.scope(() => { for (let i = 0; i < 50; i++) mm.Tensor.zeros([1 << 19]); });
      await mm.sync();
    }
    for (const tensor of kept) tensor.dispose();`,
    { flags: ['--trace-gc'] },
  );
  t.is(ended.code, 0, ended.stderr);
  t.true(ended.stdout.split('Mark-Compact').length - 1 < 10, ended.stdout);
});
