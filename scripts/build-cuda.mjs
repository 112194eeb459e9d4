// Builds build-cuda/libmmmamba_cuda.so with CMake. `npm run build:cuda [-- --arch 90a]`: architectures as compute capabilities,
// several with commas; default: those of the GPUs of this machine, else 80 and 90a. `--if-nvcc`: without nvcc, says so and succeeds.
// `--release`: as the package carries it: every architecture and one PTX unless told otherwise, compressed, without line numbers
// (together a twentieth of the size), for glibc 2.28.
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cudaToolkit } from './cuda-toolkit.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const out = join(root, 'build-cuda');

function fail(message) {
  console.error(`mmmamba: ${message}`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (result.error) fail(`${command} could not be started: ${result.error.message}`);
  return result;
}

const { values } = parseArgs({
  options: {
    arch: { type: 'string' },
    jobs: { type: 'string', default: String(availableParallelism()) },
    release: { type: 'boolean' },
    'if-nvcc': { type: 'boolean' },
  },
});

const toolkit = cudaToolkit();
if (!toolkit && values['if-nvcc']) {
  console.log('mmmamba: there is no nvcc here, so the CUDA library is not built');
  process.exit();
}
if (!toolkit) fail('nvcc is missing: install the CUDA toolkit, 12.4 to 13, or set CUDA_HOME to where it is');

/** Code for each kind of GPU since Ampere; the PTX is for those that have none here. */
const released = ['80', '86', '89', '90a', '100', '120', 'ptx'];
/**
 * The PTX that machine code is made from where it is not of the GPU's own version: writing PTX takes several times as long as translating
 * it, and the kernels' sources tell no GPUs apart between 8.0 and 8.9, nor from 10.0 on.
 */
const virtual = { 86: '80', 89: '80', 120: '100', ptx: '80' };

/** nvcc's options for the architectures. */
const codeFor = (archs) =>
  archs.map((arch) => `--generate-code=arch=compute_${virtual[arch] ?? arch},code=${arch === 'ptx' ? `compute_${virtual.ptx}` : `sm_${arch}`}`);

function architectures() {
  if (values.arch) return values.arch.split(',');
  if (values.release) return released;
  const found = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], { encoding: 'utf8' });
  const caps = found.status === 0 ? [...new Set(found.stdout.trim().split('\n').map((line) => line.replace('.', '')))] : [];
  return caps.length > 0 ? caps.map((cap) => (cap === '90' ? '90a' : cap)) : ['80', '90a'];
}

mkdirSync(out, { recursive: true });
const archs = architectures();
const { linkFlags } = values.release ? await import('./release/glibc-stubs.mjs') : { linkFlags: () => [] };
const configure = run('cmake', [
  '-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=Release',
  `-DCMAKE_CUDA_COMPILER=${join(toolkit, 'bin', 'nvcc')}`,
  `-DMMMAMBA_CUDA_CODE=${codeFor(archs).join(';')}`,
  `-DMMMAMBA_RELEASE_LINK=${linkFlags(join(root, '.cache', 'glibc')).join(';')}`,
]);
if (configure.status !== 0) fail(`cmake failed:\n${configure.stdout}${configure.stderr}`);
const build = run('cmake', ['--build', out, '--parallel', values.jobs], { stdio: ['ignore', 'pipe', 'pipe'] });
if (build.status !== 0) fail(`building the CUDA library failed:\n${build.stdout}${build.stderr}`);
console.log(`${join(out, 'libmmmamba_cuda.so')} (${archs.join(', ')})`);
