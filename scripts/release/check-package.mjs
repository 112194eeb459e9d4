// Holds what `npm pack` would send to the rules of a release: what the binaries need of a system, how large they are, that nothing
// runs at installation, that sources of `npx mmmamba build` are there. Prints the figures as JSON; ends with 1 where a rule is broken.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { gpuCode } from './fatbin.mjs';
import { compareVersions, dynamicSymbols, floor } from './glibc-stubs.mjs';

const root = join(import.meta.dirname, '..', '..');
const folder = join(root, 'prebuilds', 'linux-x64');
const broken = [];

/** Packed megabytes (10^6 bytes): the package without the CUDA library, and that library alone. */
const budget = { cpu: 15, cuda: 40 };
/** What every Linux with Node has. The CUDA runtime is inside the CUDA library; oneDNN and cuBLASLt are opened when they are there. */
const allowed = ['libc.so.6', 'libm.so.6', 'libdl.so.2', 'libpthread.so.0', 'librt.so.1', 'libgcc_s.so.1', 'ld-linux-x86-64.so.2'];
/** What older glibc has outside of libc.so.6 (since 2.34 it has all): who wants such a name has to name the library too. */
const elsewhere = {
  'libdl.so.2': /^dl(open|mopen|sym|vsym|close|error|addr)$/,
  'libpthread.so.0': /^(pthread_(create|join|detach|once|key_\w+|spin_\w+|rwlock\w*)|sem_\w+)$/,
  'librt.so.1': /^(shm|mq|aio|timer)_\w+$/,
};

function binary(name) {
  const path = join(folder, name);
  const needed = [...execFileSync('readelf', ['-d', path], { encoding: 'utf8' }).matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, library]) => library);
  for (const library of needed) if (!allowed.includes(library)) broken.push(`${name} needs ${library}`);
  const wanted = dynamicSymbols(path).filter(({ defined }) => !defined);
  for (const [library, names] of Object.entries(elsewhere)) {
    const symbol = wanted.find((each) => names.test(each.name));
    if (symbol && !needed.includes(library)) broken.push(`${name} wants ${symbol.name} without naming ${library}, which has it before glibc 2.34`);
  }
  const spell = (symbols) => `${symbols.slice(0, 3).map((symbol) => symbol.name).join(', ')}${symbols.length > 3 ? ` and ${symbols.length - 3} more` : ''}`;
  const cpp = wanted.filter(({ version }) => /^(GLIBCXX|CXXABI)_/.test(version));
  if (cpp.length > 0) broken.push(`${name} wants ${spell(cpp)} from the system's C++ library`);
  // Node has its own, and weak ones may be missing; all else without a version is something that glibc 2.28 lacks.
  const absent = wanted.filter((symbol) => symbol.version === '' && !symbol.weak && !/^(napi|node_api)_/.test(symbol.name));
  if (absent.length > 0) broken.push(`${name} wants ${spell(absent)}, which glibc ${floor} does not have`);
  const glibc = wanted
    .map(({ version }) => version)
    .filter((version) => version.startsWith('GLIBC_'))
    .sort(compareVersions)
    .at(-1);
  if (glibc && compareVersions(glibc, floor) > 0) broken.push(`${name} needs ${glibc}; the floor is ${floor}`);
  const bytes = readFileSync(path);
  const code = name === 'libmmmamba_cuda.so' ? { gpuCode: gpuCode(path) } : {};
  return { name, ...code, glibc: glibc?.replace('GLIBC_', ''), bytes: bytes.length, packed: gzipSync(bytes, { level: 9 }).length };
}

if (!existsSync(folder)) {
  console.error('mmmamba: there are no prebuilt binaries: run npm run prebuild first');
  process.exit(1);
}
const binaries = readdirSync(folder).filter((name) => /\.(node|so)(\.\d+)?$/.test(name)).map(binary);
const about = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
for (const script of ['preinstall', 'install', 'postinstall', 'prepare']) if (about.scripts[script]) broken.push(`package.json has a script '${script}'`);
if (about.gypfile !== false) broken.push('package.json lacks "gypfile": false, so npm would compile at installation');

const [pack] = JSON.parse(execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 }));
const files = new Set(pack.files.map(({ path }) => path));
for (const path of ['binding.gyp', 'CMakeLists.txt', 'scripts/build-native.mjs', 'scripts/build-cuda.mjs', 'csrc/napi/addon.cc', 'CHANGELOG.md', 'LICENSE'])
  if (!files.has(path)) broken.push(`the package lacks ${path}`);
if (!binaries.some(({ name }) => name === 'mmmamba.glibc.node')) broken.push('the package lacks the addon');

const cuda = binaries.find(({ name }) => name === 'libmmmamba_cuda.so')?.packed ?? 0;
const cpu = pack.size - cuda;
if (cpu > budget.cpu * 1e6) broken.push(`the CPU part is ${(cpu / 1e6).toFixed(1)} MB packed; at most ${budget.cpu} are allowed`);
if (cuda > budget.cuda * 1e6) broken.push(`the CUDA part is ${(cuda / 1e6).toFixed(1)} MB packed; at most ${budget.cuda} are allowed`);

console.log(JSON.stringify({ version: about.version, packed: pack.size, unpacked: pack.unpackedSize, files: pack.files.length, cpuPart: cpu, cudaPart: cuda, binaries }, null, 1));
for (const rule of broken) console.error(`mmmamba: ${rule}`);
if (broken.length > 0) process.exit(1);
