// Builds build-cuda/libmmmamba_cuda.so with CMake. `npm run build:cuda [-- --arch 90a]`: architectures as compute capabilities,
// several with commas; default: those of the GPUs of this machine, else 80 and 90a. `--if-nvcc`: without nvcc, says so and succeeds.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

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
  options: { arch: { type: 'string' }, jobs: { type: 'string', default: String(availableParallelism()) }, 'if-nvcc': { type: 'boolean' } },
});

const toolkit = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean).find((folder) => existsSync(join(folder, 'bin', 'nvcc')));
if (!toolkit && values['if-nvcc']) {
  console.log('mmmamba: there is no nvcc here, so the CUDA library is not built');
  process.exit();
}
if (!toolkit) fail('nvcc is missing: install the CUDA toolkit, 12.4 to 13, or set CUDA_HOME to where it is');

function architectures() {
  if (values.arch) return values.arch.split(',');
  const found = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], { encoding: 'utf8' });
  const caps = found.status === 0 ? [...new Set(found.stdout.trim().split('\n').map((line) => line.replace('.', '')))] : [];
  return caps.length > 0 ? caps.map((cap) => (cap === '90' ? '90a' : cap)) : ['80', '90a'];
}

mkdirSync(out, { recursive: true });
const archs = architectures();
const configure = run('cmake', [
  '-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=Release',
  `-DCMAKE_CUDA_COMPILER=${join(toolkit, 'bin', 'nvcc')}`,
  `-DMMMAMBA_CUDA_ARCHS=${archs.map((arch) => `${arch}-real`).join(';')}`,
]);
if (configure.status !== 0) fail(`cmake failed:\n${configure.stdout}${configure.stderr}`);
const build = run('cmake', ['--build', out, '--parallel', values.jobs], { stdio: ['ignore', 'pipe', 'pipe'] });
if (build.status !== 0) fail(`building the CUDA library failed:\n${build.stdout}${build.stderr}`);
console.log(`${join(out, 'libmmmamba_cuda.so')} (${archs.join(', ')})`);
