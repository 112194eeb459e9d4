import { inOneDtype } from '../autograd/dtypes.js';
import { activeTape } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import { run } from '../tensor/run.js';
import { Tensor } from '../tensor/tensor.js';

/** Row-major strides of a dense shape. */
function denseStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i]!;
  }
  return strides;
}

/** Strides that show `t` in another shape without moving data, or null when its layout does not allow it. */
function viewStrides(t: Tensor, shape: readonly number[]): number[] | null {
  if (t.dense) return denseStrides(shape);
  // Match groups of axes with equal products; within a group of the old shape the layout must be dense.
  const strides: number[] = [];
  let i = 0;
  let j = 0;
  while (i < t.rank || j < shape.length) {
    let from = t.shape[i] ?? 1;
    let to = shape[j] ?? 1;
    let iEnd = i + 1;
    let jEnd = j + 1;
    while (from !== to) {
      if (from < to) from *= t.shape[iEnd++] ?? NaN;
      else to *= shape[jEnd++] ?? NaN;
      if (Number.isNaN(from) || Number.isNaN(to)) return null;
    }
    for (let a = i; a + 1 < Math.min(iEnd, t.rank); a++) if (t.shape[a] !== 1 && t.strides[a] !== t.strides[a + 1]! * t.shape[a + 1]!) return null;
    let step = t.strides[Math.min(iEnd, t.rank) - 1] ?? 1;
    for (let b = Math.min(jEnd, shape.length) - 1; b >= j; b--) {
      strides[b] = step;
      step *= shape[b]!;
    }
    i = iEnd;
    j = jEnd;
  }
  return strides;
}

/** The same elements in another shape; one axis may be -1. A view where the layout allows it, else a dense copy. */
export function reshape(t: Tensor, shape: readonly number[]): Tensor {
  const known = shape.reduce((a, b) => (b === -1 ? a : a * b), 1);
  const target = shape.map((d) => (d === -1 ? (known ? t.size / known : 0) : d));
  if (target.some((d) => !Number.isInteger(d) || d < 0) || target.reduce((a, b) => a * b, 1) !== t.size || shape.filter((d) => d === -1).length > 1)
    throw new MmError('ERR_SHAPE', `reshape: [${t.shape.join(', ')}] has ${t.size} elements and cannot become [${shape.join(', ')}]`);
  const strides = viewStrides(t, target);
  const source = strides ? t : run('copy', { x: t })['y']!;
  const out = source.aliased(target, strides ?? denseStrides(target), 0);
  if (source !== t) source.dispose();
  const from = t.shape;
  activeTape()?.recordNode([t], [out], [], ([g]) => [reshape(g!, from)]);
  return out;
}

/** Axes in another order, as a view: result axis i is axis order[i] of `t`. */
export function permute(t: Tensor, order: readonly number[]): Tensor {
  const axes = order.map((a) => t.axis(a));
  if (axes.length !== t.rank || new Set(axes).size !== t.rank)
    throw new MmError('ERR_SHAPE', `permute: [${order.join(', ')}] is no order of the ${t.rank} axes of [${t.shape.join(', ')}]`);
  const out = t.aliased(axes.map((a) => t.shape[a]!), axes.map((a) => t.strides[a]!), 0);
  const inverse = axes.map((_, i) => axes.indexOf(i));
  activeTape()?.recordNode([t], [out], [], ([g]) => [permute(g!, inverse)]);
  return out;
}

/** Swaps two axes, as a view. */
export function transpose(t: Tensor, a: number, b: number): Tensor {
  const order = t.shape.map((_, i) => i);
  const x = t.axis(a);
  const y = t.axis(b);
  [order[x], order[y]] = [y, x];
  return permute(t, order);
}

/** Elements [start, end) of an axis, as a view; negative bounds count from the end. */
export function slice(t: Tensor, axis: number, start: number, end: number): Tensor {
  const a = t.axis(axis);
  const n = t.shape[a]!;
  const low = start < 0 ? start + n : start;
  const high = end < 0 ? end + n : end;
  if (!Number.isInteger(low) || !Number.isInteger(high) || low < 0 || high > n || low > high)
    throw new MmError('ERR_SHAPE', `slice: [${start}, ${end}) is outside axis ${axis} of [${t.shape.join(', ')}]`);
  const shape = t.shape.map((d, i) => (i === a ? high - low : d));
  const out = t.aliased(shape, t.strides, low * t.strides[a]!);
  activeTape()?.recordNode([t], [out], [], ([g]) => [run('sliceBackward', { dY: g! }, { axis: a, start: low, length: n })['dX']!]);
  return out;
}

/** Consecutive slices of the given sizes along an axis, as views; their gradients are joined by one concat. */
export function split(t: Tensor, axis: number, sizes: readonly number[]): Tensor[] {
  const a = t.axis(axis);
  const total = sizes.reduce((x, y) => x + y, 0);
  if (total !== t.shape[a]) throw new MmError('ERR_SHAPE', `split: sizes [${sizes.join(', ')}] add up to ${total}; axis ${axis} of [${t.shape.join(', ')}] has ${t.shape[a]}`);
  let at = 0;
  const outs = sizes.map((n) => {
    const part = t.aliased(t.shape.map((d, i) => (i === a ? n : d)), t.strides, at * t.strides[a]!);
    at += n;
    return part;
  });
  activeTape()?.recordNode([t], outs, [], (up) => [joined(up, outs, a)]);
  return outs;
}

function joined(up: (Tensor | null)[], outs: Tensor[], axis: number): Tensor {
  const parts = up.map((g, i) => g ?? zerosLike(outs[i]!));
  return run('concat', { x: inOneDtype(parts) }, { axis })['y']!;
}

function zerosLike(t: Tensor): Tensor {
  return Tensor.zeros(t.shape, { dtype: t.dtype, device: t.device });
}
