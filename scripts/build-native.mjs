// Builds build/Release/mmmamba.node with node-gyp, on all cores, and says what an absent oneDNN costs.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const nodeGyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
// What csrc/cpu/onednn.cc includes, where compilers look for it.
if (!['/usr/include', '/usr/local/include'].some((folder) => existsSync(join(folder, 'oneapi/dnnl/dnnl.h'))))
  console.error('mmmamba: the headers of oneDNN are missing, so large matrix products will run on the slower built-in GEMM. For full speed: apt-get install libdnnl-dev, then build again.');

// Node's own headers where they are installed beside it, so that nothing is downloaded.
const prefix = dirname(dirname(process.execPath));
const nodedir = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];

const result = spawnSync(process.execPath, [nodeGyp, existsSync(join(root, 'build', 'Makefile')) ? 'build' : 'rebuild', '-j', String(availableParallelism()), ...nodedir, ...process.argv.slice(2)], {
  cwd: root,
  stdio: ['ignore', 'pipe', 'pipe'],
  encoding: 'utf8',
  maxBuffer: 1 << 28,
});
if (result.status !== 0) {
  process.stderr.write(result.stdout + result.stderr);
  console.error('mmmamba: building the addon failed (output above). It needs g++ 12 or newer, make and python3.');
  process.exit(1);
}
