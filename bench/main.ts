import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { MmError } from '../lib/native/errors.js';
import { resolveDevice } from '../lib/native/backends.js';
import { benchCase, selectCases, type KernelRow } from './kernels.js';
import { ceilings, machine } from './machine.js';

const help = `npm run bench -- [options]

Times every op over a list of shapes: medians after warm-up, with the floor (bytes over the copy rate or operations over
the matrix-product rate of this machine, whichever is larger) and the share of it that is reached.

  --device cpu        device to run on
  --dtype bf16|f32    dtype of the operands; both without this option
  --filter TEXT       only the cases whose op or name contains it
  --quick             one shape an op
  --seed N            of the operands; default 1
  --json FILE         write machine, commit and all rows there
`;

/** Runs the kernel benchmarks with the given command-line arguments. */
export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: 'string', default: 'cpu' },
      dtype: { type: 'string' },
      filter: { type: 'string' },
      quick: { type: 'boolean', default: false },
      seed: { type: 'string', default: '1' },
      json: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  if (values.dtype && values.dtype !== 'f32' && values.dtype !== 'bf16') throw new MmError('ERR_ARGUMENT', `--dtype must be f32 or bf16; got '${values.dtype}'`);
  const seed = Number(values.seed);
  if (!Number.isSafeInteger(seed) || seed < 0) throw new MmError('ERR_ARGUMENT', `--seed must be a non-negative integer; got '${values.seed}'`);
  const dtypes = values.dtype ? [values.dtype as 'f32' | 'bf16'] : (['bf16', 'f32'] as const);
  const cases = selectCases(values.filter, values.quick);
  if (!cases.length) throw new MmError('ERR_ARGUMENT', `no benchmark matches '${values.filter}'`);
  const device = resolveDevice(values.device);
  const about = machine(device);
  const top = await ceilings(device);
  process.stdout.write(`${about.cpu}, ${about.cores} cores, ${JSON.stringify(about.backend)}\ncommit ${about.commit}, ${about.date}\n`);
  process.stdout.write(
    `ceilings: copy ${(top.bytesPerSecond / 1e9).toFixed(1)} GB/s, matrix product ${(top.flopsPerSecond.f32 / 1e9).toFixed(0)} (f32) and ${(top.flopsPerSecond.bf16 / 1e9).toFixed(0)} (bf16) GFLOP/s\n\n`,
  );
  const rows: KernelRow[] = [];
  process.stdout.write(`${'op'.padEnd(26)}${'shape'.padEnd(44)}${'dtype'.padEnd(6)}${'ms'.padStart(10)}${'floor ms'.padStart(10)}${'share'.padStart(8)}${'GB/s'.padStart(9)}${'GFLOP/s'.padStart(10)}\n`);
  for (const c of cases)
    for (const dtype of dtypes)
      for (const r of await benchCase(c, dtype, device, top, seed)) {
        rows.push(r);
        process.stdout.write(
          `${r.op.padEnd(26)}${r.name.padEnd(44)}${r.dtype.padEnd(6)}${r.ms.toPrecision(4).padStart(10)}${r.floorMs.toPrecision(3).padStart(10)}${`${(100 * r.share).toFixed(0)} %`.padStart(8)}${r.gbPerSecond.toFixed(1).padStart(9)}${(r.flops ? r.gflopPerSecond.toFixed(1) : '').padStart(10)}\n`,
        );
      }
  if (values.json) {
    writeFileSync(values.json, `${JSON.stringify({ machine: about, ceilings: top, rows }, null, 1)}\n`);
    process.stdout.write(`\nwritten to ${values.json}\n`);
  }
}
