import test from 'ava';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { copyOfProject, evaluate, node, offline, project } from './project.js';

const kernel = `
const run = async (mm) => {
  const sum = mm.add({ a: mm.Tensor.from([1, 2]), b: mm.Tensor.from([3, 4]) });
  const norm = mm.rmsNorm({ x: mm.Tensor.full([2, 8], 3), weight: mm.Tensor.full([8], 2) });
  return [[...(await sum.data())], (await norm.toFloat32())[0].toFixed(3)];
};
`;
const answer = [[4, 6], '2.000'];

test('npm installs the file without network and compiler, and builds nothing', (t) => {
  const { installed } = project();
  t.false(existsSync(join(installed, 'build')));
  t.true(readdirSync(join(installed, 'prebuilds', 'linux-x64')).includes('mmmamba.glibc.node'));
  t.deepEqual(offline.slice(1), ['-rn'], 'this system cannot cut a process off the network, so nothing here shows that none is used');
});

test('a kernel runs by require', async (t) => {
  const text = `${kernel} run(require('mmmamba')).then((v) => console.log(JSON.stringify(v)));`;
  t.deepEqual(await evaluate('require.cjs', text), answer);
});

test('a kernel runs by import', async (t) => {
  const text = `import * as mm from 'mmmamba'; ${kernel} console.log(JSON.stringify(await run(mm)));`;
  t.deepEqual(await evaluate('import.mjs', text), answer);
});

test('require and import give the same module', async (t) => {
  const text = `import { createRequire } from 'node:module';
    import * as imported from 'mmmamba'; import * as recipe from 'mmmamba/train';
    const required = createRequire(import.meta.url)('mmmamba');
    console.log(JSON.stringify([required.Tensor === imported.Tensor, recipe.AdamW === imported.AdamW]));`;
  t.deepEqual(await evaluate('same.mjs', text), [true, true]);
});

test('kernels run in worker threads', async (t) => {
  const text = `const { Worker, isMainThread, parentPort } = require('node:worker_threads');
    ${kernel}
    const mine = run(require('mmmamba'));
    if (!isMainThread) mine.then((v) => parentPort.postMessage(v));
    else {
      const others = [0, 1].map(() => new Promise((resolve, reject) => new Worker(__filename).once('message', resolve).once('error', reject)));
      Promise.all([mine, ...others]).then((all) => console.log(JSON.stringify(all)));
    }`;
  t.deepEqual(await evaluate('workers.cjs', text), [answer, answer, answer]);
});

test('two copies in one process compute side by side and refuse the tensors of each other', async (t) => {
  const other = copyOfProject();
  try {
    const text = `${kernel}
      const [a, b] = [require('mmmamba'), require(${JSON.stringify(other.installed)} + '/dist/lib/index.js')];
      Promise.all([run(a), run(b)]).then((both) => {
        let message;
        try { a.add({ a: a.Tensor.from([1]), b: b.Tensor.from([2]) }); } catch (e) { message = [e.code, e.message]; }
        console.log(JSON.stringify([...both, message]));
      });`;
    const [first, second, refused] = (await evaluate('copies.cjs', text)) as [unknown, unknown, string[]];
    t.deepEqual([first, second], [answer, answer]);
    t.is(refused[0], 'ERR_ARGUMENT');
    t.regex(refused[1]!, /^add: b must be a tensor of this copy of mmmamba; another copy in this process made it/);
  } finally {
    other.remove();
  }
});

const cli = (): string => join(project().installed, 'dist', 'lib', 'cli', 'main.js');

test('mmmamba doctor finds the prebuilt binary and its oneDNN', async (t) => {
  const { stdout, code } = await node([cli(), 'doctor', '--json']);
  t.is(code, 0);
  const checks = JSON.parse(stdout) as { name: string; status: string; found: string; remedy?: string }[];
  const found = (name: string): string => checks.find((check) => check.name === name)!.found;
  t.regex(found('platform'), /^linux-x64, glibc 2\.\d+$/);
  t.true(found('addon').endsWith(join(project().installed, 'prebuilds', 'linux-x64', 'mmmamba.glibc.node')));
  if (existsSync(join(project().installed, 'prebuilds', 'linux-x64', 'libdnnl.so.3')))
    t.regex(found('oneDNN'), /^oneDNN 3\.[\d.]+ \(\w+\), .*node_modules\/mmmamba\/prebuilds\/linux-x64\/libdnnl\.so\.3$/);
  else t.regex(found('oneDNN'), /^libdnnl\.so\.\d not found|^oneDNN/);
  t.deepEqual(checks.filter((check) => check.status !== 'ok' && !check.remedy), [], 'a problem without a remedy');
});

test('npx finds the command', async (t) => {
  const { stdout, code, stderr } = await node([join(project().folder, 'bin', 'npx'), '--offline', 'mmmamba', '--version']);
  t.deepEqual([code, stdout], [0, `${project().version}\n`], stderr);
});

test('mmmamba demo runs from the installed package', async (t) => {
  const out = join(project().folder, 'demo');
  rmSync(out, { recursive: true, force: true });
  const ended = await node([cli(), 'demo', '--steps', '2', '--batch-size', '8', '--longest-context', '1024', '--out', out, '--json']);
  t.is(ended.code, 0, ended.stderr);
  const { results } = JSON.parse(ended.stdout) as { results: { model: string; stage: string; name: number }[] };
  t.true(results.find(({ model }) => model === 'teacher')!.name > 0.5);
  t.deepEqual(results.filter(({ stage }) => stage === 'stage 3').map(({ model }) => model), ['linear', 'hybrid']);
  t.true(existsSync(join(out, 'report.html')));
});
