import type { Handle, Wrapped } from '../native/binding.js';
import { resolveDevice } from '../native/backends.js';
import { MmError } from '../native/errors.js';
import { adopt, binding } from '../native/loader.js';
import { bf16Bits, bf16Value, dtypeCode, dtypeName, dtypeSize, f16Bits, f16Value, type Dtype } from './dtype.js';
import { tensorMark, track } from './scope.js';

export type TypedArray = Float32Array | Uint16Array | Int32Array | Uint8Array;
/** Nested numbers, flat numbers or a typed array. */
export type TensorData = ArrayLike<number> | readonly TensorData[];

export interface TensorOptions {
  dtype?: Dtype;
  /** 'cpu' (default), 'cuda', 'cuda:1' or 'auto' */
  device?: string;
}

/**
 * A strided n-dimensional array on a device. Ops on it return at once, with the shapes known; only `data()`,
 * `toArray()` and `sync()` wait. Freed by `dispose()`, `using`, or the scope it was created in.
 */
export class Tensor implements Disposable {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly dtype: Dtype;
  readonly device: string;
  /** Marks a leaf whose gradient a tape may be asked for; results of ops are tracked by the tape itself. */
  requiresGrad = false;
  readonly [tensorMark] = true;
  readonly #handle: Handle;
  readonly #offset: number;
  #disposed = false;
  #holds = 0;

  /** Internal: from what the addon returned. */
  constructor(wrapped: Wrapped, device: string) {
    this.#handle = wrapped[0];
    this.dtype = dtypeName(wrapped[1]);
    this.shape = wrapped[2];
    this.strides = wrapped[3];
    this.#offset = wrapped[4];
    this.device = device;
    track(this);
  }

  /**
   * A tensor with a copy of `data`. Numbers are rounded to `dtype` (default f32; i32 for Int32Array, u8 for Uint8Array);
   * a Uint16Array given with bf16 or f16 is taken as raw bits. Without `shape`, nested arrays give it.
   */
  static from(data: TensorData | number, shape?: readonly number[], options: TensorOptions = {}): Tensor {
    const inferred = shape ?? shapeOf(data);
    const dtype = options.dtype ?? (data instanceof Int32Array ? 'i32' : data instanceof Uint8Array ? 'u8' : 'f32');
    const size = inferred.reduce((a, b) => a * b, 1);
    const flat = typeof data === 'number' ? [data] : isNested(data) ? flatten(data, inferred) : (data as ArrayLike<number>);
    if (flat.length !== size)
      throw new MmError('ERR_SHAPE', `data has ${flat.length} elements; shape [${inferred.join(', ')}] needs ${size}`);
    return Tensor.fromBytes(encode(flat, dtype), dtype, inferred, options.device);
  }

  /** A tensor with a copy of raw little-endian bytes. */
  static fromBytes(bytes: Uint8Array, dtype: Dtype, shape: readonly number[], device = 'cpu'): Tensor {
    return create(bytes, dtype, shape, device);
  }

  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    return create(null, options.dtype ?? 'f32', shape, options.device ?? 'cpu');
  }

  static full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
    if (shape.some((d) => !Number.isInteger(d) || d < 0)) return Tensor.zeros(shape, options); // refuses it, and says why
    const size = shape.reduce((a, b) => a * b, 1);
    return Tensor.from(new Array<number>(size).fill(value), shape, options);
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }
  get rank(): number {
    return this.shape.length;
  }
  get disposed(): boolean {
    return this.#disposed;
  }

  /** Internal: the native handle; throws ERR_DISPOSED when the tensor is gone. */
  get handle(): Handle {
    if (this.#disposed && this.#holds === 0)
      throw new MmError('ERR_DISPOSED', `a tensor of shape [${this.shape.join(', ')}] was used after dispose()`);
    return this.#handle;
  }

  /** Size of an axis; negative axes count from the end. */
  dim(axis: number): number {
    return this.shape[this.axis(axis)]!;
  }
  /** A checked, non-negative axis. */
  axis(axis: number): number {
    const a = axis < 0 ? axis + this.rank : axis;
    if (!Number.isInteger(a) || a < 0 || a >= this.rank)
      throw new MmError('ERR_SHAPE', `axis ${axis} is out of range for shape [${this.shape.join(', ')}]`);
    return a;
  }

  /** Whether the elements lie in row-major order without gaps. */
  get dense(): boolean {
    let step = 1;
    for (let i = this.rank - 1; i >= 0; i--) {
      if (this.shape[i] !== 1 && this.strides[i] !== step) return this.size === 0;
      step *= this.shape[i]!;
    }
    return true;
  }

  /** Internal: another tensor over the same storage; `offset` counts elements from this tensor's first. */
  aliased(shape: readonly number[], strides: readonly number[], offset: number): Tensor {
    try {
      return new Tensor(binding().view(this.handle, shape, strides, this.#offset + offset), this.device);
    } catch (error) {
      throw adopt(error);
    }
  }

  /** The contents, dense, when the queued work before is done: raw bits (Uint16Array) for bf16 and f16. */
  async data(): Promise<TypedArray> {
    let buffer: ArrayBuffer;
    try {
      buffer = await binding().read(this.handle);
    } catch (error) {
      throw adopt(error);
    }
    switch (this.dtype) {
      case 'f32':
        return new Float32Array(buffer);
      case 'i32':
        return new Int32Array(buffer);
      case 'u8':
        return new Uint8Array(buffer);
      default:
        return new Uint16Array(buffer);
    }
  }

  /** The contents as numbers, dense row-major. */
  async toFloat32(): Promise<Float32Array> {
    const raw = await this.data();
    if (raw instanceof Float32Array) return raw;
    if (this.dtype === 'bf16') return Float32Array.from(raw, bf16Value);
    if (this.dtype === 'f16') return Float32Array.from(raw, f16Value);
    return Float32Array.from(raw);
  }

  /** The value of a tensor with one element. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new MmError('ERR_SHAPE', `item() needs one element; the shape is [${this.shape.join(', ')}]`);
    return (await this.toFloat32())[0]!;
  }

  /** Lets the memory go once queued work is done with it. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#holds === 0) binding().dispose(this.#handle);
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Internal: keeps the contents usable for the tape after dispose(), until as many drop() calls. */
  hold(): this {
    void this.handle;
    this.#holds++;
    return this;
  }
  drop(): void {
    if (--this.#holds === 0 && this.#disposed) binding().dispose(this.#handle);
  }

  toString(): string {
    return `Tensor(${this.dtype} [${this.shape.join(', ')}] on ${this.device}${this.#disposed ? ', disposed' : ''})`;
  }
}

function create(bytes: Uint8Array | null, dtype: Dtype, shape: readonly number[], device: string): Tensor {
  const where = resolveDevice(device);
  try {
    return new Tensor(binding().fromBytes(bytes, dtypeCode(dtype), shape, where), where);
  } catch (error) {
    throw adopt(error);
  }
}

function isNested(data: TensorData): data is readonly TensorData[] {
  return Array.isArray(data) && data.some((entry) => typeof entry === 'object');
}

function shapeOf(data: TensorData | number): number[] {
  if (typeof data === 'number' || data === null) return [];
  return isNested(data) ? [data.length, ...shapeOf(data[0]!)] : [data.length];
}

function flatten(data: TensorData, shape: readonly number[], path = 'data'): number[] {
  const ragged = (where: string, entries: number | undefined, others: number | undefined): MmError =>
    new MmError('ERR_SHAPE', `${where} has ${entries ?? 'no'} entries where its siblings have ${others ?? 'none'}: nested data must be rectangular`);
  if (data?.length !== shape[0]) throw ragged(path, data?.length, shape[0]);
  if (shape.length === 1) {
    const row = Array.from(data as ArrayLike<number | TensorData>);
    row.forEach((entry, i) => {
      if (typeof entry === 'object') throw ragged(`${path}[${i}]`, entry?.length, undefined);
    });
    return row as number[];
  }
  return (data as readonly TensorData[]).flatMap((row, i) => flatten(row, shape.slice(1), `${path}[${i}]`));
}

function encode(flat: ArrayLike<number>, dtype: Dtype): Uint8Array {
  const bytes = (a: TypedArray): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
  switch (dtype) {
    case 'f32':
      return bytes(flat instanceof Float32Array ? flat : Float32Array.from(flat));
    case 'i32':
      return bytes(flat instanceof Int32Array ? flat : Int32Array.from(flat));
    case 'u8':
      return flat instanceof Uint8Array ? flat : Uint8Array.from(flat);
    default: {
      if (flat instanceof Uint16Array) return bytes(flat);
      const round = dtype === 'bf16' ? bf16Bits : f16Bits;
      const out = new Uint16Array(flat.length);
      for (let i = 0; i < flat.length; i++) out[i] = round(flat[i]!);
      return bytes(out);
    }
  }
}

/**
 * Waits until everything queued on the device is done; rejects with the first failure since the last wait, or with an older one that
 * left something unwritten in place and was not told yet.
 */
export async function sync(device = 'cpu'): Promise<void> {
  try {
    await binding().sync(resolveDevice(device));
  } catch (error) {
    throw adopt(error);
  }
}

/** Bytes of one tensor's elements. */
export function byteSize(t: Tensor): number {
  return t.size * dtypeSize(t.dtype);
}
