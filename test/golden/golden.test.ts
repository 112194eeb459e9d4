import test, { type ExecutionContext } from 'ava';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readSafetensors, writeSafetensors, type RawTensor } from '../../lib/io/safetensors.js';
import { packageRoot } from '../../lib/native/loader.js';
import { limitOf } from './limits.js';
import type { Entry } from './golden.js';
import { readIndex, runCase } from './runner.js';

const root = join(packageRoot, 'test', 'golden', 'data');
const index = await readIndex(root);

for (const dtype of ['f32', 'bf16', 'f16'] as const)
  for (const entry of index.cases)
    test.serial(`${entry.op}: ${entry.file}: ${dtype}`, async (t) => {
      t.deepEqual((await runCase(entry, index, { root, device: 'cpu', dtype })).problems, []);
    });

test.serial('a case stands alone: which weights a student is laid over does not depend on the other cases', async (t) => {
  for (const entry of index.cases.filter((c) => ['student_weights', 'stage2_distill'].includes(c.op)))
    t.deepEqual((await runCase(entry, { ...index, cases: [entry] }, { root, device: 'cpu', dtype: 'f32' })).problems, []);
});

/** Runs a case of the folder with its tensors changed. */
async function changed(t: ExecutionContext, file: string, change: (tensors: Map<string, RawTensor>) => Map<string, RawTensor>): Promise<string[]> {
  const folder = mkdtempSync(join(tmpdir(), 'mmmamba-golden-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const { tensors } = await readSafetensors(join(root, file));
  await writeSafetensors(join(folder, 'case.safetensors'), change(tensors));
  const entry: Entry = { ...index.cases.find((c) => c.file === file)!, file: 'case.safetensors' };
  return (await runCase(entry, index, { root: folder, device: 'cpu', dtype: 'f32' })).problems;
}

test.serial('adamw: parameters have any names, and those with bias in it do not decay', async (t) => {
  const renamed = (name: string): string => name.replace('nodecay_param', 'mixer.dt_bias').replace('decay_param', 'mixer.q_proj.weight');
  t.deepEqual(await changed(t, 'optim/adamw_clip2.safetensors', (all) => new Map([...all].map(([name, x]) => [renamed(name), x]))), []);
});

test.serial('the gradient of an input that no upstream gradient reaches is zero', async (t) => {
  const without = (grad: RawTensor) => (all: Map<string, RawTensor>): Map<string, RawTensor> =>
    new Map([...all, ['grad.k', grad] as const].filter(([name]) => name !== 'dout.k_embed'));
  const { tensors } = await readSafetensors(join(root, 'rope/none_pos0.safetensors'));
  const grad = tensors.get('grad.k')!;
  t.deepEqual(await changed(t, 'rope/none_pos0.safetensors', without({ ...grad, data: new Uint8Array(grad.data.length) })), []);
  t.regex((await changed(t, 'rope/none_pos0.safetensors', without(grad)))[0]!, /^grad\.k: maxrel 1\.00e\+0 .*: 0 where/);
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
