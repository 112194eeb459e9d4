// Builds the oneDNN that the prebuilt package carries: Debian's source of one version, for one thread a call (our pool calls it from
// many), without its GPU half, OpenMP and OpenCL, so that it needs nothing but libc; matrix products alone, and of the older GEMM
// kernels none beyond AVX2, as the brgemm kernels stand before them. Once: the result stays in .cache/onednn.
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { debian } from './debian.mjs';

const version = '3.7.2';
const source = { suite: 'trixie', version: '3.7.2+ds-2' };

function fetch(folder) {
  debian(folder, { suite: source.suite, type: 'deb-src' })('source', '--download-only', `onednn=${source.version}`);
  const archive = readdirSync(folder).find((name) => name.startsWith('onednn_') && name.includes('.orig.tar.'));
  execFileSync('tar', ['xf', archive], { cwd: folder });
}

/** @returns {{library: string, licences: string[], include: string[]}} */
export function oneDnn(folder, linkFlags) {
  const [from, build] = [join(folder, `oneDNN-${version}`), join(folder, 'build')];
  const library = join(build, 'src', `libdnnl.so.${version.split('.')[0]}`);
  if (!existsSync(library)) {
    mkdirSync(build, { recursive: true });
    if (!existsSync(from)) fetch(folder);
    const run = (...args) => execFileSync('cmake', args, { stdio: ['ignore', 'ignore', 'inherit'] });
    // oneDNN's kernels are written at run time; what is compiled here writes them, and at -O3 that takes three times as long. It compiles
    // all primitives; the linker drops those that nothing reaches, four fifths of the code.
    run(
      '-S', from, '-B', build, '-Wno-dev', '-DCMAKE_BUILD_TYPE=Release', '-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG -ffunction-sections -fdata-sections',
      '-DDNNL_CPU_RUNTIME=SEQ', '-DDNNL_GPU_RUNTIME=NONE', '-DONEDNN_BUILD_GRAPH=OFF', '-DDNNL_BUILD_TESTS=OFF', '-DDNNL_BUILD_EXAMPLES=OFF',
      '-DONEDNN_ENABLE_GEMM_KERNELS_ISA=AVX2', '-DONEDNN_ENABLE_WORKLOAD=INFERENCE', '-DONEDNN_ENABLE_PRIMITIVE=MATMUL;REORDER', '-DONEDNN_ENABLE_JIT_PROFILING=OFF', '-DONEDNN_ENABLE_ITT_TASKS=OFF',
      `-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--gc-sections ${linkFlags.join(' ')}`,
    );
    run('--build', build, '--parallel', String(availableParallelism()));
  }
  const licences = ['LICENSE', 'THIRD-PARTY-PROGRAMS'].map((name) => join(from, name)).filter((path) => existsSync(path));
  return { library: realpathSync(library), licences, include: [join(from, 'include'), join(build, 'include')] };
}

/** Puts the library and its licences into a folder, under the name that csrc/cpu/onednn.cc opens. */
export function bundleOneDnn({ library, licences }, folder) {
  copyFileSync(library, join(folder, `libdnnl.so.${version.split('.')[0]}`));
  for (const path of licences) copyFileSync(path, join(folder, `libdnnl.${path.split('/').at(-1)}`));
}
