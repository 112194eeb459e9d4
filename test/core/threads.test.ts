import test from 'ava';
import { Worker } from 'node:worker_threads';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { packageRoot } from '../../lib/native/loader.js';
import { add, rmsNorm, sync, Tensor } from '../../lib/index.js';
import { balanced, ended, runScript } from './support.js';

const library = pathToFileURL(join(packageRoot, 'dist', 'lib', 'index.js')).href;

function worker(body: string): Worker {
  const text = `import * as mm from '${library}'; import { parentPort } from 'node:worker_threads';\n${body}`;
  return new Worker(text, { eval: true, execArgv: ['--input-type=module'] });
}
const message = (w: Worker): Promise<unknown> =>
  new Promise((resolve, reject) => {
    w.once('message', resolve);
    w.once('error', reject);
  });

const chain = `
  let x = mm.Tensor.full([64, 256], 1);
  const weight = mm.Tensor.full([256], 2);
  for (let i = 0; i < 200; i++) {
    const y = mm.rmsNorm({ x, weight });
    x.dispose();
    x = y;
  }
  const value = (await x.toFloat32())[77];
  x.dispose();
  weight.dispose();`;

test.serial('two workers and the main thread compute at once, each with its own tensors', async (t) => {
  await balanced(t, async () => {
    const workers = [0, 1].map(() => worker(`${chain}\n  parentPort.postMessage([value, mm.memoryStats().tensors]);`));
    const answers = workers.map(message);
    const exits = workers.map((w) => new Promise((resolve) => w.once('exit', resolve)));
    using weight = Tensor.full([256], 2);
    let x = Tensor.full([64, 256], 1);
    for (let i = 0; i < 200; i++) {
      const y = rmsNorm({ x, weight });
      x.dispose();
      x = y;
    }
    const mine = (await x.toFloat32())[77]!;
    x.dispose();
    for (const answer of await Promise.all(answers)) t.deepEqual(answer, [mine, 0]);
    t.deepEqual(await Promise.all(exits), [0, 0]);
  });
});

const flood = `
  const weight = mm.Tensor.full([1024], 2);
  let x = mm.Tensor.full([2048, 1024], 1);
  for (let i = 0; i < 300; i++) x = mm.rmsNorm({ x, weight });`;

test.serial('a worker is terminated amid queued work', async (t) => {
  await balanced(t, async () => {
    for (let i = 0; i < 3; i++) {
      const w = worker(`${flood}\n  parentPort.postMessage('queued');\n  await x.data();`);
      t.is(await message(w), 'queued');
      await w.terminate();
    }
    using a = Tensor.full([3], 1);
    using b = add({ a, b: a });
    t.deepEqual([...(await b.toFloat32())], [2, 2, 2]);
  });
});

test('process.exit with queued work exits with its code', async (t) => {
  const ended = await runScript(`${flood}\n  void x.data();\n  process.exit(3);`);
  t.deepEqual([ended.code, ended.signal, ended.stderr], [3, null, '']);
});

test('process.exit amid matrix products exits with its code', async (t) => {
  const products = `
    const x = mm.Tensor.full([1024, 1024], 1, { dtype: 'bf16' });
    for (let i = 0; i < 40; i++) mm.matmul({ a: x, b: x });
    setTimeout(() => process.exit(3), 20);`;
  for (let i = 0; i < 4; i++) {
    const exited = await runScript(products);
    t.deepEqual([exited.code, exited.signal, exited.stderr], [3, null, '']);
  }
});

test('workers come and go in a process whose main thread never loads the library', async (t) => {
  const text = `
    const { Worker } = require('node:worker_threads');
    const { once } = require('node:events');
    const body = ${JSON.stringify(`import('${library}').then(async (mm) => {${chain}\n});`)};
    (async () => {
      for (let i = 0; i < 12; i++) {
        const [code] = await once(new Worker(body, { eval: true }), 'exit');
        if (code !== 0) process.exitCode = 1;
        await new Promise((done) => setTimeout(done, 20));
      }
    })();`;
  const all = await ended(process.execPath, ['-e', text]);
  t.deepEqual([all.code, all.signal, all.stderr], [0, null, '']);
});

test('a process ends by itself once its queued work is done or not waited for', async (t) => {
  const ended = await runScript(`${flood}\n  process.exitCode = 4;`);
  t.deepEqual([ended.code, ended.signal, ended.stderr], [4, null, '']);
});

test('a pending read keeps the process alive until it is answered', async (t) => {
  const ended = await runScript(`mm.Tensor.full([4], 5).toFloat32().then((v) => console.log(v[3]));`);
  t.deepEqual([ended.code, ended.stdout], [0, '5\n']);
});

test.serial('the event loop turns while ops run', async (t) => {
  await balanced(t, async () => {
    using weight = Tensor.full([2048], 2);
    let x = Tensor.full([2048, 2048], 1);
    let turns = 0;
    const timer = setInterval(() => turns++, 5);
    for (let i = 0; i < 150; i++) {
      const y = rmsNorm({ x, weight });
      x.dispose();
      x = y;
    }
    x.dispose();
    await sync();
    clearInterval(timer);
    t.true(turns >= 3, `${turns} timer calls`);
  });
});
