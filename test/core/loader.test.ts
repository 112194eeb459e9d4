import test from 'ava';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { backends, type BackendInfo } from '../../lib/index.js';
import { bindingPath } from '../../lib/native/loader.js';
import { runScript } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'mmmamba-loader-'));
test.after.always(() => rmSync(folder, { recursive: true }));
const garbage = join(folder, 'garbage.node');
writeFileSync(garbage, 'this is no shared library');

/** Loads the library in a child process and prints the error of its first use, or what `use` gives. */
async function attempt(
  env: Record<string, string>,
  use = 'mm.memoryStats().tensors',
): Promise<{ code?: string; message?: string; name?: string; value?: unknown }> {
  const ended = await runScript(
    `const mm = await load();
     let out;
     try { out = { value: ${use} }; } catch (e) { out = { code: e.code, message: e.message, name: e.name }; }
     console.log(JSON.stringify(out));`,
    { env, lazy: true },
  );
  return JSON.parse(ended.stdout || '{}') as { code?: string };
}

test('MMMAMBA_NATIVE_PATH names a missing file', async (t) => {
  const path = join(folder, 'missing.node');
  const e = await attempt({ MMMAMBA_NATIVE_PATH: path });
  t.deepEqual([e.name, e.code], ['MmError', 'ERR_NATIVE_LOAD']);
  t.true(e.message!.includes(`MMMAMBA_NATIVE_PATH=${path} could not be loaded`));
});

test('MMMAMBA_NATIVE_PATH names a corrupt file', async (t) => {
  const e = await attempt({ MMMAMBA_NATIVE_PATH: garbage });
  t.deepEqual([e.name, e.code], ['MmError', 'ERR_NATIVE_LOAD']);
  t.true(e.message!.includes(garbage));
});

test('MMMAMBA_NATIVE_PATH is absolute', async (t) => {
  const e = await attempt({ MMMAMBA_NATIVE_PATH: 'build/Release/mmmamba.node' });
  t.is(e.code, 'ERR_NATIVE_LOAD');
  t.regex(e.message!, /must be an absolute path of a \.node file/);
});

test('MMMAMBA_NATIVE_PATH names the addon', async (t) => {
  t.deepEqual(await attempt({ MMMAMBA_NATIVE_PATH: bindingPath() }), { value: 0 });
});

test('MMMAMBA_CUDA_PATH is absolute', async (t) => {
  const e = await attempt({ MMMAMBA_CUDA_PATH: 'libmmmamba_cuda.so' });
  t.is(e.code, 'ERR_NATIVE_LOAD');
  t.regex(e.message!, /MMMAMBA_CUDA_PATH must be an absolute path/);
});

const cuda = async (path: string): Promise<BackendInfo> =>
  (await attempt({ MMMAMBA_CUDA_PATH: path }, "mm.backends().find((b) => b.name === 'cuda')")).value as BackendInfo;

test('a CUDA library that is missing, corrupt or not one of ours is a reason, not a crash', async (t) => {
  const missing = await cuda(join(folder, 'missing.so'));
  t.false(missing.available);
  t.regex(missing.reason!, /missing\.so: no such file/);
  const corrupt = await cuda(garbage);
  t.false(corrupt.available);
  t.regex(corrupt.reason!, /garbage\.node/);
  const other = await cuda(bindingPath());
  t.false(other.available);
  t.regex(other.reason!, /not a backend library/);
});

test('backends() describes the CPU', (t) => {
  const cpu = backends().find((b) => b.name === 'cpu')!;
  t.true(cpu.available);
  t.is(cpu.reason, null);
  const device = cpu.devices[0]!;
  t.regex(String(device['isa']), /^(base|avx2|avx512)$/);
  t.true(Number(device['threads']) >= 1);
  t.truthy(device['gemm']);
});
