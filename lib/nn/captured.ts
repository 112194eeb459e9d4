import { noGrad } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import { copyInto } from '../ops/index.js';
import { Graph } from '../tensor/graph.js';
import { Scope, scope, tensorsIn, untracked } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';

/** A result that is valid until it is disposed, and no longer than until the next call. */
export interface Held<T> extends Disposable {
  readonly value: T;
}

export interface CapturedOptions {
  /** forms to record; default 4 */
  most?: number;
  /** calls of a form that run as they are before it is recorded; default 1, and at least that: what is made at first use must exist */
  after?: number;
}

interface Recorded<I, T> {
  inputs: I;
  graph: Graph<T>;
}

/**
 * A synchronous function of tensors that is called again and again: the first call with inputs of a form (shapes, dtypes, and all
 * that is not a tensor) runs it as it is, the second records it as a graph, and later ones copy their inputs into the recorded
 * ones and replay it. On a device without graphs every call runs the function.
 *
 *     using update = new Captured('cuda', (x: Tensor) => model.forward(x));
 *     using result = await update.run(() => Tensor.from(pixels, shape, { device: 'cuda' }));
 *
 * A recorded form keeps the memory that its work needs, so only the first few forms that repeat are recorded.
 */
export class Captured<I, T> implements Disposable {
  readonly #options: Required<CapturedOptions>;
  /** recorded, or how often a form has come */
  readonly #forms = new Map<string, Recorded<I, T> | number>();
  #possible = true;
  #recorded = 0;

  constructor(
    readonly device: string,
    readonly fn: (inputs: I) => T,
    options: CapturedOptions = {},
  ) {
    this.#options = { most: 4, after: 1, ...options };
  }

  /**
   * @param inputs makes plain data with tensors, which belong to this object; `fn` may read nothing else that changes
   * @throws MmError what `fn` throws; ERR_KERNEL where its work cannot be recorded
   */
  async run(inputs: () => I): Promise<Held<T>> {
    const given = untracked(() => scope(inputs));
    const tensors = tensorsIn(given);
    const dispose = (): void => tensors.forEach((t) => t.dispose());
    let kept = false;
    try {
      const form = formOf(given);
      let recorded = this.#forms.get(form) ?? 0;
      if (typeof recorded !== 'number') {
        const fixed = tensorsIn(recorded.inputs);
        noGrad(() => tensors.forEach((src, i) => copyInto({ dst: fixed[i]!, src })));
      } else {
        const graph = recorded < this.#options.after ? null : await this.#record(given);
        if (!graph) {
          this.#count(form, recorded + 1);
          return this.#direct(given);
        }
        this.#forms.set(form, (recorded = { inputs: given, graph }));
        this.#recorded++;
        kept = true;
      }
      recorded.graph.replay();
      return { value: recorded.graph.result, [Symbol.dispose]: () => undefined };
    } finally {
      if (!kept) dispose();
    }
  }

  /** null where there are no graphs, or enough of them. */
  async #record(given: I): Promise<Graph<T> | null> {
    if (!this.#possible || this.#recorded >= this.#options.most) return null;
    try {
      return await Graph.capture(this.device, () => this.fn(given));
    } catch (error) {
      if (!(error instanceof MmError && error.code === 'ERR_UNSUPPORTED')) throw error;
      this.#possible = false;
      return null;
    }
  }

  #count(form: string, times: number): void {
    if (this.#forms.size >= 256) // where hardly anything repeats
      for (const [old, state] of this.#forms) if (typeof state === 'number') this.#forms.delete(old);
    this.#forms.set(form, times);
  }

  #direct(given: I): Held<T> {
    const made = new Scope();
    const value = untracked(() => made.run(() => scope(() => this.fn(given))));
    return { value, [Symbol.dispose]: () => made.dispose() };
  }

  /** Frees the recorded graphs with their results and inputs. Idempotent. */
  dispose(): void {
    for (const recorded of this.#forms.values()) {
      if (typeof recorded === 'number') continue;
      recorded.graph.dispose();
      tensorsIn(recorded.inputs).forEach((t) => t.dispose());
    }
    this.#forms.clear();
    this.#recorded = 0;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Equal for values that differ in the contents of their tensors alone. */
function formOf(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) => {
    if (part instanceof Tensor) return `${part.dtype} [${part.shape.join()}] [${part.strides.join()}] ${part.device}`;
    return ArrayBuffer.isView(part) ? Array.from(part as Int32Array) : part;
  });
}
