// Builds build/Release/mmmamba.node with node-gyp, on all cores, and says what an absent oneDNN costs. `npm run build` calls it in a
// checkout and `npx mmmamba build` in an installed package, which has no node-gyp of its own: npm brings one.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const prefix = dirname(dirname(process.execPath));

function findNodeGyp() {
  const inNpm = 'node_modules/node-gyp/bin/node-gyp.js';
  const npm = process.env.npm_execpath ? join(dirname(process.env.npm_execpath), '..') : join(prefix, 'lib/node_modules/npm');
  try {
    return createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
  } catch {
    return [process.env.npm_config_node_gyp, join(npm, inNpm), join(prefix, 'lib/node_modules/npm', inNpm)].find((path) => path && existsSync(path));
  }
}
const nodeGyp = findNodeGyp();
if (!nodeGyp) {
  console.error('mmmamba: node-gyp is neither installed nor part of npm here: npm install node-gyp, then build again');
  process.exit(1);
}

// What csrc/cpu/onednn.cc includes, where compilers look for it.
if (!['/usr/include', '/usr/local/include'].some((folder) => existsSync(join(folder, 'oneapi/dnnl/dnnl.h'))))
  console.error('mmmamba: the headers of oneDNN are missing, so large matrix products will run on the slower built-in GEMM. For full speed: apt-get install libdnnl-dev, then build again.');

// Node's own headers where they are installed beside it, so that nothing is downloaded; elsewhere node-gyp fetches them.
const nodedir = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];

const result = spawnSync(process.execPath, [nodeGyp, 'configure', 'build', '-j', String(availableParallelism()), ...nodedir, ...process.argv.slice(2)], {
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
