// Builds build-cuda/libmmmamba_cuda.so with CMake. `npm run build:cuda [-- --arch 90a]`: architectures as compute capabilities,
// several with commas; default: those of the GPUs of this machine, else 80 and 90a. `--if-nvcc`: without nvcc, says so and succeeds.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, homedir } from 'node:os';
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

// NVIDIA's wheels with the headers of cuBLAS, by the toolkit's major version, and their SHA-256. The headers are the same for every
// processor, so one wheel serves all.
const wheels = {
  12: ['nvidia-cublas-cu12==12.8.4.1', '8ac4e771d5a348c551b2a426eda6193c19aa630236b418086020df5ba9667142'],
  13: ['nvidia-cublas==13.1.1.3', '37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436'],
};

// Puts the headers of a wheel into a folder, which appears whole or not at all.
function fetchHeaders(wheel, sha256, folder) {
  mkdirSync(dirname(folder), { recursive: true });
  const work = mkdtempSync(`${folder}-`);
  const python = (what, minutes, ...args) => {
    const result = spawnSync('python3', args, { encoding: 'utf8', timeout: minutes * 60_000 });
    if (result.status !== 0) throw new Error(`${what} failed: ${result.error?.message ?? result.stderr.trim()}`);
  };
  try {
    const headers = join(work, 'include');
    mkdirSync(headers);
    writeFileSync(join(work, 'requirements.txt'), `${wheel} --hash=sha256:${sha256}\n`);
    python('pip download', 30, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--platform', 'manylinux_2_27_x86_64',
      '--retries', '5', '--timeout', '60', '--require-hashes', '--requirement', join(work, 'requirements.txt'), '--dest', work);
    const file = readdirSync(work).find((name) => name.endsWith('.whl'));
    const unpack = `
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if '/include/' in name and name.endswith('.h'):
            with open(os.path.join(sys.argv[2], os.path.basename(name)), 'wb') as header:
                header.write(wheel.read(name))
`;
    python(`unpacking ${file}`, 5, '-c', unpack, join(work, file), headers);
    if (!existsSync(join(headers, 'cublasLt.h'))) throw new Error(`${file} holds no cublasLt.h`);
    rmSync(folder, { recursive: true, force: true });
    renameSync(headers, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

// Slim toolkits lack the headers of cuBLAS. What NVIDIA's wheel gave once stays in the user's cache folder.
function cublasHeaders() {
  if (existsSync(join(toolkit, 'include', 'cublasLt.h'))) return join(toolkit, 'include');
  const major = /release (\d+)\./.exec(run(join(toolkit, 'bin', 'nvcc'), ['--version']).stdout)?.[1] ?? fail('nvcc does not say its version');
  const remedy = `install the headers of cuBLAS of CUDA ${major} (libcublas-dev-${major}-* of NVIDIA's repository)`;
  if (!(major in wheels)) fail(`${toolkit} has no cublasLt.h; ${remedy}`);
  const [wheel, sha256] = wheels[major];
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'mmmamba', wheel.replace('==', '-'));
  if (existsSync(join(folder, 'cublasLt.h'))) return folder;
  console.error(`mmmamba: ${toolkit} has no cublasLt.h; taking the headers from ${wheel} (some 400 MB, once)`);
  try {
    fetchHeaders(wheel, sha256, folder);
  } catch (error) {
    fail(`the headers of cuBLAS could not be had: ${error.message}\nRemedy: ${remedy}, or put cublasLt.h and cublas_api.h into ${folder}`);
  }
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
