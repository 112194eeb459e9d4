import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readSafetensors, type RawTensor } from '../../lib/io/safetensors.js';
import { Scope } from '../../lib/tensor/scope.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { compare, relativeL2 } from '../ops/compare.js';
import { limitOf, type Tolerances } from './limits.js';

/** A case as index.json lists it (test/golden/data/README.md). */
export interface Entry {
  name: string;
  op: string;
  file: string;
  attrs?: Record<string, unknown>;
  stats?: Record<string, unknown> & { tensors?: Record<string, [number, number, number]> };
}
export interface Index {
  tolerances?: Record<string, Tolerances>;
  cases: Entry[];
}

export interface RunOptions {
  /** the folder of index.json */
  root: string;
  device: string;
  /** f16 is held to the limits of bf16 */
  dtype: 'f32' | 'bf16' | 'f16';
}

/** An array of the file. */
export interface Stored {
  shape: readonly number[];
  data: Float32Array | Int32Array | Uint8Array;
}

function decode({ dtype, shape, data }: RawTensor): Stored {
  const view = <T>(type: new (buffer: ArrayBufferLike, offset: number, length: number) => T, size: number): T =>
    new type(data.buffer, data.byteOffset, data.byteLength / size);
  switch (dtype) {
    case 'F32':
      return { shape, data: view(Float32Array, 4) };
    case 'F64':
      return { shape, data: Float32Array.from(view(Float64Array, 8)) };
    case 'I32':
      return { shape, data: view(Int32Array, 4) };
    case 'I64':
      return { shape, data: Int32Array.from(view(BigInt64Array, 8), Number) };
    case 'U8':
    case 'BOOL':
      return { shape, data };
    default:
      throw new Error(`a tensor is ${dtype}; the format has F32, F64, I32, I64, U8 and BOOL`);
  }
}

/** The tensors of a file of the folder. */
export async function readTensors(path: string): Promise<Map<string, Stored>> {
  const { tensors } = await readSafetensors(path);
  return new Map([...tensors].map(([name, t]) => [name, decode(t)]));
}

interface Verdict {
  text: string;
  /** error over limit */
  excess: number;
}

/** One case being judged: its inputs, what it expects, and what was found wrong. Tensors it hands out go with it. */
export class Golden implements Disposable {
  readonly attrs: Record<string, unknown>;
  readonly #scope = new Scope();
  readonly #judged = new Set<string>();
  readonly #verdicts: Verdict[] = [];

  constructor(
    readonly entry: Entry,
    readonly index: Index,
    readonly options: RunOptions,
    readonly tensors: ReadonlyMap<string, Stored>,
  ) {
    this.attrs = entry.attrs ?? {};
  }

  static async open(entry: Entry, index: Index, options: RunOptions): Promise<Golden> {
    return new Golden(entry, index, options, entry.file.endsWith('.safetensors') ? await readTensors(join(options.root, entry.file)) : new Map());
  }

  /** A JSON file of the folder, by default the case's own. */
  async json(file = this.entry.file): Promise<unknown> {
    return JSON.parse(await readFile(join(this.options.root, file), 'utf8')) as unknown;
  }

  number(attr: string, absent?: number): number {
    const value = this.attrs[attr] ?? absent;
    if (typeof value !== 'number') throw new Error(`attrs.${attr} is ${JSON.stringify(value)}; a number is needed`);
    return value;
  }
  flag(attr: string, absent = false): boolean {
    const value = this.attrs[attr] ?? absent;
    if (typeof value !== 'boolean') throw new Error(`attrs.${attr} is ${JSON.stringify(value)}; true or false is needed`);
    return value;
  }
  text(attr: string): string {
    const value = this.attrs[attr];
    if (typeof value !== 'string') throw new Error(`attrs.${attr} is ${JSON.stringify(value)}; a text is needed`);
    return value;
  }
  /** Refuses a value of an attribute that this runner does not know. */
  only(attr: string, ...known: unknown[]): void {
    const value = this.attrs[attr];
    if (value === undefined || known.includes(value)) return;
    throw new Error(`attrs.${attr} is ${JSON.stringify(value)}; known are ${JSON.stringify(known)}`);
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }
  stored(name: string): Stored {
    const t = this.tensors.get(name);
    if (!t) throw new Error(`the file has no tensor ${name}`);
    return t;
  }
  /** Names of tensors with a prefix, without it. */
  names(prefix: string): string[] {
    return [...this.tensors.keys()].filter((n) => n.startsWith(prefix)).map((n) => n.slice(prefix.length));
  }
  /** A tensor of the file on the device; floats rounded to the run's dtype, unless `exact`. */
  tensor(name: string, exact = false): Tensor {
    const { shape, data } = this.stored(name);
    const { device, dtype } = this.options;
    return this.run(() => Tensor.from(data, shape, data instanceof Float32Array ? { device, dtype: exact ? 'f32' : dtype } : { device }));
  }
  optional(name: string, exact = false): Tensor | null {
    return this.has(name) ? this.tensor(name, exact) : null;
  }
  /** Runs synchronous code whose tensors live as long as this case. */
  run<T>(fn: () => T): T {
    return this.#scope.run(fn);
  }

  /** The limit of maxrel for a tensor, from the folder's tolerances. */
  limit(name: string): number {
    const { entry, index, options } = this;
    const positions = this.tensors.get('in.position_ids')?.data ?? [];
    return limitOf(name, options.dtype, index.tolerances?.[entry.op] ?? {}, entry.stats?.tensors?.[name]?.[2], positions);
  }
  /** The first number of a tolerance of this op; undefined where none is listed. */
  tolerance(key: string): number | undefined {
    const value = this.index.tolerances?.[this.entry.op]?.[key];
    const number = parseFloat(String(value));
    return Number.isNaN(number) ? undefined : number;
  }

  /**
   * Holds a result to the file's tensor of that name.
   * @param where only these rows (all axes but the last, flattened) count
   */
  async judge(name: string, actual: Tensor | ArrayLike<number>, options: { limit?: number; where?: (row: number) => boolean } = {}): Promise<void> {
    const expected = this.stored(name);
    this.#judged.add(name);
    if (actual instanceof Tensor && actual.shape.join() !== expected.shape.join())
      return this.wrong(`${name}: shape [${actual.shape.join(', ')}] where [${expected.shape.join(', ')}] was expected`);
    let a: ArrayLike<number> = actual instanceof Tensor ? await actual.toFloat32() : actual;
    let e: ArrayLike<number> = expected.data;
    const { where } = options;
    if (where) {
      const width = expected.shape.at(-1) ?? 1;
      const kept = (x: ArrayLike<number>): number[] => Array.from(x).filter((_, i) => where(Math.floor(i / width)));
      [a, e] = [kept(a), kept(e)];
    }
    const { maxrel, text } = compare(a, e, where ? [e.length] : expected.shape);
    const limit = options.limit ?? this.limit(name);
    if (!(maxrel <= limit)) this.wrong(`${name}: ${text}, limit ${limit.toExponential(1)}`, maxrel / (limit || Number.MIN_VALUE));
  }

  /** Holds a result to the file's tensor by |a - g|_2 / |g|_2. */
  async judgeL2(name: string, actual: Tensor, limit: number, where: (row: number) => boolean = () => true): Promise<void> {
    const expected = this.stored(name);
    this.#judged.add(name);
    const width = expected.shape.at(-1)!;
    const kept = (x: ArrayLike<number>): number[] => Array.from(x).filter((_, i) => where(Math.floor(i / width)));
    const error = relativeL2(kept(await actual.toFloat32()), kept(expected.data));
    if (!(error <= limit)) this.wrong(`${name}: relative L2 error ${error.toExponential(2)}, limit ${limit.toExponential(1)}`, error / limit);
  }

  /** Holds integers or texts to what is expected. */
  exactly(what: string, actual: unknown, expected: unknown): void {
    const [a, e] = [JSON.stringify(actual), JSON.stringify(expected)];
    if (a !== e) this.wrong(`${what}: ${a} where ${e} was expected`);
  }
  /** Marks a tensor as used though it is no result to compare. */
  seen(name: string): void {
    this.#judged.add(name);
  }
  wrong(text: string, excess = Infinity): void {
    this.#verdicts.push({ text, excess });
  }

  /** What is wrong, the worst first; tensors that nobody judged among it. */
  verdict(): string[] {
    const left = [...this.tensors.keys()].filter((n) => /^(out|grad)\./.test(n) && !this.#judged.has(n));
    if (left.length) this.wrong(`${left.length} expected tensors were not compared: ${left.slice(0, 5).join(', ')}`);
    return this.#verdicts.sort((a, b) => b.excess - a.excess).map((v) => v.text);
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Judges one case. */
export type Handler = (g: Golden) => Promise<void>;
