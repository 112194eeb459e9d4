// npm run golden -- DIR [--device cpu] [--dtype f32|bf16|f16]: holds the library to a folder of golden cases.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { machine } from '../../bench/machine.js';
import { resolveDevice } from '../../lib/native/backends.js';
import type { RunOptions } from './golden.js';
import { readIndex, runCase } from './runner.js';

const usage = 'usage: npm run --silent golden -- DIR [--device cpu|cuda] [--dtype f32|bf16|f16] [--json FILE]';

function options(): RunOptions & { json: string | undefined } {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { device: { type: 'string', default: 'cpu' }, dtype: { type: 'string', default: 'f32' }, json: { type: 'string' } },
  });
  const { dtype, json } = values;
  if (positionals.length !== 1) throw new Error(`one folder is needed, not ${positionals.length}`);
  if (dtype !== 'f32' && dtype !== 'bf16' && dtype !== 'f16') throw new Error(`--dtype is '${dtype}'; f32, bf16 and f16 are possible`);
  return { root: positionals[0]!, device: resolveDevice(values.device), dtype, json };
}

async function main(): Promise<void> {
  const { json, ...run } = options();
  const index = await readIndex(run.root);
  const counts: Record<string, { passed: number; failed: number }> = {};
  const failures: { op: string; file: string; problems: string[] }[] = [];
  let passed = 0;
  for (const entry of index.cases) {
    const { problems } = await runCase(entry, index, run);
    const count = (counts[entry.op] ??= { passed: 0, failed: 0 });
    if (problems.length === 0) {
      passed++;
      count.passed++;
      continue;
    }
    count.failed++;
    failures.push({ op: entry.op, file: entry.file, problems });
    const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
    console.log(`FAIL ${entry.op} ${entry.file}: ${problems[0]!}${more}`);
  }
  console.log(`${passed} passed, ${failures.length} failed`);
  if (json) writeFileSync(json, `${JSON.stringify({ machine: machine(run.device), dtype: run.dtype, passed, failed: failures.length, counts, failures }, null, 1)}\n`);
  if (failures.length > 0) process.exitCode = 1;
}

try {
  await main();
} catch (error) {
  console.error(`${error instanceof Error ? error.message : String(error)}\n${usage}`);
  process.exitCode = 2;
}
