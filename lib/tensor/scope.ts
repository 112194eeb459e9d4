import { MmError } from '../native/errors.js';
import type { Tensor } from './tensor.js';

/** Innermost open scope of the synchronous code that runs now. Never survives an await: run() closes it. */
let current: Scope | null = null;

/** Called by every new tensor. */
export function track(tensor: Tensor): void {
  current?.add(tensor);
}

/**
 * Owns the tensors that are created inside `run(...)` and disposes them together. One scope may be entered again and
 * again, also across awaits: only the synchronous part inside run() is tracked, so overlapping async work never mixes.
 *
 *     using scope = new Scope();
 *     const y = scope.run(() => model.forward(x));
 *     console.log(await y.toArray());
 */
export class Scope implements Disposable {
  #tensors = new Set<Tensor>();
  #disposed = false;

  run<T>(fn: () => T): T {
    if (this.#disposed) throw new MmError('ERR_DISPOSED', 'the scope was disposed before run()');
    const outer = current;
    current = this;
    try {
      return fn();
    } finally {
      current = outer;
    }
  }

  add(tensor: Tensor): void {
    this.#tensors.add(tensor);
  }

  /** Hands `value`'s tensors (a tensor, or arrays and plain objects of them) to the enclosing scope, if any. */
  release<T>(value: T): T {
    visit(value, (t) => {
      if (this.#tensors.delete(t)) current?.add(t);
    });
    return value;
  }

  dispose(): void {
    this.#disposed = true;
    for (const t of this.#tensors) t.dispose();
    this.#tensors.clear();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Runs `fn` and disposes every tensor it created except those in its result. `fn` must be synchronous. */
export function scope<T>(fn: () => T): T {
  const s = new Scope();
  try {
    const result = s.run(fn);
    if (result instanceof Promise) {
      result.catch(() => undefined); // what it rejects with comes too late to be told
      throw new MmError('ERR_ARGUMENT', 'scope() takes a synchronous function; for code with await use `using s = new Scope()` and s.run() around the synchronous parts');
    }
    return s.release(result);
  } finally {
    s.dispose();
  }
}

/** Runs `fn` outside every scope: what it creates lives until it is disposed by hand. */
export function untracked<T>(fn: () => T): T {
  const outer = current;
  current = null;
  try {
    return fn();
  } finally {
    current = outer;
  }
}

/** The tensors in a tensor, or in arrays, maps and plain objects of them, in order. */
export function tensorsIn(value: unknown): Tensor[] {
  const found: Tensor[] = [];
  visit(value, (t) => found.push(t));
  return found;
}

function visit(value: unknown, fn: (t: Tensor) => void): void {
  if (value === null || typeof value !== 'object') return;
  if (isTensor(value)) fn(value);
  else if (Array.isArray(value)) for (const v of value) visit(v, fn);
  else if (value instanceof Map) for (const v of value.values()) visit(v, fn);
  else if (Object.getPrototypeOf(value) === Object.prototype) for (const v of Object.values(value)) visit(v, fn);
}

/** Set on Tensor.prototype, so that this file needs no import of the class. */
export const tensorMark: unique symbol = Symbol('mmmamba.tensor');
function isTensor(value: object): value is Tensor {
  return tensorMark in value;
}
