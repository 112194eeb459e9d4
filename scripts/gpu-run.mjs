// What only a GPU shows, in one go, as the files that bench/results keeps: goldens in each dtype, op tests (with the kernels for older
// GPUs too), device checks, compute-sanitizer, the kernel benchmarks with PyTorch beside them, training steps, and what Nsight Compute
// says of the main kernels. `node scripts/gpu-run.mjs --out DIR [--only tests,sanitize,bench,training,profile]`: DIR/cuda-*.json, and
// the output of every step in DIR/logs. Exit code 1 where anything failed.
import { spawn } from 'node:child_process';
import { createWriteStream, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const groups = ['tests', 'sanitize', 'bench', 'training', 'profile'];
const { values } = parseArgs({
  options: { out: { type: 'string' }, only: { type: 'string', default: groups.join(',') }, python: { type: 'string', default: 'python3' }, device: { type: 'string', default: 'cuda' } },
});
const only = values.only.split(',');
const unknown = only.find((group) => !groups.includes(group));
if (!values.out || unknown) {
  console.error(`mmmamba: node scripts/gpu-run.mjs --out DIR [--only ${groups.join(',')}]${unknown ? `; there is no '${unknown}'` : ''}`);
  process.exit(2);
}
const { out, device } = values;
mkdirSync(join(out, 'logs'), { recursive: true });
const file = (name) => join(out, name);
const json = (name) => JSON.parse(readFileSync(file(name), 'utf8'));
const write = (name, value) => writeFileSync(file(name), `${JSON.stringify(value, null, 1)}\n`);
let failed = false;

/** Runs a program of the repository; its output goes to a log, its last line to the terminal. */
function step(name, args, env = {}) {
  const start = performance.now();
  const log = createWriteStream(join(out, 'logs', `${name}.log`));
  const child = spawn(process.execPath, args, { cwd: root, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  let last = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data) => {
      log.write(data);
      last = data.toString().trimEnd().split('\n').at(-1) || last;
    });
  return new Promise((resolve) =>
    child.on('close', (code) => {
      log.end();
      failed ||= code !== 0;
      console.log(`${name}: ${code === 0 ? 'done' : `exit code ${code}`}, ${Math.round((performance.now() - start) / 1000)} s; ${last.slice(0, 160)}`);
      resolve(code);
    }),
  );
}

/** Adds up the results of parts, which count by op and dtype. */
function merge(parts, command) {
  const [first] = parts;
  const total = { ...first, machine: { ...first.machine, command }, passed: 0, failed: 0, counts: {}, failures: parts.flatMap((p) => p.failures) };
  for (const part of parts) {
    total.passed += part.passed;
    total.failed += part.failed;
    for (const [op, dtypes] of Object.entries(part.counts))
      for (const [dtype, count] of Object.entries(dtypes)) {
        const sum = ((total.counts[op] ??= {})[dtype] ??= { passed: 0, failed: 0 });
        sum.passed += count.passed;
        sum.failed += count.failed;
      }
  }
  return total;
}

/** The op tests in as many processes as there are cores for. */
async function ops(name, options, env) {
  const parts = Math.max(2, Math.min(8, availableParallelism() >> 1));
  const part = (i) => `.${name}-${i}.json`;
  const command = ['dist/test/ops/main.js', '--device', device, ...options];
  await Promise.all(Array.from({ length: parts }, (_, i) => step(`${name}-${i + 1}`, [...command, '--part', `${i + 1}/${parts}`, '--json', file(part(i))], env)));
  const found = Array.from({ length: parts }, (_, i) => part(i)).filter((p) => existsSync(file(p)));
  if (found.length < parts) return; // a part that died has said so; a sum without it would say less
  const set = Object.entries(env ?? {}).map(([key, value]) => `${key}=${value} `).join('');
  write(`${name}.json`, merge(found.map(json), `${set}node ${command.join(' ')} (in ${parts} parts, --part I/${parts})`));
  for (const p of found) rmSync(file(p));
}

async function tests() {
  const dtypes = ['f32', 'bf16', 'f16'];
  const golden = (dtype) => step(`golden-${dtype}`, ['dist/test/golden/main.js', 'test/golden/data', '--device', device, '--dtype', dtype, '--json', file(`.golden-${dtype}.json`)]);
  await Promise.all([...dtypes.map(golden), ops('cuda-ops', ['--random', '20'])]);
  const judged = dtypes.map((dtype) => `.golden-${dtype}.json`).filter((name) => existsSync(file(name)));
  write('cuda-golden.json', judged.map(json));
  for (const name of judged) rmSync(file(name));
  await ops('cuda-ops-sm80', ['--random', '5', '--only', 'attention,attentionKvCache,ssd,linearAttention,simpleGla,gla,selectiveScan'], { MMMAMBA_CUDA_CAPABILITY: '80' });
  await step('device', ['dist/test/device/main.js', '--device', device, '--json', file('cuda-device.json')]);
}

async function sanitize() {
  const tools = ['memcheck', 'racecheck', 'initcheck', 'synccheck'];
  const folder = (tool) => join(out, 'logs', `sanitize-${tool}`);
  await Promise.all(tools.map((tool) => step(`sanitize-${tool}`, ['scripts/sanitize.mjs', '--device', device, '--tools', tool, '--jobs', '4', '--out', folder(tool)])));
  const { machine } = await import(join(root, 'dist', 'bench', 'machine.js'));
  const reports = tools.map((tool) => JSON.parse(readFileSync(join(folder(tool), 'summary.json'), 'utf8')));
  write('cuda-sanitizer.json', { machine: { ...machine(device), command: 'npm run sanitize -- --tools T --jobs 4, for each tool T' }, ...Object.assign({}, ...reports) });
}

async function training() {
  for (const model of ['teacher', 'student'])
    await step(`training-${model}`, ['dist/bench/training.js', '--model', model, '--device', device, '--rounds', '5', '--steps', '100', '--peer', values.python, '--json', file(`cuda-training-${model}.json`)]);
  await step('training-memory', ['dist/bench/training.js', '--model', 'student', '--device', device, '--long', '2000', '--json', file('cuda-training-memory.json')]);
}

if (only.includes('tests')) await tests();
if (only.includes('sanitize')) await sanitize();
if (only.includes('bench'))
  await step('bench', ['dist/bench/run.js', '--device', device, '--shapes', 'large', '--peers', 'torch', '--python', values.python, '--json', file('cuda-kernels-large.json'), '--markdown', file('cuda-kernels-large.md')]);
if (only.includes('profile')) await step('profile', ['scripts/profile.mjs', '--json', file('cuda-profile.json')]);
if (only.includes('training')) await training();
if (failed) process.exitCode = 1;
