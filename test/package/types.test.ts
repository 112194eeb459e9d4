import test from 'ava';
import { execFile } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { packageRoot } from '../../lib/native/loader.js';
import { project } from './project.js';

const run = promisify(execFile);
const tool = (name: string): string => join(packageRoot, 'node_modules', '.bin', name);

/** What went wrong, as the tool prints it; empty where nothing did. */
async function complaints(command: string, args: string[], cwd: string): Promise<string> {
  return run(command, args, { cwd }).then(
    () => '',
    (error: { stdout: string; stderr: string }) => error.stdout + error.stderr,
  );
}

test('publint finds nothing in the tarball', async (t) => {
  t.is(await complaints(tool('publint'), ['run', project().tarball, '--strict'], packageRoot), '');
});

// One ES module build that require() loads as well, from Node 20.19 on: the two rules that speak of older Nodes are off.
test('are the types wrong? finds nothing in the tarball', async (t) => {
  t.is(await complaints(tool('attw'), [project().tarball, '--ignore-rules', 'cjs-resolves-to-esm', 'no-resolution', '--no-emoji'], packageRoot), '');
});

// A program for Node has Node's types.
const nodeTypes = ['--types', 'node', '--typeRoots', join(packageRoot, 'node_modules', '@types')];

test('TypeScript takes the package from an ES module and from CommonJS, and refuses what is wrong', async (t) => {
  const folder = join(project().folder, 'types');
  mkdirSync(folder, { recursive: true });
  const use = (wrong: string): string => `
    const random: mm.Random = new mm.Random(1);
    const y: mm.Tensor = mm.rmsNorm({ x: mm.Tensor.full([2, 8], random.normal()), weight: mm.Tensor.full([8], 2) }, { ${wrong} });
    export const values: Promise<mm.TensorData> = y.data();`;
  writeFileSync(join(folder, 'good.mts'), `import * as mm from 'mmmamba'; import { presets } from 'mmmamba/train'; presets.emoji;${use('eps: 1e-5')}`);
  writeFileSync(join(folder, 'good.cts'), `import mm = require('mmmamba');${use('eps: 1e-5')}`);
  writeFileSync(join(folder, 'bad.mts'), `import * as mm from 'mmmamba';${use('eps: "small"')}`);
  const check = (...files: string[]): Promise<string> =>
    complaints(tool('tsc'), ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--lib', 'es2023,esnext.disposable', ...nodeTypes, ...files], folder);
  t.is(await check('good.mts', 'good.cts'), '');
  t.regex(await check('bad.mts'), /error TS2322: Type 'string' is not assignable to type 'number'/);
});
