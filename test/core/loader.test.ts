import test, { type ExecutionContext } from 'ava';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { backends, type BackendInfo } from '../../lib/index.js';
import { bindingPath, packageRoot } from '../../lib/native/loader.js';
import { opSchemas } from '../../lib/tensor/run.js';
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

test('MMMAMBA_NATIVE_PATH names a binary, never a script', async (t) => {
  const script = join(folder, 'script.js');
  writeFileSync(script, 'throw new Error("it ran")');
  const e = await attempt({ MMMAMBA_NATIVE_PATH: script });
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

/** The reason that backends() gives for a library. Using the device must throw the same, and the CPU must go on. */
async function refused(t: ExecutionContext, path: string, env: Record<string, string> = {}): Promise<string> {
  const ended = await attempt(
    { ...env, MMMAMBA_CUDA_PATH: path },
    `await (async () => {
       const { available, reason, devices } = mm.backends().find((b) => b.name === 'cuda');
       const thrown = (() => { try { mm.Tensor.zeros([1], { device: 'cuda' }); } catch (e) { return [e.name, e.code, e.message]; } })();
       const sum = [...await mm.add({ a: mm.Tensor.from([1]), b: mm.Tensor.from([2]) }).data()];
       return { available, reason, devices, thrown, sum };
     })()`,
  );
  const { reason, thrown, ...rest } = ended.value as { reason: string; thrown: string[] };
  t.deepEqual(rest, { available: false, devices: [], sum: [3] } as object);
  t.deepEqual(thrown.slice(0, 2), ['MmError', 'ERR_DEVICE']);
  t.true(thrown[2]!.includes(reason), thrown[2]);
  return reason;
}

async function refusedWhereverItEnds(t: ExecutionContext, library: string): Promise<void> {
  const whole = readFileSync(library);
  const path = join(folder, `cut-${basename(library)}`);
  for (const bytes of [0, 10, 64, 4096, whole.length >> 1, whole.length - 1]) {
    writeFileSync(path, whole.subarray(0, bytes));
    const expected = bytes < 64 ? 'file too short' : `the file is truncated: ${bytes} of ${whole.length} bytes`;
    const reason = await refused(t, path);
    t.true(reason.includes(`${path}: ${expected}`), reason);
  }
}

test('a CUDA library that was cut off is a reason, wherever it ends', (t) => refusedWhereverItEnds(t, bindingPath()));

/** A shared library of one C++ source. */
function compiled(name: string, source: string): string {
  const [from, to] = [join(folder, `${name}.cc`), join(folder, `${name}.so`)];
  writeFileSync(from, source);
  execFileSync('g++', ['-std=c++17', '-shared', '-fPIC', '-I', join(packageRoot, 'csrc'), from, '-o', to]);
  return to;
}

const entry = (body: string): string =>
  `#include <dlfcn.h>
   #include <cstdio>
   #include "abi/backend.h"
   extern "C" __attribute__((visibility("default"))) const MMBackend* mm_backend_entry(uint32_t version) {
     static MMBackend b{};
     b.abi_version = version, b.struct_size = sizeof b, b.name = "cuda";
     ${body}
     return &b;
   }`;

test('a CUDA library of another version, or without a device, is a reason', async (t) => {
  const older = compiled('older', entry('if (version != MM_ABI_VERSION - 1) return nullptr;'));
  t.regex(await refused(t, older), /older\.so: built for another version of mmmamba \(backend ABI \d+ is needed\)/);
  const newer = compiled('newer', entry('b.abi_version = version + 1;'));
  t.regex(await refused(t, newer), /newer\.so: built for another version of mmmamba/);
  const shorter = compiled('shorter', entry('b.struct_size = sizeof b - 8;'));
  t.regex(await refused(t, shorter), /shorter\.so: built for another version of mmmamba/);
  const empty = compiled('empty', '');
  t.regex(await refused(t, empty), /empty\.so: not a backend library \(no mm_backend_entry\)/);
  const idle = compiled('idle', entry('b.device_count = [](char* why, uint64_t size) { return std::snprintf(why, size, "all GPUs are on holiday"), 0; };'));
  t.is(await refused(t, idle), 'all GPUs are on holiday');
});

test('an index beyond the devices is refused with their number', async (t) => {
  const three = compiled(
    'three',
    entry('b.device_count = [](char*, uint64_t) { return 3; }; b.device_info = [](int32_t, char* json, uint64_t size) { std::snprintf(json, size, "{}"); };'),
  );
  const e = await attempt({ MMMAMBA_CUDA_PATH: three }, "mm.Tensor.zeros([1], { device: 'cuda:3' })");
  t.deepEqual([e.code, e.message], ['ERR_DEVICE', "device 'cuda:3' does not exist: there are 3 cuda devices"]);
});

// The library itself, which a machine without a GPU can build and load.
const built = join(packageRoot, 'build-cuda', 'libmmmamba_cuda.so');
const builtEntry = `reinterpret_cast<MMBackendEntry>(dlsym(dlopen("${built}", RTLD_NOW | RTLD_LOCAL), "mm_backend_entry"))`;
const withBuilt = (title: string, body: (t: ExecutionContext) => Promise<void>): void =>
  existsSync(built) ? test(`the built CUDA library ${title}`, body) : test.skip(`the built CUDA library ${title} (npm run build:cuda builds it)`, body);

withBuilt('loads without a GPU and says what is missing', async (t) => {
  t.is((await cuda(built)).library, built);
  t.regex(await refused(t, built, { CUDA_VISIBLE_DEVICES: '' }), /no NVIDIA driver: .*install the driver|the driver sees no GPU/);
});

withBuilt('is a reason where it was cut off', (t) => refusedWhereverItEnds(t, built));

withBuilt('takes no ABI version but its own', async (t) => {
  const before = compiled('before', entry(`return ${builtEntry}(version - 1);`));
  t.regex(await refused(t, before), /before\.so: built for another version of mmmamba/);
  const after = compiled('after', entry(`return ${builtEntry}(version + 1);`));
  t.regex(await refused(t, after), /after\.so: built for another version of mmmamba/);
});

withBuilt('has a kernel for every operator', async (t) => {
  // a backend whose devices are the kernels
  const lister = compiled(
    'lister',
    entry(`static const MMBackend& real = *${builtEntry}(version);
           b.device_count = [](char*, uint64_t) { return int32_t(real.kernel_count); };
           b.device_info = [](int32_t i, char* json, uint64_t size) { std::snprintf(json, size, R"({"op":"%s"})", real.kernels[i].op); };`),
  );
  const listed = new Set((await cuda(lister)).devices.map((d) => d['op']));
  t.deepEqual(opSchemas().map((s) => s.name).filter((name) => !listed.has(name)), []);
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
