import { MmError } from '../native/errors.js';

/** The text of anything that was thrown. */
export function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

/** The system's error code (`ENOENT`, `ENOSPC`, ...) where there is one. */
export function systemCode(cause: unknown): string | undefined {
  const code = cause instanceof Error ? (cause as NodeJS.ErrnoException).code : undefined;
  return typeof code === 'string' ? code : undefined;
}

/** An ERR_FILE_IO that names the path and the cause. An MmError passes through: it already says what went wrong. */
export function fileError(action: string, path: string, cause: unknown): MmError {
  if (cause instanceof MmError) return cause;
  return new MmError('ERR_FILE_IO', `cannot ${action} ${path}: ${reasonOf(cause)}`, { cause });
}
