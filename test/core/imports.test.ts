import test from 'ava';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { packageRoot } from '../../lib/native/loader.js';

/** Files below a folder, as paths from the package's root. */
function files(folder: string, ending: RegExp): string[] {
  const root = join(packageRoot, folder);
  if (!existsSync(root)) return [];
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile() && ending.test(e.name))
    .map((e) => relative(packageRoot, join(e.parentPath, e.name)));
}
const read = (path: string): string => readFileSync(join(packageRoot, path), 'utf8');
const folderOf = (path: string): string => path.split('/')[1]!;

/** What each folder of lib may import; itself is understood. One direction: nothing imports what comes before it. */
const layers: Record<string, string[]> = {
  cli: ['train', 'models', 'nn', 'io', 'ops', 'autograd', 'tensor', 'native'],
  train: ['models', 'nn', 'io', 'ops', 'autograd', 'tensor', 'native'],
  models: ['nn', 'io', 'ops', 'autograd', 'tensor', 'native'],
  nn: ['ops', 'autograd', 'tensor', 'native'],
  ops: ['autograd', 'tensor', 'native'],
  autograd: ['tensor', 'native'],
  io: ['tensor', 'native'],
  tensor: ['native'],
  native: [],
};

function imports(path: string): string[] {
  return [...read(path).matchAll(/(?:\bfrom|\bimport)\s*\(?\s*'([^']+)'/g)].map((m) => m[1]!);
}

test('lib imports in one direction', (t) => {
  const wrong: string[] = [];
  for (const path of files('lib', /\.ts$/)) {
    const folder = folderOf(path);
    if (folder === 'index.ts') continue;
    const allowed = layers[folder];
    if (!allowed) {
      wrong.push(`${path}: lib/${folder} has no place in the layers`);
      continue;
    }
    for (const name of imports(path).filter((n) => n.startsWith('.'))) {
      const target = relative(packageRoot, join(packageRoot, path, '..', name));
      if (!target.startsWith('lib/')) wrong.push(`${path} imports ${target}`);
      else if (folderOf(target) !== folder && !allowed.includes(folderOf(target))) wrong.push(`${path} imports ${target}, which points back`);
      const beyondErrors = folder === 'io' && folderOf(target) === 'native' && !target.endsWith('native/errors.js');
      if (beyondErrors) wrong.push(`${path} imports ${target}; io may import native/errors only`);
    }
  }
  t.deepEqual(wrong, []);
});

test('only lib/ops and lib/autograd run operators, only lib/native and lib/tensor touch the addon', (t) => {
  const wrong: string[] = [];
  for (const path of files('lib', /\.ts$/)) {
    const folder = folderOf(path);
    for (const name of imports(path)) {
      if (name.endsWith('tensor/run.js') && !['ops', 'autograd'].includes(folder)) wrong.push(`${path} imports ${name}`);
      if (name.endsWith('native/loader.js') && !['native', 'tensor'].includes(folder)) wrong.push(`${path} imports ${name}`);
    }
    if (folder !== 'native' && /process\.dlopen|\.node['"`]/.test(read(path))) wrong.push(`${path} loads a .node file`);
  }
  t.deepEqual(wrong, []);
});

/** What each folder of csrc may include; itself is understood. */
const includes: Record<string, string[]> = {
  napi: ['core', 'ops', 'abi'],
  core: ['cpu', 'ops', 'abi'],
  cpu: ['ops', 'abi'],
  cuda: ['ops', 'abi'],
  ops: ['abi'],
  abi: [],
};

test('csrc includes in one direction', (t) => {
  const wrong: string[] = [];
  for (const path of files('csrc', /\.(h|cc|inc|cu|cuh)$/)) {
    const folder = folderOf(path);
    const allowed = includes[folder];
    if (!allowed) {
      wrong.push(`${path}: csrc/${folder} has no place in the layers`);
      continue;
    }
    for (const [, style, name] of read(path).matchAll(/^\s*#\s*include\s*(["<])([^">]+)[">]/gm)) {
      const target = name!.split('/')[0]!;
      if (style === '"' && target !== folder && !allowed.includes(target)) wrong.push(`${path} includes ${name!}, which points back`);
      if (style === '<' && /^(napi|node_api)/.test(name!) && folder !== 'napi') wrong.push(`${path} includes ${name!}; Node-API is csrc/napi's`);
      if (style === '<' && /^(cuda|cublas|cooperative_groups|mma\.h)/.test(name!) && folder !== 'cuda')
        wrong.push(`${path} includes ${name!}; CUDA is csrc/cuda's`);
    }
  }
  t.deepEqual(wrong, []);
});

test('the one .node knows nothing of CUDA', (t) => {
  t.notRegex(read('binding.gyp'), /cuda|nvcc|cublas/i);
});

test('csrc/napi names no operator', (t) => {
  const ops = [...read('lib/ops/generated.ts').matchAll(/^export function (\w+)/gm)].map((m) => m[1]!);
  const named = files('csrc/napi', /\.(h|cc)$/).flatMap((path) => ops.filter((op) => read(path).includes(`"${op}"`)).map((op) => `${path}: ${op}`));
  t.deepEqual(named, []);
});
