import type { ExecutionContext } from 'ava';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { MmError, type ErrorCode } from '../../lib/native/errors.js';

/** ava runs every test with the project's root as working folder. */
export const golden = (...parts: string[]): string => resolve('test/golden/data', ...parts);
export const fixture = (...parts: string[]): string => resolve('test/io/fixtures', ...parts);
/** A compiled file of this folder, to be run as a child process. */
export const compiled = (name: string): string => resolve('dist/test/io', name);

export async function temporaryFolder(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'mmmamba-io-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** The action must fail with an MmError of this code whose message matches. */
export async function fails(t: ExecutionContext, action: Promise<unknown> | (() => unknown), code: ErrorCode, message: RegExp): Promise<void> {
  const error = await t.throwsAsync(async () => (typeof action === 'function' ? action() : action), { any: true });
  t.true(error instanceof MmError, `not an MmError: ${String(error)}`);
  const { code: actual, message: text } = error as MmError;
  t.is(actual, code, text);
  t.regex(text, message);
}
