// Builds build-cuda/libmmmamba_cuda.so with CMake. `npm run build:cuda [-- --arch 90a]`: architectures as compute capabilities,
// several with commas; default: those of the GPUs of this machine, else 80 and 90a.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
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

const { values } = parseArgs({ options: { arch: { type: 'string' }, jobs: { type: 'string', default: String(availableParallelism()) } } });

const toolkit = ['/usr/local/cuda', process.env.CUDA_HOME, process.env.CUDA_PATH].filter(Boolean).find((folder) => existsSync(join(folder, 'bin', 'nvcc')));
if (!toolkit) fail('nvcc is missing: install the CUDA toolkit, 12.4 to 13, or set CUDA_HOME to where it is');

function architectures() {
  if (values.arch) return values.arch.split(',');
  const found = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], { encoding: 'utf8' });
  const caps = found.status === 0 ? [...new Set(found.stdout.trim().split('\n').map((line) => line.replace('.', '')))] : [];
  return caps.length > 0 ? caps.map((cap) => (cap === '90' ? '90a' : cap)) : ['80', '90a'];
}

// Slim toolkits lack the headers of cuBLAS; NVIDIA's wheel has them.
function cublasHeaders() {
  if (existsSync(join(toolkit, 'include', 'cublasLt.h'))) return join(toolkit, 'include');
  const major = /release (\d+)\./.exec(run(join(toolkit, 'bin', 'nvcc'), ['--version']).stdout)?.[1] ?? fail('nvcc does not say its version');
  const folder = join(out, `cublas-${major}`);
  const header = join(folder, 'cublasLt.h');
  if (existsSync(header)) return folder;
  const wheel = major === '12' ? 'nvidia-cublas-cu12==12.8.4.1' : 'nvidia-cublas==13.1.1.3';
  console.error(`mmmamba: ${toolkit} has no cublasLt.h; taking the headers from ${wheel}`);
  const wheels = join(out, 'wheel');
  mkdirSync(wheels, { recursive: true });
  mkdirSync(folder, { recursive: true });
  const got = run('python3', ['-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', wheels, wheel]);
  if (got.status !== 0) fail(`the wheel ${wheel} could not be downloaded; install the cuBLAS headers of CUDA ${major} (libcublas-dev-${major}-*)\n${got.stderr}`);
  const unzip = 'import glob,sys,zipfile,os\nfor w in glob.glob(sys.argv[1]+"/*.whl"):\n z=zipfile.ZipFile(w)\n for n in z.namelist():\n  if "/include/" in n and n.endswith(".h"): open(os.path.join(sys.argv[2],os.path.basename(n)),"wb").write(z.read(n))';
  run('python3', ['-c', unzip, wheels, folder]);
  rmSync(wheels, { recursive: true, force: true });
  if (!existsSync(header)) fail(`the wheel ${wheel} holds no cublasLt.h`);
  return folder;
}

mkdirSync(out, { recursive: true });
const archs = architectures();
const configure = run('cmake', [
  '-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=Release',
  `-DCMAKE_CUDA_COMPILER=${join(toolkit, 'bin', 'nvcc')}`,
  `-DMMMAMBA_CUDA_ARCHS=${archs.map((arch) => `${arch}-real`).join(';')}`,
  `-DCUBLASLT_INCLUDE_DIR=${cublasHeaders()}`,
]);
if (configure.status !== 0) fail(`cmake failed:\n${configure.stdout}${configure.stderr}`);
const build = run('cmake', ['--build', out, '--parallel', values.jobs], { stdio: ['ignore', 'pipe', 'pipe'] });
if (build.status !== 0) fail(`building the CUDA library failed:\n${build.stdout}${build.stderr}`);
console.log(`${join(out, 'libmmmamba_cuda.so')} (${archs.join(', ')})`);
