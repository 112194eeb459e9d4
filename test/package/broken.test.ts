import test, { type ExecutionContext } from 'ava';
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { copyOfProject, evaluate } from './project.js';

const copy = copyOfProject();
test.after.always(() => copy.remove());
const prebuilds = join(copy.installed, 'prebuilds');
const [folder, local] = [join(prebuilds, 'linux-x64'), join(copy.installed, 'build', 'Release')];
const [addon, cuda] = [join(folder, 'mmmamba.glibc.node'), join(folder, 'libmmmamba_cuda.so')];
const kept = join(copy.folder, 'kept.node');
copyFileSync(addon, kept);

test.afterEach.always(() => {
  copyFileSync(kept, addon);
  rmSync(join(copy.installed, 'build'), { recursive: true, force: true });
});

/** What the first use of the package throws, as [code, message]; what it gives, as [value]. */
async function use(env: NodeJS.ProcessEnv = {}): Promise<string[]> {
  const text = `const mm = require('mmmamba');
    let out; try { out = [String(mm.memoryStats().tensors)]; } catch (e) { out = [e.code, e.message]; } console.log(JSON.stringify(out));`;
  return (await evaluate('use.cjs', text, copy, env)) as string[];
}
async function refused(t: ExecutionContext, message: RegExp, env: NodeJS.ProcessEnv = {}): Promise<void> {
  const [code, text] = await use(env);
  t.is(code, 'ERR_NATIVE_LOAD');
  t.regex(text!, message);
}

/** An addon that asks for a symbol of the system's C library that no version has. */
function fromTheFuture(to: string): void {
  const [library, source, map] = ['libfuture.so', 'future.s', 'future.map'].map((name) => join(copy.folder, name)) as [string, string, string];
  writeFileSync(source, '.globl future\n.type future,@function\nfuture: ret\n');
  writeFileSync(map, 'GLIBC_2.99 { global: future; };\n');
  execFileSync('gcc', ['-shared', '-nostdlib', '-Wl,-soname,libc.so.6', `-Wl,--version-script=${map}`, source, '-o', library]);
  const user = join(copy.folder, 'user.c');
  writeFileSync(user, 'void future(void); void napi_register_module_v1(void) { future(); }\n');
  execFileSync('gcc', ['-shared', '-fPIC', '-nostdlib', user, library, '-o', to]);
}

test.serial('a binary for a newer glibc says so, and what to do', async (t) => {
  rmSync(addon); // writing over a file that is mapped somewhere would change it there
  fromTheFuture(addon);
  await refused(t, /mmmamba\.glibc\.node: .*version `GLIBC_2\.99' not found.*\n {2}→ the C library is too old: this system has glibc 2\.\d+, the binary needs 2\.99\. Compile it here: npx mmmamba build/);
});

test.serial('a binary that was cut off is refused before it can crash the process', async (t) => {
  truncateSync(addon, 1 << 20);
  await refused(t, /mmmamba\.glibc\.node: the file is truncated: 1048576 of \d+ bytes\n {2}→ the file is damaged or no binary: remove node_modules\/mmmamba and install it again/);
  truncateSync(addon, 10);
  await refused(t, /file too short\n {2}→ the file is damaged/);
});

test.serial('a binary that is none', async (t) => {
  writeFileSync(addon, 'x'.repeat(4096));
  await refused(t, /invalid ELF header\n {2}→ the file is damaged or no binary/);
});

test.serial('a binary for another processor or system, which the linker would call missing or damaged', async (t) => {
  const header = readFileSync(kept);
  header.writeUInt16LE(0xb7, 0x12);
  rmSync(addon);
  writeFileSync(addon, header);
  await refused(t, /mmmamba\.glibc\.node: it is for another processor: arm64\n {2}→ remove node_modules\/mmmamba and install it again on this machine, or compile it here/);
  writeFileSync(addon, Buffer.from('cffaedfe0c000001', 'hex'));
  await refused(t, /it is for another system: macOS\n {2}→ /);
  rmSync(addon);
  mkdirSync(addon);
  try {
    await refused(t, /mmmamba\.glibc\.node: not a file\n {2}→ the file is damaged or no binary/);
  } finally {
    rmSync(addon, { recursive: true });
  }
});

test.serial('an oneDNN that is missing or cut off is a reason with a remedy, and products go on', async (t) => {
  const library = join(folder, 'libdnnl.so.3');
  if (!existsSync(library)) return void t.pass('none is shipped');
  const whole = readFileSync(library);
  const check = async (): Promise<{ found: string; remedy: string }> =>
    (await evaluate(
      'onednn.cjs',
      `const mm = require('mmmamba');
       const { execFileSync } = require('node:child_process');
       const checks = JSON.parse(execFileSync(process.execPath, ['node_modules/mmmamba/dist/lib/cli/main.js', 'doctor', '--json'], { encoding: 'utf8' }));
       const ones = mm.Tensor.full([64, 64], 1);
       mm.matmul({ a: ones, b: ones }).data().then(([sum]) => console.log(JSON.stringify(sum === 64 ? checks.find((c) => c.name === 'oneDNN') : 'wrong')));`,
      copy,
    )) as { found: string; remedy: string };
  try {
    rmSync(library); // writing over a file that is mapped somewhere would change it there
    writeFileSync(library, whole.subarray(0, whole.length >> 1));
    const { found, remedy } = await check();
    t.regex(found, /libdnnl\.so\.3: the file is truncated/);
    t.regex(remedy, /remove node_modules\/mmmamba and install it again/);
  } finally {
    rmSync(library, { force: true });
    writeFileSync(library, whole);
  }
});

test.serial('no binary for this system', async (t) => {
  renameSync(folder, join(prebuilds, 'plan9-mips'));
  try {
    await refused(t, /could not be loaded on linux-x64, Node v.*\nthere is no .* and no binary in .*linux-x64: prebuilt binaries exist for plan9-mips\n {2}→ compile it here: npx mmmamba build/);
  } finally {
    renameSync(join(prebuilds, 'plan9-mips'), folder);
  }
});

test.serial('the order: MMMAMBA_NATIVE_PATH alone, a local build, the prebuilt binary; what fails is passed over and told', async (t) => {
  mkdirSync(local, { recursive: true });
  const built = join(local, 'mmmamba.node');
  writeFileSync(built, 'x'.repeat(4096));
  t.deepEqual(await use(), ['0']);
  const addonCheck = (await evaluate(
    'doctor.cjs',
    `const { execFileSync } = require('node:child_process');
     const text = execFileSync(process.execPath, ['node_modules/mmmamba/dist/lib/cli/main.js', 'doctor', '--json'], { encoding: 'utf8' });
     console.log(JSON.stringify(JSON.parse(text).find((check) => check.name === 'addon')));`,
    copy,
  )) as { status: string; found: string; remedy: string };
  t.is(addonCheck.status, 'warn');
  t.regex(addonCheck.found, /mmmamba\.glibc\.node\npassed over .*build\/Release\/mmmamba\.node: .*invalid ELF header/);
  t.regex(addonCheck.remedy, /install it again/);

  writeFileSync(addon, 'x'.repeat(4096));
  await refused(t, /build\/Release\/mmmamba\.node: invalid ELF header\n {2}→ .*\n.*mmmamba\.glibc\.node: invalid ELF header\n {2}→ /);
  t.deepEqual(await use({ MMMAMBA_NATIVE_PATH: kept }), ['0']);
  copyFileSync(kept, built);
  t.deepEqual(await use(), ['0']);
  await refused(t, /MMMAMBA_NATIVE_PATH=\/none\.node could not be loaded: \/none\.node: no such file\n {2}→ correct the path, or unset the variable/, { MMMAMBA_NATIVE_PATH: '/none.node' });
});

test.serial('a binary of another version of the package is refused', async (t) => {
  const manifest = join(copy.installed, 'package.json');
  const text = readFileSync(manifest, 'utf8');
  writeFileSync(manifest, text.replace(`"version": "${copy.version}"`, '"version": "99.0.0"'));
  try {
    await refused(t, new RegExp(`built for mmmamba ${copy.version.replaceAll('.', '\\.')}, and this is 99\\.0\\.0\\n {2}→ build it again`));
  } finally {
    writeFileSync(manifest, text);
  }
});

/** What backends() says of CUDA, and what using it throws. */
async function cudaReason(t: ExecutionContext): Promise<string> {
  const text = `const mm = require('mmmamba');
    const { available, reason } = mm.backends().find((b) => b.name === 'cuda');
    let thrown; try { mm.Tensor.zeros([1], { device: 'cuda' }); } catch (e) { thrown = [e.code, e.message]; }
    mm.add({ a: mm.Tensor.from([1]), b: mm.Tensor.from([2]) }).data().then(([sum]) => console.log(JSON.stringify({ available, reason, thrown, sum })));`;
  const { available, reason, thrown, sum } = (await evaluate('cuda.cjs', text, copy, { CUDA_VISIBLE_DEVICES: '' })) as {
    available: boolean;
    reason: string;
    thrown: string[];
    sum: number;
  };
  t.deepEqual([available, thrown[0], sum], [false, 'ERR_DEVICE', 3]);
  t.true(thrown[1]!.includes(reason));
  return reason;
}

test.serial('a CUDA library that is hidden or corrupted is a reason, and the CPU goes on', async (t) => {
  const shipped = existsSync(cuda);
  if (shipped) {
    t.notRegex(await cudaReason(t), /no such file|truncated/);
    renameSync(cuda, join(copy.folder, 'hidden.so'));
  }
  t.regex(await cudaReason(t), /linux-x64\/libmmmamba_cuda\.so: no such file; .*build-cuda\/libmmmamba_cuda\.so: no such file/);
  // Any library that is cut off: the addon itself will do where none is shipped.
  const whole = readFileSync(shipped ? join(copy.folder, 'hidden.so') : kept);
  writeFileSync(cuda, whole.subarray(0, whole.length >> 1));
  t.regex(await cudaReason(t), /libmmmamba_cuda\.so: the file is truncated: \d+ of \d+ bytes/);
  rmSync(cuda);
  if (shipped) renameSync(join(copy.folder, 'hidden.so'), cuda);
});
