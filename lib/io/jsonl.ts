import { closeSync, createReadStream, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { MmError } from '../native/errors.js';
import { fileError, reasonOf } from './fail.js';

const NEWLINE = 0x0a;
const DEFAULT_MAX_LINE_BYTES = 64 * 2 ** 20;

/** JSON has no NaN and no infinities, and JSON.stringify makes them null; a diverged loss must stay visible. */
function visible(_key: string, value: unknown): unknown {
  return typeof value === 'number' && !Number.isFinite(value) ? String(value) : value;
}

/**
 * Appends records to a JSONL file, one whole line each: a line that cannot be written whole (full disk) is taken back. Writes are
 * synchronous, so that a record is in the file when `write` returns and survives a kill of the process; they are not fsynced.
 * Numbers that are not finite are written as the strings "NaN", "Infinity" and "-Infinity".
 */
export class JsonlWriter implements Disposable {
  private descriptor: number | undefined;

  /**
   * Opens `path` for appending and creates it if need be. What a killed writer left of a line is cut off if it is not JSON.
   * @throws MmError ERR_FILE_IO
   */
  constructor(readonly path: string) {
    try {
      this.descriptor = openSync(path, 'a+');
      mendTail(this.descriptor);
    } catch (cause) {
      this.close();
      throw fileError('append to', path, cause);
    }
  }

  /** @throws MmError ERR_ARGUMENT for what JSON cannot hold, ERR_DISPOSED after close(), ERR_FILE_IO */
  write(record: Readonly<Record<string, unknown>>): void {
    if (this.descriptor === undefined) throw new MmError('ERR_DISPOSED', `${this.path} was closed; no record can be appended`);
    let line: Buffer;
    try {
      line = Buffer.from(`${JSON.stringify(record, visible)}\n`, 'utf8');
    } catch (cause) {
      throw new MmError('ERR_ARGUMENT', `a record for ${this.path} is not JSON: ${reasonOf(cause)}`, { cause });
    }
    const before = fstatSync(this.descriptor).size;
    try {
      for (let at = 0; at < line.byteLength; ) at += writeSync(this.descriptor, line, at);
    } catch (cause) {
      takeBack(this.descriptor, before);
      throw fileError('append to', this.path, cause);
    }
  }

  /** Idempotent. */
  close(): void {
    if (this.descriptor !== undefined) closeSync(this.descriptor);
    this.descriptor = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Cuts off what was written of a line. Where even that fails, the next open mends the file; the first error is the one to report. */
function takeBack(descriptor: number, size: number): void {
  try {
    ftruncateSync(descriptor, size);
  } catch {
    return;
  }
}

/** Makes the file end with a newline: ends a last line that is JSON, cuts off one that is not. */
function mendTail(descriptor: number): void {
  const { size } = fstatSync(descriptor);
  const block = Buffer.alloc(64 * 1024);
  let tail: Buffer = Buffer.alloc(0);
  for (let start = size; start > 0; ) {
    const length = Math.min(block.byteLength, start);
    start -= length;
    readSync(descriptor, block, 0, length, start);
    tail = Buffer.concat([block.subarray(0, length), tail]);
    const newline = tail.lastIndexOf(NEWLINE);
    if (newline >= 0) {
      tail = tail.subarray(newline + 1);
      break;
    }
  }
  if (tail.byteLength === 0) return;
  try {
    JSON.parse(tail.toString('utf8'));
  } catch {
    ftruncateSync(descriptor, size - tail.byteLength);
    return;
  }
  writeSync(descriptor, '\n');
}

/** One good line. `line` counts from 1. */
export interface JsonlRecord {
  readonly line: number;
  readonly value: unknown;
}

/** One bad line. `line` counts from 1. */
export interface BrokenLine {
  readonly line: number;
  readonly reason: string;
}

export interface ReadJsonlOptions {
  /** 'throw' (default) stops at the first broken line, 'skip' goes on. */
  readonly broken?: 'throw' | 'skip';
  /** Called for every line that is skipped. */
  readonly onBroken?: (line: BrokenLine) => void;
  /** Longer lines are broken; they are not held in memory. Default 64 MiB. */
  readonly maxLineBytes?: number;
}

/** The lines of a file without holding more than one; a line longer than `maxBytes` comes as undefined. */
async function* lines(path: string, maxBytes: number): AsyncGenerator<Buffer | undefined> {
  let pieces: Buffer[] = [];
  let bytes = 0;
  const add = (piece: Buffer): void => {
    bytes += piece.byteLength;
    if (bytes > maxBytes) pieces = [];
    else pieces.push(piece);
  };
  const take = (): Buffer | undefined => {
    const line = bytes > maxBytes ? undefined : Buffer.concat(pieces);
    pieces = [];
    bytes = 0;
    return line;
  };
  for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20 }) as AsyncIterable<Buffer>) {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      add(chunk.subarray(start, end));
      yield take();
      start = end + 1;
    }
    add(chunk.subarray(start));
  }
  if (bytes > 0) yield take();
}

function parseLine(line: Buffer): unknown {
  return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(line));
}

const isBlank = (line: Buffer): boolean => line.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);

/**
 * The records of a JSONL file, one after another; blank lines are passed over. The file may be larger than memory.
 * @throws MmError ERR_FILE_IO; ERR_FILE_FORMAT naming file:line for a broken line, unless `broken` is 'skip'
 */
export async function* readJsonl(path: string, options: ReadJsonlOptions = {}): AsyncGenerator<JsonlRecord> {
  const { broken = 'throw', onBroken, maxLineBytes = DEFAULT_MAX_LINE_BYTES } = options;
  const source = lines(path, maxLineBytes);
  for (let line = 1; ; line++) {
    let next: IteratorResult<Buffer | undefined>;
    try {
      next = await source.next();
    } catch (cause) {
      throw fileError('read', path, cause);
    }
    if (next.done) return;
    if (next.value !== undefined && isBlank(next.value)) continue;
    let value: unknown;
    try {
      if (next.value === undefined) throw new Error(`longer than ${maxLineBytes} bytes`);
      value = parseLine(next.value);
    } catch (cause) {
      const reason = reasonOf(cause);
      if (broken === 'throw') {
        await source.return(undefined);
        throw new MmError('ERR_FILE_FORMAT', `${path}:${line}: a broken line: ${reason}`, { cause });
      }
      onBroken?.({ line, reason });
      continue;
    }
    yield { line, value };
  }
}

/**
 * All records of a JSONL file at once, with the lines that were skipped.
 * @throws MmError as `readJsonl`
 */
export async function readJsonlAll(
  path: string,
  options: Omit<ReadJsonlOptions, 'onBroken'> = {},
): Promise<{ values: unknown[]; broken: BrokenLine[] }> {
  const values: unknown[] = [];
  const broken: BrokenLine[] = [];
  for await (const { value } of readJsonl(path, { ...options, onBroken: (line) => broken.push(line) })) values.push(value);
  return { values, broken };
}
