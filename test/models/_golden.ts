import type { ExecutionContext } from 'ava';
import { resolve } from 'node:path';
import { readSafetensors, type RawTensor } from '../../lib/io/safetensors.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { loadModel, loadRawState, seedStudent, type Batch, type VisionLanguageModel } from '../../lib/models/index.js';

/** ava runs every test with the project's root as working folder. */
export const golden = (...parts: string[]): string => resolve('test/golden/data', ...parts);

/** One case's tensors. */
export class Golden {
  constructor(
    readonly path: string,
    readonly tensors: ReadonlyMap<string, RawTensor>,
  ) {}
  static async read(path: string): Promise<Golden> {
    return new Golden(path, (await readSafetensors(golden(path))).tensors);
  }
  names(prefix: string): string[] {
    return [...this.tensors.keys()].filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  }
  has(name: string): boolean {
    return this.tensors.has(name);
  }
  shape(name: string): readonly number[] {
    return this.#raw(name).shape;
  }
  f32(name: string): Float32Array {
    const { data } = this.#raw(name);
    return new Float32Array(data.buffer, data.byteOffset, data.byteLength / 4);
  }
  i32(name: string): Int32Array {
    const { data } = this.#raw(name);
    return new Int32Array(data.buffer, data.byteOffset, data.byteLength / 4);
  }
  u8(name: string): Uint8Array {
    return this.#raw(name).data;
  }
  #raw(name: string): RawTensor {
    const raw = this.tensors.get(name);
    if (!raw) throw new Error(`${this.path} has no ${name}`);
    return raw;
  }

  /** The case's inputs; without the mask, so that padding is computed as the reference did. */
  batch(): Batch {
    const [size, length] = this.shape('in.input_ids') as [number, number];
    const post = this.has('in.hd_input_ids');
    return {
      size,
      length,
      inputIds: this.i32('in.input_ids'),
      positionIds: this.has('in.position_ids') ? this.i32('in.position_ids') : null,
      ...(this.has('in.pixel_values') && { pixelValues: this.f32('in.pixel_values'), imageFlags: this.i32('in.image_flags') }),
      ...(post && { patchIds: this.i32('in.hd_input_ids'), patchPositionIds: this.i32('in.hd_position_ids') }),
    };
  }
}

/** max |a - g| / max |g|, over rows (of the last axis) whose mask is 1. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>, mask?: Uint8Array): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} values against ${expected.length}`);
  const width = mask ? expected.length / mask.length : 1;
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    if (mask && !mask[Math.floor(i / width)]) continue;
    if (Number.isNaN(actual[i])) return NaN;
    difference = Math.max(difference, Math.abs(actual[i]! - expected[i]!));
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return difference / Math.max(largest, 1e-30);
}

/** Reads `actual` (and checks its size) against a golden tensor. */
export async function close(t: ExecutionContext, file: Golden, name: string, actual: Tensor, tolerance: number, mask?: Uint8Array): Promise<void> {
  const error = relativeError(await actual.toFloat32(), file.f32(name), mask);
  t.true(error <= tolerance, `${file.path} ${name}: relative error ${error}, limit ${tolerance}`);
}

/** The tensor's contents in another order of axes. */
export async function permuted(t: Tensor, order: readonly number[]): Promise<Float32Array> {
  const view = t.aliased(order.map((a) => t.shape[a]!), order.map((a) => t.strides[a]!), 0);
  const data = await view.toFloat32();
  view.dispose();
  return data;
}

/** The teacher with the reference's student tensors of a stage: 0 seeded, 1, 2; with the given softmax layers. */
export async function goldenStudent(
  teacher: VisionLanguageModel,
  stage: 0 | 1 | 2,
  attentionLayers: readonly number[] = [],
): Promise<VisionLanguageModel> {
  const student = seedStudent(teacher, { seed: 1, attentionLayers });
  const declared = student.namedParameters();
  for (const name of ['seeded', 'stage1', 'stage2'].slice(0, stage + 1)) {
    const { tensors } = await readSafetensors(golden('student', `student_${name}.safetensors`));
    loadRawState(student, new Map([...tensors].filter(([key]) => declared.has(key))), { partial: true });
  }
  return student;
}

export const teacherOf = (): Promise<VisionLanguageModel> => loadModel(golden('models/hovle_tiny'));

/** Fails when the test leaves tensors behind. Tests of one file must run in series. */
export async function leakFree(t: ExecutionContext, fn: () => Promise<void>): Promise<void> {
  const before = memoryStats().tensors;
  await fn();
  t.is(memoryStats().tensors, before, 'live tensors after the test');
}
