// `npm run bench:package`: how long somebody waits who installs the packed package, and how large it is. Writes
// bench/results/packaging.json. Figures count on a machine that does nothing else; each is the median of its runs.
//
// "cold": an empty folder, and the system's file cache dropped before every run (as root; else it says so). The dependencies come out of npm's
// cache, so that the registry's speed is not measured.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..');
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const json = (command, args, cwd = root) => JSON.parse(execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 }));

const load = loadavg()[0]; // before this program's own work is in it
const sizes = json(process.execPath, [join(import.meta.dirname, 'check-package.mjs')]);
const base = mkdtempSync(join(tmpdir(), 'mmmamba-measure-'));
execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', base], { cwd: root, stdio: 'ignore' });
const tarball = join(base, `mmmamba-${sizes.version}.tgz`);

const kernel = "const mm = require('mmmamba'); mm.add({ a: mm.Tensor.from([1]), b: mm.Tensor.from([2]) }).data().then(([sum]) => process.exit(sum === 3 ? 0 : 1))";

function dropCaches() {
  return spawnSync('sh', ['-c', 'sync; echo 3 > /proc/sys/vm/drop_caches'], { stdio: 'ignore' }).status === 0;
}

let project;
function installAndRun(i, ...options) {
  project = join(base, `project-${i}`);
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"private":true}\n');
  const cold = dropCaches();
  const begin = performance.now();
  execFileSync('npm', ['install', '--no-audit', '--no-fund', ...options, tarball], { cwd: project, stdio: 'ignore' });
  const installed = performance.now();
  execFileSync(process.execPath, ['-e', kernel], { cwd: project });
  return { cold, install: (installed - begin) / 1000, firstResult: (performance.now() - begin) / 1000 };
}

try {
  installAndRun('warm', '--prefer-offline'); // fills npm's cache
  const runs = [1, 2, 3, 4, 5].map((i) => installAndRun(i, '--offline'));
  const text = "const t = performance.now(); require('mmmamba'); console.log(performance.now() - t)";
  const require = [];
  for (let i = 0; i < 21; i++) require.push(Number(execFileSync(process.execPath, ['-e', text], { cwd: project, encoding: 'utf8' })));
  const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  const result = {
    command: 'npm run bench:package',
    machine: `${cpus()[0].model.trim()}, ${cpus().length} cores, ${(totalmem() / 2 ** 30).toFixed(0)} GiB, Node ${process.version}`,
    date: new Date().toISOString(),
    commit: git('rev-parse', '--short=12', 'HEAD') + (git('status', '--porcelain') ? ' and changes' : ''),
    load,
    cold: runs.every(({ cold }) => cold),
    secondsToInstall: median(runs.map(({ install }) => install)),
    secondsToFirstResult: median(runs.map(({ firstResult }) => firstResult)),
    requireMs: median(require),
    requireMsOfAllRuns: require,
    sizes,
  };
  writeFileSync(join(root, 'bench', 'results', 'packaging.json'), `${JSON.stringify(result, null, 1)}\n`);
  const { packed, unpacked, cpuPart, cudaPart } = sizes;
  const mb = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  console.log(`npm install to first kernel result${result.cold ? ', cold' : ', file cache warm'}: ${result.secondsToFirstResult.toFixed(2)} s`);
  console.log(`require: ${result.requireMs.toFixed(1)} ms`);
  console.log(`packed ${mb(packed)} (CPU part ${mb(cpuPart)}, CUDA part ${mb(cudaPart)}), unpacked ${mb(unpacked)}`);
  if (result.load > 0.5) console.log(`the machine was busy (load ${result.load.toFixed(1)}): measure again`);
} finally {
  rmSync(base, { recursive: true });
}
