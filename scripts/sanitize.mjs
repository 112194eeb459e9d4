// Runs the op tests on a GPU under NVIDIA's compute-sanitizer: memcheck (accesses outside of allocations), racecheck
// (hazards in shared memory), initcheck (reads of what nobody wrote) and synccheck, over a small list of cases; every block of device
// memory is an allocation of its own meanwhile. `node scripts/sanitize.mjs [--tools memcheck,racecheck] [--only ssd,attention]
// [--dtype bf16] [--jobs 4] [--out DIR]`; exit code 1 if a tool or a test found something.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const { values } = parseArgs({
  options: {
    tools: { type: 'string', default: 'memcheck,racecheck,initcheck,synccheck' },
    only: { type: 'string' },
    dtype: { type: 'string' },
    device: { type: 'string', default: 'cuda' },
    jobs: { type: 'string', default: '4' },
    out: { type: 'string', default: join(root, 'build-cuda', 'sanitizer') },
  },
});

function sanitizer() {
  const places = ['compute-sanitizer', ...['/usr/local/cuda', process.env.CUDA_HOME].filter(Boolean).map((folder) => join(folder, 'bin', 'compute-sanitizer'))];
  const found = places.find((place) => spawnSync(place, ['--version']).status === 0);
  if (found) return found;
  console.error('mmmamba: compute-sanitizer is missing; it is part of the CUDA toolkit (cuda-sanitizer-*)');
  process.exit(2);
}

/** One process: a part of the cases under a tool. */
function run(command, tool, part, jobs) {
  const name = join(values.out, `${tool}-${part}`);
  const tests = [join(root, 'dist', 'test', 'ops', 'main.js'), '--device', values.device, '--small', '--part', `${part}/${jobs}`, '--json', `${name}.json`];
  for (const option of ['only', 'dtype']) if (values[option]) tests.push(`--${option}`, values[option]);
  const child = spawn(command, ['--tool', tool, '--log-file', `${name}.log`, '--print-limit', '100', process.execPath, ...tests], {
    cwd: root,
    env: { ...process.env, MMMAMBA_CUDA_CACHE: '0', MMMAMBA_THREADS: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text));
  return new Promise((resolve) => {
    child.on('error', (error) => resolve({ code: -1, name, output: error.message }));
    child.on('close', (code) => {
      writeFileSync(`${name}.out`, output);
      resolve({ code, name, output });
    });
  });
}

/** Errors and warnings that a tool counted, and what they were: its first line and the kernel, by how often. */
function judge({ code, name, output }) {
  const log = existsSync(`${name}.log`) ? readFileSync(`${name}.log`, 'utf8') : '';
  const lines = log.split('\n').map((line) => line.replace(/^=+ ?/, ''));
  const summary = lines.findLast((line) => /SUMMARY/.test(line)) ?? '';
  const count = Number(/SUMMARY: (\d+)/.exec(summary)?.[1] ?? NaN);
  const kinds = new Map();
  lines.forEach((line, i) => {
    if (!/^(Host API|Invalid|Uninitialized|Error|Warning|Program hit|Barrier|Out-of-range|Misaligned)/.test(line)) return;
    const kernel = lines.slice(i, i + 4).map((l) => /\bat (.*?)(\+0x|$)/.exec(l)?.[1]).find(Boolean) ?? '';
    const kind = `${line.replace(/0x[0-9a-f]+/g, '0x..').slice(0, 100)} ${kernel.slice(0, 120)}`.trim();
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  });
  const tests = /(\d+) passed, (\d+) failed/.exec(output);
  return { count, kinds, passed: Number(tests?.[1] ?? 0), failed: tests ? Number(tests[2]) : NaN, code, name };
}

mkdirSync(values.out, { recursive: true });
const command = sanitizer();
const jobs = Number(values.jobs);
let wrong = false;
const report = {};
for (const tool of values.tools.split(',')) {
  const start = performance.now();
  const results = (await Promise.all(Array.from({ length: jobs }, (_, i) => run(command, tool, i + 1, jobs)))).map(judge);
  const sum = (key) => results.reduce((n, r) => n + r[key], 0);
  const kinds = new Map();
  for (const r of results) for (const [kind, n] of r.kinds) kinds.set(kind, (kinds.get(kind) ?? 0) + n);
  const [count, passed, failed] = [sum('count'), sum('passed'), sum('failed')];
  const clean = count === 0 && failed === 0;
  wrong ||= !clean;
  report[tool] = { found: count, passed, failed, kinds: Object.fromEntries(kinds) };
  const found = Number.isNaN(count) ? 'ended without a summary' : `${count} found`;
  console.log(`${tool}: ${clean ? 'clean' : found}, ${passed} checks passed, ${Number.isNaN(failed) ? 'some ended early' : `${failed} failed`}, ${Math.round((performance.now() - start) / 1000)} s`);
  for (const [kind, n] of [...kinds].sort((a, b) => b[1] - a[1]).slice(0, 20)) console.log(`  ${n} x ${kind}`);
  for (const r of results) if (Number.isNaN(r.count) || Number.isNaN(r.failed)) console.log(`  see ${r.name}.log and .out (exit code ${r.code})`);
}
writeFileSync(join(values.out, 'summary.json'), `${JSON.stringify(report, null, 1)}\n`);
console.log(`logs in ${values.out}`);
if (wrong) process.exitCode = 1;
