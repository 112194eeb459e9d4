import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Binding } from './binding.js';
import { MmError, type ErrorCode } from './errors.js';

const require = createRequire(import.meta.url);

/** The package's folder: this file runs as dist/lib/native/loader.js. */
export const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');

/** Errors of the addon carry a code; make them of the library's class, whoever throws them. */
export function adopt(error: unknown): unknown {
  if (error instanceof MmError || !(error instanceof Error)) return error;
  const code = (error as Error & { code?: string }).code;
  return code?.startsWith('ERR_') && !code.startsWith('ERR_NAPI') ? new MmError(code as ErrorCode, error.message) : error;
}

interface Loaded {
  binding: Binding;
  path: string;
}

function open(): Loaded {
  const override = process.env['MMMAMBA_NATIVE_PATH'];
  if (override) {
    if (!isAbsolute(override)) throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_NATIVE_PATH must be an absolute path of a .node file; got '${override}'`);
    try {
      return { binding: require(override) as Binding, path: override };
    } catch (error) {
      throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_NATIVE_PATH=${override} could not be loaded: ${(error as Error).message}`, { cause: error });
    }
  }
  const nodeGypBuild = require('node-gyp-build') as ((root: string) => Binding) & { resolve(root: string): string };
  try {
    const path = nodeGypBuild.resolve(packageRoot);
    return { binding: require(path) as Binding, path };
  } catch (error) {
    throw new MmError(
      'ERR_NATIVE_LOAD',
      `the addon of mmmamba could not be loaded for ${process.platform}-${process.arch}, Node ${process.version}: ${(error as Error).message.split('\n')[0]}\n` +
        `Looked in ${join(packageRoot, 'build', 'Release')} and ${join(packageRoot, 'prebuilds')}. ` +
        `Remedy: run 'npm run build' in ${packageRoot} (needs g++ and make), or set MMMAMBA_NATIVE_PATH to a built .node file.`,
      { cause: error },
    );
  }
}

/** Where the CUDA library may lie, in order: absolute paths only. */
function cudaSearch(addonPath: string): string[] {
  const name = 'libmmmamba_cuda.so';
  const override = process.env['MMMAMBA_CUDA_PATH'];
  if (override) {
    if (!isAbsolute(override)) throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_CUDA_PATH must be an absolute path; got '${override}'`);
    return [override];
  }
  const paths = [join(dirname(addonPath), name), join(packageRoot, 'build-cuda', name)];
  try {
    paths.push(join(dirname(require.resolve('mmmamba-cuda/package.json')), name));
  } catch {
    // the optional package is not installed
  }
  return paths.filter((p) => existsSync(p));
}

let loaded: Loaded | undefined;

function load(): Loaded {
  if (!loaded) {
    const opened = open();
    opened.binding.setSearch('cuda', cudaSearch(opened.path));
    loaded = opened;
  }
  return loaded;
}

/** The addon, loaded at the first call. Throws MmError ERR_NATIVE_LOAD with what was tried and the remedy. */
export function binding(): Binding {
  return load().binding;
}
/** The .node file that was loaded. */
export function bindingPath(): string {
  return load().path;
}
