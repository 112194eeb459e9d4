import { randomBytes } from 'node:crypto';
import { lstat, mkdir, open, readdir, rename, rm, type FileHandle } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { threadId } from 'node:worker_threads';
import { MmError } from '../native/errors.js';
import { fileError, systemCode } from './fail.js';
import { isPlainName } from './names.js';

/** What a file is made of: one piece, or pieces produced one after another, so that a checkpoint need not fit in memory twice. */
export type Chunks = string | Uint8Array | Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>;

/*
 * A temporary is named .<base>.tmp-<host>-<pid>.<thread>-<random>, beside its target: a rename is atomic only within one file
 * system. Host, process and thread tell whether its writer still lives, so that leftovers of a killed process can be removed
 * without touching those of a running one.
 */
const HOST = hostname().replaceAll(/[^A-Za-z0-9_]/g, '_');
const liveTemporaries = new Set<string>();

function temporaryBeside(target: string): string {
  const owner = `${HOST}-${process.pid}.${threadId}`;
  return join(dirname(target), `.${basename(target)}.tmp-${owner}-${randomBytes(6).toString('hex')}`);
}

function processLives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (cause) {
    return systemCode(cause) === 'EPERM';
  }
}

/** Removes temporaries of `target` whose writer is dead. Those of other hosts stay: nobody here can tell. */
async function removeStaleTemporaries(target: string): Promise<void> {
  const folder = dirname(target);
  const prefix = `.${basename(target)}.tmp-${HOST}-`;
  for (const name of await readdir(folder)) {
    if (!name.startsWith(prefix)) continue;
    const owner = /^(\d+)\.(\d+)-[0-9a-f]+$/.exec(name.slice(prefix.length));
    if (owner === null) continue;
    const path = join(folder, name);
    // A process id comes again, in containers at once: a temporary of "this" process that this process does not know is stale.
    const mine = Number(owner[1]) === process.pid;
    const lives = mine ? Number(owner[2]) !== threadId || liveTemporaries.has(path) : processLives(Number(owner[1]));
    if (!lives) await rm(path, { recursive: true, force: true });
  }
}

async function writeAll(file: FileHandle, chunk: string | Uint8Array): Promise<void> {
  const bytes = typeof chunk === 'string' ? Buffer.from(chunk, 'utf8') : chunk;
  // One write call takes less than 2 GiB, and may write less than it was given.
  const most = 2 ** 30;
  for (let at = 0; at < bytes.byteLength; ) {
    at += (await file.write(bytes, at, Math.min(most, bytes.byteLength - at))).bytesWritten;
  }
}

/** Creates `path`, which must not exist, and does not return before the bytes are on the disk. */
async function writeNewFile(path: string, chunks: Chunks): Promise<void> {
  const file = await open(path, 'wx');
  try {
    if (typeof chunks === 'string' || chunks instanceof Uint8Array) await writeAll(file, chunks);
    else for await (const chunk of chunks) await writeAll(file, chunk);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes renames within a folder durable. Windows cannot open a folder, and needs no such call. */
async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (cause) {
    if (systemCode(cause) === 'ENOENT') return false;
    throw cause;
  }
}

/**
 * Writes a file so that a reader, a crash or a full disk sees either the old content or the new, never a part: a temporary in the
 * same folder, fsync, rename, fsync of the folder. The folder must exist. A symbolic link at `path` is replaced, not followed.
 * @throws MmError ERR_FILE_IO naming path and cause; the temporary is gone and the old file as it was
 */
export async function writeFileAtomic(path: string, chunks: Chunks): Promise<void> {
  const target = resolve(path);
  const temporary = temporaryBeside(target);
  liveTemporaries.add(temporary);
  try {
    await removeStaleTemporaries(target);
    await writeNewFile(temporary, chunks);
    await rename(temporary, target);
    await syncFolder(dirname(target));
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined); // the first error is the one to report
    throw fileError('write', path, cause);
  } finally {
    liveTemporaries.delete(temporary);
  }
}

/** `.new` = complete and waiting to take the target's place; `.old` = the target that made way for it. */
function swapNames(target: string): { next: string; old: string } {
  const stem = join(dirname(target), `.${basename(target)}`);
  return { next: `${stem}.new`, old: `${stem}.old` };
}

/** Renames before it deletes: a half-deleted folder must never bear a name that recovery trusts. */
async function discard(path: string, target: string): Promise<void> {
  const trash = temporaryBeside(target);
  try {
    await rename(path, trash);
  } catch (cause) {
    if (systemCode(cause) === 'ENOENT') return;
    throw cause;
  }
  await rm(trash, { recursive: true, force: true });
}

/** Renames a folder. 'gone': there is no `from`; 'taken': there is a `to` already. Both mean that somebody else was faster. */
async function move(from: string, to: string): Promise<'moved' | 'gone' | 'taken'> {
  try {
    await rename(from, to);
    return 'moved';
  } catch (cause) {
    const code = systemCode(cause) ?? '';
    if (code === 'ENOENT') return 'gone';
    if (['ENOTEMPTY', 'EEXIST', 'EPERM'].includes(code) && (await exists(to))) return 'taken';
    throw cause;
  }
}

/**
 * To be called before reading a folder that `writeFolderAtomic` writes. A folder cannot be replaced in one step: the old one makes
 * way (`path` → `.name.old`), then the new one takes its place (`.name.new` → `path`). After a kill between the two renames
 * `path` is missing while both folders are whole; this puts the new one in place, or the old one where there is no new one.
 * A reader that keeps a folder open across a later write should read everything first: the old files are deleted after the swap.
 * @returns 'whole': `path` is there; 'recovered': it was put back; 'absent': there is nothing to recover
 * @throws MmError ERR_FILE_IO
 */
export async function recoverFolder(path: string): Promise<'whole' | 'recovered' | 'absent'> {
  const target = resolve(path);
  const { next, old } = swapNames(target);
  try {
    for (const whole of [next, old]) {
      if (await exists(target)) return 'whole';
      if ((await move(whole, target)) === 'moved') {
        await syncFolder(dirname(target));
        return 'recovered';
      }
    }
    // A running writer may have finished its swap between the looks.
    return (await exists(target)) ? 'whole' : 'absent';
  } catch (cause) {
    throw fileError('recover', path, cause);
  }
}

async function writeFolder(target: string, files: Iterable<readonly [string, Chunks]>): Promise<void> {
  const { next, old } = swapNames(target);
  const parent = dirname(target);
  await mkdir(parent, { recursive: true });
  await recoverFolder(target);
  if ((await exists(target)) && !(await lstat(target)).isDirectory()) throw new Error('it exists and is not a folder');
  await discard(next, target);
  await discard(old, target);
  await removeStaleTemporaries(target);

  const temporary = temporaryBeside(target);
  liveTemporaries.add(temporary);
  try {
    await mkdir(temporary);
    for (const [name, chunks] of files) {
      if (!isPlainName(name)) throw new MmError('ERR_ARGUMENT', `${JSON.stringify(name)} is not a plain file name (for the folder ${target})`);
      await writeNewFile(join(temporary, name), chunks);
    }
    await syncFolder(temporary);
    await rename(temporary, next);
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => undefined);
    throw cause;
  } finally {
    liveTemporaries.delete(temporary);
  }

  try {
    // A reader that recovers in this very moment may put the new folder in place ('gone'), or the old one back ('taken').
    for (let attempt = 1; ; attempt++) {
      await move(target, old);
      if ((await move(next, target)) !== 'taken') break;
      if (attempt === 10) throw new Error('another process keeps writing it');
    }
    await syncFolder(parent);
  } catch (cause) {
    await recoverFolder(target).catch(() => undefined);
    throw cause;
  }
  await discard(old, target);
}

const pendingWrites = new Map<string, Promise<void>>();

/**
 * Writes a whole folder (a checkpoint) so that a kill at any instant leaves the old folder or the new one: all files go to a
 * temporary folder, fsync, then the two are swapped by rename. The swap takes two renames: a reader calls `recoverFolder` first.
 * Whatever else was in the old folder is gone. Leftovers of killed writers are removed. Missing parents are created.
 * Writes of one folder from one thread queue up; two processes must not write the same folder at once.
 * @param files plain file name → content, e.g. a Map
 * @throws MmError ERR_FILE_IO naming path and cause, ERR_ARGUMENT for a name with separators; the old folder is as it was
 */
export async function writeFolderAtomic(path: string, files: Iterable<readonly [string, Chunks]>): Promise<void> {
  const target = resolve(path);
  const before = pendingWrites.get(target) ?? Promise.resolve();
  const write = before
    .catch(() => undefined)
    .then(() => writeFolder(target, files))
    .catch((cause: unknown) => {
      throw fileError('write the folder', path, cause);
    });
  pendingWrites.set(target, write);
  try {
    await write;
  } finally {
    if (pendingWrites.get(target) === write) pendingWrites.delete(target);
  }
}
