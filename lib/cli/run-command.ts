import { MmError } from '../native/errors.js';

/** Exit codes. A signal's is 128 + its number, as shells have it. */
export const exitCodes = { ok: 0, failed: 1, usage: 2, aborted: 130 } as const;

/** Options of every command. */
export interface CommonOptions {
  device: string;
  seed?: number;
}

/** Codes of errors that are the caller's to correct. */
const usageCodes: ReadonlySet<string> = new Set(['ERR_CONFIG']);

/** What a command's failure ends the process with. */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof MmError)) return exitCodes.failed;
  if (error.code === 'ERR_ABORTED') return exitCodes.aborted;
  return usageCodes.has(error.code) ? exitCodes.usage : exitCodes.failed;
}

/** One line on stderr for what a person can act on; a stack only for what is a fault of ours. */
export function describe(error: unknown): string {
  if (error instanceof MmError) return `mmmamba: ${error.message}`;
  return `mmmamba: unexpected error\n${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
}

/**
 * Runs a command's body with a signal that Ctrl-C (or SIGTERM) raises: the body stops at the next safe point, with a
 * checkpoint where it makes any. A second Ctrl-C ends the process at once; checkpoints are atomic, so the last one holds.
 */
export async function runCommand(body: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(exitCodes.aborted);
    process.stderr.write('\nmmmamba: stopping after the step at hand; press Ctrl-C again to stop at once\n');
    controller.abort();
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);
  try {
    await body(controller.signal);
  } catch (error) {
    process.stderr.write(`${describe(error)}\n`);
    process.exitCode = exitCodeOf(error);
  } finally {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
  }
}
