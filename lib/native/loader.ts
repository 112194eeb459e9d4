import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, isAbsolute, join } from 'node:path';
import type { Binding } from './binding.js';
import { candidates, nothingFound, platform } from './candidates.js';
import { MmError, type ErrorCode } from './errors.js';
import { remedyOf } from './remedy.js';
import { bundled, ownFolder, packageRoot } from './root.js';
import { unusable } from './unusable.js';

export { packageRoot } from './root.js';

const require = createRequire(join(ownFolder, 'loader.js'));

/** Errors of the addon carry a code; make them of the library's class, whoever throws them. */
export function adopt(error: unknown): unknown {
  if (error instanceof MmError || !(error instanceof Error)) return error;
  const code = (error as Error & { code?: string }).code;
  return code?.startsWith('ERR_') && !code.startsWith('ERR_NAPI') ? new MmError(code as ErrorCode, error.message) : error;
}

/** A binary that was tried and could not be used. */
export interface Attempt {
  path: string;
  /** what the system said */
  reason: string;
  /** what helps */
  remedy: string;
}

interface Loaded {
  binding: Binding;
  path: string;
  /** binaries that come first and were passed over */
  passedOver: Attempt[];
}

/** Version of the package, which the addon must have too; null in a bundle, which has no package.json. */
function ownVersion(): string | null {
  if (bundled) return null;
  return (JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string }).version;
}

/** The addon of a file. Throws with the reason where it cannot be used. */
function openFile(path: string): Binding {
  const wrong = existsSync(path) ? unusable(path) : 'no such file';
  if (wrong) throw new Error(wrong);
  const binding = require(path) as Binding;
  const version = ownVersion();
  if (version !== null && binding.version !== version) throw new Error(`built for mmmamba ${binding.version ?? 'of an unknown version'}, and this is ${version}`);
  return binding;
}

function attempt(path: string): { binding: Binding } | Attempt {
  try {
    return { binding: openFile(path) };
  } catch (error) {
    const reason = (error as Error).message.split('\n')[0]!;
    return { path, reason, remedy: remedyOf(reason) };
  }
}

const spell = ({ path, reason, remedy }: Attempt): string => `${path}: ${reason.replace(`${path}: `, '')}\n  → ${remedy}`;

function open(): Loaded {
  const override = process.env['MMMAMBA_NATIVE_PATH'];
  if (override && !(isAbsolute(override) && override.endsWith('.node'))) // another ending would run as JavaScript
    throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_NATIVE_PATH must be an absolute path of a .node file; got '${override}'`);
  const paths = override ? [override] : candidates();
  const failed: Attempt[] = [];
  for (const path of paths) {
    const result = attempt(path);
    if ('binding' in result) return { binding: result.binding, path, passedOver: failed };
    failed.push(result);
  }
  if (override) throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_NATIVE_PATH=${override} could not be loaded: ${spell(failed[0]!)}`);
  throw new MmError(
    'ERR_NATIVE_LOAD',
    `the addon of mmmamba could not be loaded on ${platform}, Node ${process.version}:\n${failed.length > 0 ? failed.map(spell).join('\n') : nothingFound()}`,
  );
}

/** Where the CUDA library may lie, in order: absolute paths only. */
function cudaSearch(addonPath: string): string[] {
  const name = 'libmmmamba_cuda.so';
  const override = process.env['MMMAMBA_CUDA_PATH'];
  if (override) {
    if (!isAbsolute(override)) throw new MmError('ERR_NATIVE_LOAD', `MMMAMBA_CUDA_PATH must be an absolute path; got '${override}'`);
    return [override];
  }
  const paths = [join(dirname(addonPath), name), join(packageRoot, 'build-cuda', name), join(packageRoot, 'prebuilds', platform, name)];
  try {
    paths.push(join(dirname(require.resolve('mmmamba-cuda/package.json')), name));
  } catch {
    // the optional package is not installed
  }
  const places = [...new Set(paths)]; // a prebuilt addon has its library beside it
  const present = places.filter((path) => existsSync(path));
  return present.length > 0 ? present : places; // where there is none, the reason lists the places
}

let loaded: Loaded | undefined;

function load(): Loaded {
  if (!loaded) {
    const opened = open();
    opened.binding.setSearch('cuda', cudaSearch(opened.path));
    process.once('exit', () => opened.binding.stop()); // exit() unloads code that kernels may run in
    loaded = opened;
  }
  return loaded;
}

/** The addon, loaded at the first call. Throws MmError ERR_NATIVE_LOAD with what was tried and the remedy of each. */
export function binding(): Binding {
  return load().binding;
}
/** The .node file that was loaded, and those that were passed over. */
export function bindingPath(): string {
  return load().path;
}
export function passedOver(): readonly Attempt[] {
  return load().passedOver;
}
