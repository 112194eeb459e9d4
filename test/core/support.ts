import type { ExecutionContext } from 'ava';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { MmError, type ErrorCode } from '../../lib/native/errors.js';
import { packageRoot } from '../../lib/native/loader.js';
import { memoryStats } from '../../lib/tensor/memory.js';

/** Runs a test body and holds the live tensors after it to those before. */
export async function balanced(t: ExecutionContext, body: () => void | Promise<void>): Promise<void> {
  const before = memoryStats().tensors;
  await body();
  t.is(memoryStats().tensors, before, 'live tensors');
}

/** Holds a throwing function or a rejecting promise to a code and a text; gives the error. */
export async function fails(t: ExecutionContext, body: () => unknown, code: ErrorCode, message: RegExp): Promise<MmError> {
  const error = await t.throwsAsync<MmError>(async () => body(), { instanceOf: MmError });
  t.is(error.code, code);
  t.regex(error.message, message);
  return error;
}

export interface Ended {
  code: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end. */
export function ended(command: string, args: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (d: Buffer) => (stdout += d.toString()));
    child.stderr.on('data', (d: Buffer) => (stderr += d.toString()));
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

const library = pathToFileURL(join(packageRoot, 'dist', 'lib', 'index.js')).href;

/** Runs an ES module text in a child process; in it, `mm` is the library. */
export function runScript(body: string, options: { env?: Record<string, string>; flags?: string[]; lazy?: boolean } = {}): Promise<Ended> {
  const text = (options.lazy ? `const load = () => import('${library}');\n` : `import * as mm from '${library}';\n`) + body;
  return ended(process.execPath, [...(options.flags ?? []), '--input-type=module', '-e', text], { env: { ...process.env, ...options.env } });
}
