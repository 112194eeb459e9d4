import test from 'ava';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../lib/native/loader.js';
import { limitOf } from './limits.js';
import { readIndex, runCase } from './runner.js';

const root = join(packageRoot, 'test', 'golden', 'data');
const index = await readIndex(root);

for (const dtype of ['f32', 'bf16', 'f16'] as const)
  for (const entry of index.cases)
    test.serial(`${entry.op}: ${entry.file}: ${dtype}`, async (t) => {
      t.deepEqual((await runCase(entry, index, { root, device: 'cpu', dtype })).problems, []);
    });

test('what a folder asks for and this runner does not know has failed', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mmmamba-golden-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const cases = [{ name: 'x', op: 'no_such_op', file: 'x.json' }, { name: 'y', op: 'gelu', file: 'y.safetensors' }];
  writeFileSync(join(folder, 'index.json'), JSON.stringify({ cases }));
  const main = join(packageRoot, 'dist', 'test', 'golden', 'main.js');
  const run = (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
    new Promise((resolve) => {
      execFile(process.execPath, [main, ...args], (error, stdout, stderr) => resolve({ code: Number(error?.code ?? 0), stdout, stderr }));
    });
  const failed = await run(folder);
  t.is(failed.code, 1);
  const lines = failed.stdout.trimEnd().split('\n');
  t.regex(lines[0]!, /^FAIL no_such_op x\.json: unknown op 'no_such_op'/);
  t.regex(lines[1]!, /^FAIL gelu y\.safetensors: /);
  t.is(lines.at(-1), '0 passed, 2 failed');
  t.is((await run(join(folder, 'nowhere'))).code, 2);
  t.is((await run(folder, '--dtype', 'f8')).code, 2);
});

test('limits come from the folder, formulas included', (t) => {
  const ssd = { fp32_out: 2e-5, fp32_grad: 1e-4, fp32_grad_A_dt_bias: 1e-3, bf16_out: 0.02, bf16_grad_A_dt_bias: '4*stats[2]+0.05' };
  t.is(limitOf('out.y', 'f32', ssd), 2e-5);
  t.is(limitOf('grad.x', 'f32', ssd), 1e-4);
  t.is(limitOf('grad.A', 'f32', ssd), 1e-3);
  t.is(limitOf('grad.A', 'bf16', ssd, 0.1), 4 * 0.1 + 0.05);
  t.is(limitOf('out.y', 'bf16', ssd, 0.1), 0.4);
  const rope = { fp32_out: '1e-6 + 3e-7*max(position)', fp32_grad: 'same' };
  t.is(limitOf('grad.q', 'f32', rope, 0, [0, 5, 10]), 1e-6 + 3e-7 * 10);
  t.throws(() => limitOf('out.y', 'f32', { fp32_out: 'as small as can be' }), { message: /not understood/ });
});
