import type { GraphHandle } from '../native/binding.js';
import { resolveDevice } from '../native/backends.js';
import { MmError } from '../native/errors.js';
import { adopt, binding } from '../native/loader.js';
import { Scope, untracked } from './scope.js';

/**
 * Work of a GPU that was recorded once and is replayed as a whole: what costs hundreds of launches costs one. A replay works on
 * the tensors of the capture, so new inputs are copied into those (`copyInto`) and `result` holds the last replay's outputs.
 *
 *     const graph = await Graph.capture('cuda', () => model.step(ids, state));
 *     copyInto({ dst: ids, src: next });
 *     graph.replay();
 *     console.log(await graph.result.data());
 *
 * Attributes of ops (a learning rate, a seed) are fixed by the capture. Uploads, reads and anything that waits cannot be captured;
 * the error says so.
 */
export class Graph<T> implements Disposable {
  #handle: GraphHandle | null;
  readonly #owned: Scope;

  private constructor(
    handle: GraphHandle,
    owned: Scope,
    readonly result: T,
  ) {
    this.#handle = handle;
    this.#owned = owned;
  }

  /**
   * Records what the synchronous `fn` queues on `device`; nothing runs yet, so the tensors of the result have no contents before the
   * first replay. Call `fn` itself once before, so that what is made at first use exists.
   * @throws MmError ERR_UNSUPPORTED on a device without graphs (the CPU), ERR_KERNEL where something cannot be captured
   */
  static async capture<T>(device: string, fn: () => T): Promise<Graph<T>> {
    const where = resolveDevice(device);
    const made = new Scope();
    const owned = new Scope();
    let handle: GraphHandle | undefined;
    try {
      handle = binding().captureBegin(where);
      let result: T;
      let ended: Promise<void>;
      try {
        result = untracked(() => made.run(fn));
        owned.run(() => made.release(result));
        made.dispose(); // before the capture ends: later work of the graph may use the memory of what is done
      } finally {
        ended = binding().captureEnd(handle);
        ended.catch(() => undefined); // reported below, unless fn threw first
      }
      if (result instanceof Promise) throw new MmError('ERR_ARGUMENT', 'Graph.capture() takes a synchronous function');
      await ended;
      return new Graph(handle, owned, result);
    } catch (error) {
      if (handle) binding().disposeGraph(handle);
      made.dispose();
      owned.dispose();
      throw adopt(error);
    }
  }

  /** Queues the captured work once more. */
  replay(): void {
    if (!this.#handle) throw new MmError('ERR_DISPOSED', 'the graph was used after dispose()');
    binding().replay(this.#handle);
  }

  /** Frees the graph and the tensors that its function made, `result` among them. Idempotent. */
  dispose(): void {
    if (!this.#handle) return;
    binding().disposeGraph(this.#handle);
    this.#handle = null;
    this.#owned.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
