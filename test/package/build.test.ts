import test from 'ava';
import { join } from 'node:path';
import { copyOfProject, evaluate, node } from './project.js';

// The user's PATH plus a compiler; without optimisation, as it is the list of shipped sources that is tried here.
test('npx mmmamba build compiles from the sources that the package carries, without a network', async (t) => {
  const copy = copyOfProject();
  try {
    const env = { PATH: process.env['PATH'], CXXFLAGS: '-O0' };
    const built = await node([join(copy.installed, 'dist', 'lib', 'cli', 'main.js'), 'build'], copy, env);
    t.deepEqual([built.code, built.stdout], [0, 'mmmamba: built; it is used from now on, before the prebuilt one\n'], built.stderr);
    const [found, sum] = (await evaluate(
      'built.cjs',
      `const mm = require('mmmamba');
       const { execFileSync } = require('node:child_process');
       const checks = JSON.parse(execFileSync(process.execPath, ['node_modules/mmmamba/dist/lib/cli/main.js', 'doctor', '--json'], { encoding: 'utf8' }));
       mm.add({ a: mm.Tensor.from([1]), b: mm.Tensor.from([2]) }).data().then(([sum]) => console.log(JSON.stringify([checks.find((c) => c.name === 'addon').found, sum])));`,
      copy,
    )) as [string, number];
    t.true(found.endsWith(join('build', 'Release', 'mmmamba.node')), found);
    t.is(sum, 3);
  } finally {
    copy.remove();
  }
});
