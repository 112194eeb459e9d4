import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { MmError } from '../lib/native/errors.js';
import { resolveDevice } from '../lib/native/backends.js';
import type { Shapes } from './cases.js';
import { benchCase, runCase, selectCases, type BenchDtype, type KernelRow } from './kernels.js';
import { ceilings, machine } from './machine.js';
import { TorchPeers } from './peers.js';

const help = `npm run bench -- [options]

Times every op over a list of shapes: medians after warm-up, with the floor (bytes over the copy rate or operations over
the matrix-product rate of this machine, whichever is larger) and the share of it that is reached. On a GPU calls are
replayed as graphs, where an op can be captured, and take operands in turn that its cache cannot hold.

  --device cpu        device to run on
  --dtype LIST        of bf16,f32,f16: dtypes of the operands; default bf16,f32, with --shapes large bf16
  --shapes NAME       usual (default), or large: those of a 2.7B model up to a context of 103,424 tokens
  --filter TEXT       only the cases whose op or name contains it
  --quick             one shape an op
  --once              run each case once and time nothing: for profilers
  --seed N            of the operands; default 1
  --peers torch       also times PyTorch's counterparts, where there are any, in the same run
  --python PATH       the Python that has PyTorch; default python3
  --json FILE         write machine, commit and all rows there
  --markdown FILE     write the table there
`;

const dtypes = ['bf16', 'f32', 'f16'] as const;

/** Runs the kernel benchmarks with the given command-line arguments. */
export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: 'string', default: 'cpu' },
      dtype: { type: 'string' },
      shapes: { type: 'string', default: 'usual' },
      filter: { type: 'string' },
      quick: { type: 'boolean', default: false },
      once: { type: 'boolean', default: false },
      seed: { type: 'string', default: '1' },
      peers: { type: 'string' },
      python: { type: 'string', default: 'python3' },
      json: { type: 'string' },
      markdown: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  const { shapes } = values;
  if (shapes !== 'usual' && shapes !== 'large') throw new MmError('ERR_ARGUMENT', `--shapes must be usual or large; got '${shapes}'`);
  if (values.peers !== undefined && values.peers !== 'torch') throw new MmError('ERR_ARGUMENT', `--peers must be torch; got '${values.peers}'`);
  const chosen = (values.dtype ?? (shapes === 'large' ? 'bf16' : 'bf16,f32')).split(',') as BenchDtype[];
  for (const dtype of chosen) if (!dtypes.includes(dtype)) throw new MmError('ERR_ARGUMENT', `--dtype must be of ${dtypes.join(', ')}; got '${dtype}'`);
  const seed = Number(values.seed);
  if (!Number.isSafeInteger(seed) || seed < 0) throw new MmError('ERR_ARGUMENT', `--seed must be a non-negative integer; got '${values.seed}'`);
  const cases = selectCases(shapes as Shapes, values.filter, values.quick);
  if (!cases.length) throw new MmError('ERR_ARGUMENT', `no benchmark matches '${values.filter}'`);

  const device = resolveDevice(values.device);
  if (values.once) {
    for (const c of cases) for (const dtype of chosen) await runCase(c, { dtype, device, seed });
    return;
  }
  const about = machine(device);
  const { measured, used } = await ceilings(device);
  const flops = (n: number): string => (n / 1e12).toPrecision(3);
  process.stdout.write(`${about.cpu}, ${about.cores} cores, ${JSON.stringify(about.backend)}\ncommit ${about.commit}, ${about.date}\n`);
  process.stdout.write(
    `ceilings: copy ${(used.bytesPerSecond / 1e9).toFixed(1)} GB/s (here ${(measured.bytesPerSecond / 1e9).toFixed(1)}), ` +
      `matrix product ${flops(used.flopsPerSecond.f32)} (f32) and ${flops(used.flopsPerSecond.bf16)} (bf16; here ${flops(measured.flopsPerSecond.bf16)}) TFLOP/s\n`,
  );
  const started = values.peers ? await TorchPeers.start(values.python, device) : null;
  if (started) process.stdout.write(typeof started === 'string' ? `no peers: ${started}\n` : `peers: ${started.about}\n`);
  using peers = typeof started === 'string' ? null : started;

  const rows: KernelRow[] = [];
  const failures: { op: string; name: string; dtype: string; message: string }[] = [];
  process.stdout.write(`\n${columns(heads)}\n`);
  for (const c of cases)
    for (const dtype of chosen) {
      let timed: KernelRow[];
      try {
        timed = await benchCase(c, { dtype, device, ceilings: used, seed });
      } catch (error) {
        if (!(error instanceof MmError)) throw error;
        failures.push({ op: c.op, name: c.name, dtype, message: error.message });
        process.stdout.write(`${c.op.padEnd(widths[0]!)}${c.name.padEnd(widths[1]!)}${dtype.padEnd(widths[2]!)}failed: ${error.message}\n`);
        continue;
      }
      for (const { op, peer, ms } of (await peers?.times(c, dtype, timed[0]!.sets)) ?? [])
        timed.find((r) => r.op === op)?.peers.push({ peer, ms, from: 'run' });
      for (const r of timed) process.stdout.write(`${columns(cells(r))}\n`);
      rows.push(...timed);
    }
  if (values.json) {
    const peer = peers?.about;
    writeFileSync(values.json, `${JSON.stringify({ machine: about, ...(peer && { peers: peer }), ceilings: used, measuredCeilings: measured, rows, failures }, null, 1)}\n`);
    process.stdout.write(`\nwritten to ${values.json}\n`);
  }
  if (values.markdown) {
    const line = (list: readonly string[]): string => `| ${list.join(' | ')} |\n`;
    const head = `${String(about.backend['name'])}, commit ${about.commit}, ${about.date.slice(0, 10)}: \`${about.command}\`\n\n`;
    writeFileSync(values.markdown, head + line(heads) + line(heads.map((_, i) => (i < 3 || i === heads.length - 1 ? '---' : '---:'))) + rows.map((r) => line(cells(r))).join(''));
  }
  if (failures.length) process.exitCode = 1;
}

const heads = ['op', 'shape', 'dtype', 'ms', 'floor ms', 'share', 'GB/s', 'TFLOP/s', 'peers, ms (ours over theirs)'];
const widths = [40, 44, 6, 10, 10, 8, 9, 9, 0];

function cells(r: KernelRow): string[] {
  const figure = (x: number): string => (x < 100 ? x.toPrecision(3) : x.toFixed(0));
  const peers = r.peers.map(({ peer, ms, from }) => `${peer}${from === 'listed' ? ' (listed)' : ''} ${figure(ms)} (${(r.ms / ms).toFixed(2)})`);
  return [
    r.op, r.name, r.dtype, r.ms.toPrecision(4), r.floorMs.toPrecision(3), `${(100 * r.share).toFixed(0)} %`, r.gbPerSecond.toFixed(1),
    r.flops ? (r.gflopPerSecond / 1e3).toPrecision(3) : '', peers.join(', '),
  ];
}
function columns(list: readonly string[]): string {
  return list.map((text, i) => (i < 3 ? text.padEnd(widths[i]!) : i === list.length - 1 ? `  ${text}` : text.padStart(widths[i]!))).join('').trimEnd();
}
