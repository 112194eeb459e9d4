import { open, readFile, stat, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { MmError } from '../native/errors.js';
import { writeFileAtomic } from './atomic.js';
import { fileError, reasonOf, systemCode } from './fail.js';
import { isJsonObject, parseJson } from './json.js';
import { didYouMean, isPlainName } from './names.js';

/*
 * The format: u64 little-endian header length, a JSON header, then the tensors' bytes without a gap. The header maps each name to
 * {dtype, shape, data_offsets: [begin, end]} with offsets from the end of the header; `__metadata__` maps strings to strings.
 */

const DTYPE_BYTES = {
  BOOL: 1, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1,
  I16: 2, U16: 2, F16: 2, BF16: 2,
  I32: 4, U32: 4, F32: 4,
  I64: 8, U64: 8, F64: 8,
} as const;

export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

/** A tensor as the file has it. `data` is row-major and little-endian, `bytes(shape) * dtype size` long, aligned for any dtype. */
export interface RawTensor {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** A tensor's entry in the header. `bytes` is the size of its data. */
export interface TensorInfo {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** Tensors and the file's own `__metadata__`. */
export interface TensorFile {
  readonly tensors: Map<string, RawTensor>;
  readonly metadata: Map<string, string>;
}

/** Reads single tensors of a file or of a sharded folder when they are asked for. Close it, or hold it with `await using`. */
export interface TensorReader extends AsyncDisposable {
  /** The file, or the folder of shards. */
  readonly path: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly names: readonly string[];
  has(name: string): boolean;
  /** @throws MmError ERR_ARGUMENT where there is no such tensor */
  info(name: string): TensorInfo;
  /** An own copy of one tensor. @throws MmError ERR_ARGUMENT, ERR_FILE_IO, ERR_FILE_FORMAT */
  read(name: string): Promise<RawTensor>;
  close(): Promise<void>;
}

const MAX_HEADER_BYTES = 100_000_000; // the reference implementation's limit
const METADATA = '__metadata__';
const LENGTH_BYTES = 8;

interface Entry extends TensorInfo {
  readonly begin: number; // from the end of the header
}

interface Header {
  readonly entries: Map<string, Entry>;
  readonly metadata: Map<string, string>;
  readonly dataStart: number;
}

const badFile = (path: string, problem: string, cause?: unknown): MmError =>
  new MmError('ERR_FILE_FORMAT', `${path} is not a valid safetensors file: ${problem}`, { cause });

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** Elements times dtype size, or undefined where that exceeds what a file can hold. */
function byteSize(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let bytes: number = DTYPE_BYTES[dtype];
  for (const size of shape) {
    bytes *= size;
    if (!Number.isSafeInteger(bytes)) return undefined;
  }
  return bytes;
}

async function readExactly(file: FileHandle, path: string, into: Uint8Array, position: number): Promise<void> {
  const most = 2 ** 30; // one read call takes less than 2 GiB
  for (let at = 0; at < into.byteLength; ) {
    const { bytesRead } = await file.read(into, at, Math.min(most, into.byteLength - at), position + at);
    if (bytesRead === 0) throw badFile(path, `it ended at byte ${position + at} while being read`);
    at += bytesRead;
  }
}

function parseEntry(path: string, name: string, value: unknown): Entry {
  const bad = (problem: string): MmError => badFile(path, `tensor ${JSON.stringify(name)} ${problem}`);
  if (!isJsonObject(value)) throw bad('has no {dtype, shape, data_offsets}');
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    throw bad(`has the unknown dtype ${JSON.stringify(dtype)}; known are ${Object.keys(DTYPE_BYTES).join(', ')}`);
  }
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw bad(`has the shape ${JSON.stringify(shape)}; a list of non-negative integers is needed`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[1] < offsets[0]) {
    throw bad(`has the data_offsets ${JSON.stringify(offsets)}; [begin, end] with 0 <= begin <= end is needed`);
  }
  const known = dtype as SafetensorsDtype;
  const bytes = byteSize(known, shape);
  const [begin, end] = offsets as [number, number];
  if (bytes !== end - begin) {
    throw bad(`is ${known} [${shape.join(', ')}] and needs ${bytes ?? 'more than 2^53'} bytes, but its data_offsets span ${end - begin}`);
  }
  return { dtype: known, shape, bytes, begin };
}

/** The tensors must fill the data section exactly: no overlap, no gap, nothing behind. Anything else hides or repeats bytes. */
function checkLayout(path: string, entries: Map<string, Entry>, dataBytes: number): void {
  const ordered = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.bytes - b.bytes);
  let end = 0;
  let previous = 'the header';
  for (const [name, entry] of ordered) {
    const quoted = JSON.stringify(name);
    if (entry.begin < end) throw badFile(path, `tensors ${previous} and ${quoted} overlap at data byte ${entry.begin}`);
    if (entry.begin > end) throw badFile(path, `a gap of ${entry.begin - end} bytes lies between ${previous} and tensor ${quoted}`);
    end = entry.begin + entry.bytes;
    if (end > dataBytes) {
      throw badFile(path, `truncated: tensor ${quoted} ends at data byte ${end}, but the file has only ${dataBytes} bytes of data`);
    }
    previous = quoted;
  }
  if (end < dataBytes) throw badFile(path, `${dataBytes - end} trailing bytes follow the last tensor`);
}

async function readHeader(file: FileHandle, path: string): Promise<Header> {
  const info = await file.stat();
  if (!info.isFile()) throw badFile(path, 'not a regular file');
  if (info.size < LENGTH_BYTES) throw badFile(path, `truncated: ${info.size} bytes, and the header length alone takes ${LENGTH_BYTES}`);
  const prefix = Buffer.alloc(LENGTH_BYTES);
  await readExactly(file, path, prefix, 0);
  const wide = prefix.readBigUInt64LE();
  if (wide > BigInt(MAX_HEADER_BYTES)) throw badFile(path, `its header claims ${wide} bytes; the limit is ${MAX_HEADER_BYTES}`);
  const headerBytes = Number(wide);
  const dataStart = LENGTH_BYTES + headerBytes;
  if (dataStart > info.size) throw badFile(path, `truncated: its header claims ${headerBytes} bytes, but only ${info.size - LENGTH_BYTES} follow`);

  const bytes = new Uint8Array(headerBytes);
  await readExactly(file, path, bytes, LENGTH_BYTES);
  let header: unknown;
  try {
    header = parseJson(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (cause) {
    throw badFile(path, `its header is not JSON: ${reasonOf(cause)}`, cause);
  }
  if (!isJsonObject(header)) throw badFile(path, 'its header is not a JSON object');

  const entries = new Map<string, Entry>();
  const metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name !== METADATA) {
      entries.set(name, parseEntry(path, name, value));
      continue;
    }
    if (!isJsonObject(value)) throw badFile(path, `${METADATA} is not an object`);
    for (const [key, text] of Object.entries(value)) {
      if (typeof text !== 'string') throw badFile(path, `${METADATA} key ${JSON.stringify(key)} is not a string`);
      metadata.set(key, text);
    }
  }
  checkLayout(path, entries, info.size - dataStart);
  return { entries, metadata, dataStart };
}

function noSuchTensor(path: string, name: string, names: readonly string[]): MmError {
  return new MmError('ERR_ARGUMENT', `${path} has no tensor ${JSON.stringify(name)}${didYouMean(name, names)} (it has ${names.length})`);
}

class SafetensorsReader implements TensorReader {
  readonly names: readonly string[];

  constructor(
    readonly path: string,
    private readonly file: FileHandle,
    private readonly header: Header,
  ) {
    this.names = [...header.entries.keys()];
  }

  get metadata(): ReadonlyMap<string, string> {
    return this.header.metadata;
  }

  has(name: string): boolean {
    return this.header.entries.has(name);
  }

  private entry(name: string): Entry {
    const entry = this.header.entries.get(name);
    if (entry === undefined) throw noSuchTensor(this.path, name, this.names);
    return entry;
  }

  info(name: string): TensorInfo {
    const { dtype, shape, bytes } = this.entry(name);
    return { dtype, shape, bytes };
  }

  async read(name: string): Promise<RawTensor> {
    const { dtype, shape, bytes, begin } = this.entry(name);
    try {
      const data = new Uint8Array(bytes);
      await readExactly(this.file, this.path, data, this.header.dataStart + begin);
      return { dtype, shape, data };
    } catch (cause) {
      throw fileError(`read tensor ${JSON.stringify(name)} of`, this.path, cause);
    }
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Opens a safetensors file: reads and checks the whole header, but no tensor. Every hostile or broken header is refused here.
 * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT
 */
export async function openSafetensors(path: string): Promise<TensorReader> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, 'r');
    return new SafetensorsReader(path, file, await readHeader(file, path));
  } catch (cause) {
    await file?.close();
    throw fileError('read', path, cause);
  }
}

class ShardedReader implements TensorReader {
  readonly names: readonly string[];

  constructor(
    readonly path: string,
    readonly metadata: ReadonlyMap<string, string>,
    private readonly shards: readonly TensorReader[],
    private readonly shardOf: ReadonlyMap<string, TensorReader>,
  ) {
    this.names = [...shardOf.keys()];
  }

  has(name: string): boolean {
    return this.shardOf.has(name);
  }

  private shard(name: string): TensorReader {
    const shard = this.shardOf.get(name);
    if (shard === undefined) throw noSuchTensor(this.path, name, this.names);
    return shard;
  }

  info(name: string): TensorInfo {
    return this.shard(name).info(name);
  }

  async read(name: string): Promise<RawTensor> {
    return this.shard(name).read(name);
  }

  async close(): Promise<void> {
    await Promise.all(this.shards.map((shard) => shard.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

const INDEX_FILE = 'model.safetensors.index.json';
const SINGLE_FILE = 'model.safetensors';

/** Tensor name → shard file name, and the index's metadata as strings. */
async function readIndex(path: string): Promise<{ weightMap: Map<string, string>; metadata: Map<string, string> }> {
  const bad = (problem: string, cause?: unknown): MmError => new MmError('ERR_FILE_FORMAT', `${path}: ${problem}`, { cause });
  const { size } = await stat(path);
  if (size > MAX_HEADER_BYTES) throw bad(`an index of ${size} bytes; the limit is ${MAX_HEADER_BYTES}`);
  let index: unknown;
  try {
    index = parseJson(await readFile(path, 'utf8'));
  } catch (cause) {
    throw systemCode(cause) === undefined ? bad(`not JSON: ${reasonOf(cause)}`, cause) : cause;
  }
  if (!isJsonObject(index) || !isJsonObject(index.weight_map)) throw bad('it needs an object "weight_map" (tensor name → file name)');
  const weightMap = new Map<string, string>();
  for (const [name, file] of Object.entries(index.weight_map)) {
    if (typeof file !== 'string' || !isPlainName(file)) {
      throw bad(`weight_map of ${JSON.stringify(name)} is ${JSON.stringify(file)}; a plain file name of the same folder is needed`);
    }
    weightMap.set(name, file);
  }
  const metadata = new Map<string, string>();
  if (isJsonObject(index.metadata)) {
    for (const [key, value] of Object.entries(index.metadata)) metadata.set(key, typeof value === 'string' ? value : JSON.stringify(value));
  }
  return { weightMap, metadata };
}

async function isFile(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile();
  } catch (cause) {
    if (systemCode(cause) === 'ENOENT' || systemCode(cause) === 'ENOTDIR') return false;
    throw fileError('read', path, cause);
  }
}

/**
 * Opens a model folder: the shards that `model.safetensors.index.json` lists, or the single `model.safetensors`. Shards are opened
 * and their headers checked at once; tensors are read when asked for. Tensors of a shard that the index does not name are ignored.
 * @throws MmError ERR_FILE_IO (also where neither file is there), ERR_FILE_FORMAT (also where a shard lacks a listed tensor)
 */
export async function openSharded(folder: string): Promise<TensorReader> {
  const indexPath = join(folder, INDEX_FILE);
  const singlePath = join(folder, SINGLE_FILE);
  if (!(await isFile(indexPath))) {
    if (await isFile(singlePath)) return openSafetensors(singlePath);
    throw new MmError('ERR_FILE_IO', `${folder} holds neither ${INDEX_FILE} nor ${SINGLE_FILE}`);
  }
  const shards = new Map<string, TensorReader>();
  try {
    const { weightMap, metadata } = await readIndex(indexPath);
    const shardOf = new Map<string, TensorReader>();
    for (const [name, file] of weightMap) {
      let shard = shards.get(file);
      if (shard === undefined) {
        shard = await openSafetensors(join(folder, file));
        shards.set(file, shard);
      }
      if (!shard.has(name)) throw new MmError('ERR_FILE_FORMAT', `${indexPath} puts tensor ${JSON.stringify(name)} into ${file}, which lacks it`);
      shardOf.set(name, shard);
    }
    return new ShardedReader(folder, metadata, [...shards.values()], shardOf);
  } catch (cause) {
    await Promise.all([...shards.values()].map((shard) => shard.close()));
    throw fileError('read', indexPath, cause);
  }
}

async function readFrom(reader: TensorReader, names: readonly string[] = reader.names): Promise<TensorFile> {
  await using source = reader;
  for (const name of names) source.info(name); // a wrong name fails before the first byte is read
  const tensors = new Map<string, RawTensor>();
  for (const name of names) tensors.set(name, await source.read(name));
  return { tensors, metadata: new Map(source.metadata) };
}

/**
 * Reads a safetensors file, whole or only `names`. Each tensor's `data` is an own buffer.
 * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT, ERR_ARGUMENT for a name that is not there
 */
export async function readSafetensors(path: string, options: { names?: readonly string[] } = {}): Promise<TensorFile> {
  return readFrom(await openSafetensors(path), options.names);
}

/**
 * Reads a model folder as `openSharded` finds it, whole or only `names`.
 * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT, ERR_ARGUMENT for a name that is not there
 */
export async function readSharded(folder: string, options: { names?: readonly string[] } = {}): Promise<TensorFile> {
  return readFrom(await openSharded(folder), options.names);
}

/**
 * The bytes of a safetensors file, piece by piece and without copying a tensor: for `writeFileAtomic` and `writeFolderAtomic`.
 * Tensors are ordered by falling dtype size, then by name, and the header is padded to 8 bytes, so that each lies aligned.
 * @throws MmError ERR_ARGUMENT where a tensor's data does not fit its shape and dtype, or a name is reserved
 */
export function safetensorsChunks(
  tensors: ReadonlyMap<string, RawTensor>,
  metadata: ReadonlyMap<string, string> | Readonly<Record<string, string>> = {},
): Uint8Array[] {
  const ordered = [...tensors].sort(
    ([nameA, a], [nameB, b]) => DTYPE_BYTES[b.dtype] - DTYPE_BYTES[a.dtype] || (nameA < nameB ? -1 : 1),
  );
  const fields: string[] = [];
  const meta = [...(metadata instanceof Map ? metadata : Object.entries(metadata))] as [string, string][];
  if (meta.length > 0) {
    // Built as text: in an object, a key such as __proto__ or 12 would be lost or move.
    const pairs = meta.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
    fields.push(`"${METADATA}":{${pairs.join(',')}}`);
  }
  let end = 0;
  for (const [name, { dtype, shape, data }] of ordered) {
    const bad = (problem: string): MmError => new MmError('ERR_ARGUMENT', `tensor ${JSON.stringify(name)} ${problem}`);
    if (name === METADATA) throw bad('bears a name that the format reserves');
    if (!Object.hasOwn(DTYPE_BYTES, dtype)) throw bad(`has the unknown dtype ${JSON.stringify(dtype)}`);
    if (shape.some((size) => !isSize(size))) throw bad(`has the shape [${shape.join(', ')}]; non-negative integers are needed`);
    const bytes = byteSize(dtype, shape);
    if (bytes !== data.byteLength) throw bad(`is ${dtype} [${shape.join(', ')}], which takes ${bytes} bytes, but has ${data.byteLength}`);
    fields.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [end, end + bytes] })}`);
    end += bytes;
  }
  const text = Buffer.from(`{${fields.join(',')}}`, 'utf8');
  const padded = Math.ceil(text.byteLength / 8) * 8;
  if (padded > MAX_HEADER_BYTES) throw new MmError('ERR_ARGUMENT', `a header of ${padded} bytes; the limit is ${MAX_HEADER_BYTES}`);
  const header = Buffer.alloc(LENGTH_BYTES + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded));
  text.copy(header, LENGTH_BYTES);
  return [header, ...ordered.map(([, tensor]) => tensor.data)];
}

/**
 * Writes a safetensors file atomically (see `writeFileAtomic`).
 * @throws MmError ERR_ARGUMENT, ERR_FILE_IO
 */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, RawTensor>,
  metadata?: ReadonlyMap<string, string> | Readonly<Record<string, string>>,
): Promise<void> {
  await writeFileAtomic(path, safetensorsChunks(tensors, metadata));
}
