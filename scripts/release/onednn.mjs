// Builds the oneDNN that the prebuilt package carries: Debian's source of one version, for one thread a call (our pool calls it from
// many), without its GPU half, OpenMP and OpenCL, so that it needs nothing but libc. Of its primitives matrix products alone, and of
// those the brgemm kernels alone, which are written at run time for AVX2, AVX-512 and AMX: what they do not take, csrc/cpu/gemm.cc does
// faster than oneDNN's other ways. That is 5 MB and some minutes of compiling in place of 21 MB and forty. Once: the result stays in
// .cache/onednn, and is only linked again where the flags or the functions that it shows have changed.
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { debian } from './debian.mjs';

const version = '3.7.2';
const source = { suite: 'trixie', version: '3.7.2+ds-2' };

/** Sources of other primitives and of other ways to matrix products. The lists of implementations stay: they come out empty. */
const unused = new RegExp(
  [
    '^x64/(gemm|lrn|prelu|rnn|shuffle)/|^(gemm|rnn)/|^matmul/(gemm|ref)_|^(ref|simple|nchw|nhwc)_',
    '(conv(?!ert)|pool|norm|softmax|resampl|inner_product|eltwise|binary|reduction|shuffle|prelu|lrn|sparse_matmul|uni_reorder|matmul_reorders)[^/]*$',
  ].join('|'),
);
const used = /_list\.cpp$|injector|^x64\/gemm\/f32\/jit_avx_gemm_f32\.cpp$/;

function fetch(folder, from) {
  debian(folder, { suite: source.suite, type: 'deb-src' })('source', '--download-only', `onednn=${source.version}`);
  const archive = readdirSync(folder).find((name) => name.startsWith('onednn_') && name.includes('.orig.tar.'));
  execFileSync('tar', ['xf', archive], { cwd: folder });
  const cpu = join(from, 'src', 'cpu');
  for (const path of readdirSync(cpu, { recursive: true }))
    if (path.endsWith('.cpp') && unused.test(path) && !used.test(path)) rmSync(join(cpu, path));
  const list = join(cpu, 'matmul', 'cpu_matmul_list.cpp');
  const text = readFileSync(list, 'utf8');
  writeFileSync(list, text.replace(/^ *CPU_INSTANCE\(\w+(<\w+>)?\)\n/gm, ''));
}

/** The functions that csrc/cpu/onednn.cc asks the library for are all that it shows: what they do not reach, the linker drops. */
function exportsOf(folder, root) {
  const names = new Set(readFileSync(join(root, 'csrc', 'cpu', 'onednn.cc'), 'utf8').match(/(?<=F\()dnnl_\w+/g));
  const map = join(folder, 'exports.map');
  writeFileSync(map, `{ global: ${[...names].join('; ')}; local: *; };\n`);
  return map;
}

/** @returns {{library: string, licences: string[], include: string[]}} */
export function oneDnn(root, linkFlags) {
  const folder = join(root, '.cache', 'onednn');
  const [from, build] = [join(folder, `oneDNN-${version}`), join(folder, 'build')];
  const library = join(build, 'src', `libdnnl.so.${version.split('.')[0]}`);
  mkdirSync(build, { recursive: true });
  if (!existsSync(from)) fetch(folder, from);
  const map = exportsOf(folder, root);
  const link = [...linkFlags.filter((flag) => !flag.includes('version-script')), `-Wl,--version-script=${map}`];
  const record = join(folder, 'linked');
  const linked = `${link.join('\n')}\n${readFileSync(map, 'utf8')}`;
  if (!existsSync(library) || !existsSync(record) || readFileSync(record, 'utf8') !== linked) {
    if (existsSync(library)) rmSync(realpathSync(library));
    const run = (...args) => execFileSync('cmake', args, { stdio: ['ignore', 'ignore', 'inherit'] });
    // What is compiled here writes the kernels, and at -O3 that takes three times as long.
    run(
      '-S', from, '-B', build, '-Wno-dev', '-DCMAKE_BUILD_TYPE=Release', '-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG -ffunction-sections -fdata-sections',
      '-DDNNL_CPU_RUNTIME=SEQ', '-DDNNL_GPU_RUNTIME=NONE', '-DONEDNN_BUILD_GRAPH=OFF', '-DDNNL_BUILD_TESTS=OFF', '-DDNNL_BUILD_EXAMPLES=OFF',
      '-DONEDNN_ENABLE_GEMM_KERNELS_ISA=AVX2', '-DONEDNN_ENABLE_WORKLOAD=INFERENCE', '-DONEDNN_ENABLE_PRIMITIVE=MATMUL', '-DONEDNN_ENABLE_JIT_PROFILING=OFF', '-DONEDNN_ENABLE_ITT_TASKS=OFF',
      `-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--gc-sections,-z,defs ${link.join(' ')}`,
    );
    run('--build', build, '--parallel', String(availableParallelism()), '--target', 'dnnl');
    writeFileSync(record, linked);
  }
  const licences = ['LICENSE', 'THIRD-PARTY-PROGRAMS'].map((name) => join(from, name)).filter((path) => existsSync(path));
  return { library: realpathSync(library), licences, include: [join(from, 'include'), join(build, 'include')] };
}

/** Puts the library and its licences into a folder, under the name that csrc/cpu/onednn.cc opens. */
export function bundleOneDnn({ library, licences }, folder) {
  copyFileSync(library, join(folder, `libdnnl.so.${version.split('.')[0]}`));
  for (const path of licences) copyFileSync(path, join(folder, `libdnnl.${path.split('/').at(-1)}`));
}
