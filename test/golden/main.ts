// npm run golden -- DIR [--device cpu] [--dtype f32|bf16]: holds the library to a folder of golden cases.
import { parseArgs } from 'node:util';
import type { RunOptions } from './golden.js';
import { readIndex, runCase } from './runner.js';

const usage = 'usage: npm run --silent golden -- DIR [--device cpu|cuda] [--dtype f32|bf16]';

function options(): RunOptions {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { device: { type: 'string', default: 'cpu' }, dtype: { type: 'string', default: 'f32' } },
  });
  const { device, dtype } = values;
  if (positionals.length !== 1) throw new Error(`one folder is needed, not ${positionals.length}`);
  if (dtype !== 'f32' && dtype !== 'bf16') throw new Error(`--dtype is '${dtype}'; f32 and bf16 are possible`);
  return { root: positionals[0]!, device, dtype };
}

async function main(): Promise<void> {
  const run = options();
  const index = await readIndex(run.root);
  let passed = 0;
  let failed = 0;
  for (const entry of index.cases) {
    const { problems } = await runCase(entry, index, run);
    if (problems.length === 0) {
      passed++;
      continue;
    }
    failed++;
    const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
    console.log(`FAIL ${entry.op} ${entry.file}: ${problems[0]!}${more}`);
  }
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0) process.exitCode = 1;
}

try {
  await main();
} catch (error) {
  console.error(`${error instanceof Error ? error.message : String(error)}\n${usage}`);
  process.exitCode = 2;
}
