// What NVIDIA's Nsight Compute says of the kernels of a benchmark case: duration, share of the peak of the multiprocessors' busiest
// pipe and of device memory, by kernel. `node scripts/profile.mjs [--filter TEXT ...] [--json FILE]`, for the cases of
// `npm run bench -- --shapes large` whose op or name contains a TEXT; every kernel of ours that a case launches is measured once,
// those that fill operands are left out.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const usual = ['attention B1 Lq32768 Lk32768 H16 Hk8', 'ssd L103424 H16 P128 N128 G16', 'selectiveScan B8 D4096 N16 L32768'];
const { values } = parseArgs({ options: { filter: { type: 'string', multiple: true, default: usual }, json: { type: 'string' } } });

const places = ['ncu', ...['/usr/local/cuda', process.env.CUDA_HOME].filter(Boolean).map((folder) => join(folder, 'bin', 'ncu'))];
const ncu = places.find((place) => spawnSync(place, ['--version']).status === 0);
if (!ncu) {
  console.error('mmmamba: ncu is missing; it is part of the CUDA toolkit (cuda-nsight-compute-*)');
  process.exit(2);
}

const metrics = {
  ms: 'gpu__time_duration.sum',
  sm: 'sm__throughput.avg.pct_of_peak_sustained_elapsed',
  dram: 'dram__throughput.avg.pct_of_peak_sustained_elapsed',
  l2: 'lts__throughput.avg.pct_of_peak_sustained_elapsed',
  occupancy: 'sm__warps_active.avg.pct_of_peak_sustained_active',
};

/** Fields of a line of ncu's CSV, every one of which is quoted. */
const fields = (line) => [...line.matchAll(/"((?:[^"]|"")*)"/g)].map((m) => m[1]);

/** A case's kernels, in the order of their launches. */
function profile(filter) {
  const bench = [join(root, 'dist', 'bench', 'run.js'), '--device', 'cuda', '--shapes', 'large', '--once', '--filter', filter];
  const options = ['--clock-control', 'none', '--csv', '--page', 'raw', '--print-units', 'base', '--metrics', Object.values(metrics).join(','), '--kernel-name', 'regex:^(?!copyKernel|stridedCopy|fill).*'];
  const done = spawnSync(ncu, [...options, process.execPath, ...bench], { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  const lines = done.stdout.split('\n').filter((line) => line.startsWith('"'));
  if (done.status !== 0 || lines.length < 3) throw new Error(`ncu failed for '${filter}': ${(done.stderr + done.stdout).slice(-500)}`);
  const head = fields(lines[0]);
  const at = (name) => head.indexOf(name);
  return lines.slice(2).map((line) => {
    const cells = fields(line);
    const number = (name) => Number(cells[at(name)].replaceAll(',', ''));
    return {
      kernel: cells[at('Kernel Name')].replace(/^void /, '').replaceAll(/(mm::cuda::|<?unnamed>::|\(anonymous namespace\)::)/g, '').replace(/\(.*$/, ''),
      ms: Number((number(metrics.ms) / 1e6).toPrecision(4)),
      smPercent: Math.round(number(metrics.sm)),
      dramPercent: Math.round(number(metrics.dram)),
      l2Percent: Math.round(number(metrics.l2)),
      warpsPercent: Math.round(number(metrics.occupancy)),
    };
  });
}

const cases = values.filter.map((filter) => ({ case: filter, kernels: profile(filter) }));
for (const { case: name, kernels } of cases) {
  console.log(name);
  for (const k of kernels) console.log(`  ${String(k.ms).padStart(9)} ms  SM ${k.smPercent} %  DRAM ${k.dramPercent} %  L2 ${k.l2Percent} %  warps ${k.warpsPercent} %  ${k.kernel.slice(0, 90)}`);
}
if (values.json) {
  const { machine } = await import(join(root, 'dist', 'bench', 'machine.js'));
  const version = /Version (\S+)/.exec(spawnSync(ncu, ['--version'], { encoding: 'utf8' }).stdout)?.[1];
  writeFileSync(values.json, `${JSON.stringify({ machine: machine('cuda'), ncu: version, metrics, cases }, null, 1)}\n`);
}
