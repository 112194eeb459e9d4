// `npm run prebuild`: makes prebuilds/<platform>/ for `npm pack`, from a checkout that has been built or not. Three binaries, all for
// glibc 2.28 and stripped: the addon, oneDNN, and with nvcc the CUDA library.
//
//   --arch 90a     GPU architectures of the CUDA library; default all of a release (scripts/build-cuda.mjs), about half an hour on two cores
//   --no-cuda      without the CUDA library
//   --no-onednn    without oneDNN: products of bf16 run at half the speed, those of f32 as fast
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { cudaToolkit } from '../cuda-toolkit.mjs';
import { linkFlags } from './glibc-stubs.mjs';
import { bundleOneDnn, oneDnn } from './onednn.mjs';

const root = join(import.meta.dirname, '..', '..');
const cache = join(root, '.cache');
const { values } = parseArgs({ options: { arch: { type: 'string' }, 'no-cuda': { type: 'boolean' }, 'no-onednn': { type: 'boolean' } } });

function fail(message) {
  console.error(`mmmamba: ${message}`);
  process.exit(1);
}
if (process.platform !== 'linux' || process.arch !== 'x64' || !process.report.getReport().header.glibcVersionRuntime)
  fail('prebuilt binaries are made on x86-64 Linux with glibc; elsewhere the package is compiled by `npx mmmamba build`');

const flags = linkFlags(join(cache, 'glibc'));
const artifacts = join(cache, 'artifacts');
rmSync(artifacts, { recursive: true, force: true });
mkdirSync(artifacts, { recursive: true });

const onednn = values['no-onednn'] ? null : oneDnn(root, flags);
if (onednn) bundleOneDnn(onednn, artifacts);

if (!values['no-cuda'] && cudaToolkit()) {
  const built = spawnSync(process.execPath, [join(root, 'scripts', 'build-cuda.mjs'), '--release', ...(values.arch ? ['--arch', values.arch] : [])], { stdio: 'inherit' });
  if (built.status !== 0) process.exit(1);
  copyFileSync(join(root, 'build-cuda', 'libmmmamba_cuda.so'), join(artifacts, 'libmmmamba_cuda.so'));
}
for (const name of ['libmmmamba_cuda.so', 'libdnnl.so.3'])
  if (existsSync(join(artifacts, name))) execFileSync('strip', ['--strip-all', join(artifacts, name)]);

rmSync(join(root, 'prebuilds'), { recursive: true, force: true });
process.env.LDFLAGS = flags.join(' ');
if (onednn) process.env.CPLUS_INCLUDE_PATH = onednn.include.join(':');
const prebuildify = promisify(createRequire(import.meta.url)('prebuildify'));
await prebuildify({
  cwd: root,
  name: 'mmmamba',
  napi: true,
  tagLibc: true,
  strip: true,
  targets: [process.versions.node],
  nodeGyp: join(import.meta.dirname, 'node-gyp.mjs'),
  artifacts,
});
// The next local build compiles it with the system's headers again.
rmSync(join(root, 'build', 'Release', 'obj.target', 'mmmamba', 'csrc', 'cpu', 'onednn.o'), { force: true });
const made = join(root, 'prebuilds', 'linux-x64');
for (const name of readdirSync(made)) console.log(`${join(made, name)}  ${(statSync(join(made, name)).size / 1e6).toFixed(1)} MB`);
