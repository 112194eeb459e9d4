import type { Attrs } from '../native/binding.js';
import { MmError } from '../native/errors.js';
import { opSchema, run, type Operands, type Results } from '../tensor/run.js';
import { Scope, scope, tensorsIn } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import { inOneDtype } from './dtypes.js';
import { ruleOf } from './rules.js';

/** Gradients of a node's inputs, in their order; null where none is wanted. */
export type BackwardFn = (upstream: (Tensor | null)[], needs: boolean[]) => (Tensor | null)[];

interface Node {
  inputs: Tensor[];
  outputs: (Tensor | null)[];
  saved: Tensor[];
  backward: BackwardFn;
}

let active: Tape | null = null;

/** The tape that records now, if any. */
export function activeTape(): Tape | null {
  return active;
}

/** Runs `fn` without recording, also inside a tape. */
export function noGrad<T>(fn: () => T): T {
  const outer = active;
  active = null;
  try {
    return fn();
  } finally {
    active = outer;
  }
}

/**
 * Records ops on tensors that lead back to a leaf with `requiresGrad`, and walks them backwards once. It holds what the
 * gradient rules need, also after the tensors' scopes closed, and lets go of it node by node during backward(). It holds the
 * tensors themselves: nothing tells when one is written over in place before backward(), and the gradients are wrong then.
 * Results of ops without a gradient (argmax, sampling, the steps of decoding) are not tracked.
 *
 *     using tape = new Tape();
 *     const loss = tape.record(() => model.loss(batch));
 *     const grads = tape.backward(loss, parameters);
 */
export class Tape implements Disposable {
  #nodes: Node[] = [];
  #made = new Set<Tensor>();
  #leaves = new Set<Tensor>();
  #spent = false;

  /** Runs the synchronous `fn` with this tape recording. @throws MmError ERR_DISPOSED after backward(), ERR_ARGUMENT for an async `fn` */
  record<T>(fn: () => T): T {
    if (this.#spent) throw new MmError('ERR_DISPOSED', 'the tape was used up by backward() or dispose(); make a new one');
    const outer = active;
    active = this;
    try {
      const result = fn();
      if (result instanceof Promise) {
        result.catch(() => undefined); // what it rejects with comes too late to be told
        throw new MmError('ERR_ARGUMENT', 'Tape.record() takes a synchronous function; for code with await call record() around the synchronous parts');
      }
      return result;
    } finally {
      active = outer;
    }
  }

  /** Whether a gradient can flow into `t`. */
  tracks(t: Tensor): boolean {
    return t.requiresGrad || this.#made.has(t);
  }
  /** Leaves with requiresGrad that recorded ops touched. */
  get leaves(): Tensor[] {
    return [...this.#leaves];
  }

  /** Internal: treats these as leaves, whatever another tape or their `requiresGrad` says. */
  watch(tensors: Iterable<Tensor>): void {
    for (const t of tensors) this.#made.add(t);
  }

  /** Internal: records an operator call by the rule of its schema. */
  recordOp(op: string, operands: Operands, results: Results, attrs: Attrs | undefined): void {
    const rule = ruleOf(op);
    if (!rule) return;
    const { inputs, saved, backward } = rule(operands, results, attrs);
    this.recordNode(inputs, Object.values(results), saved, backward);
  }

  /** Internal: an op that only writes in place has no gradient, and one that it should pass on would be lost. Called before it runs. */
  refuseWrite(op: string, operands: Operands): void {
    const { inputs, outputs } = opSchema(op);
    if (outputs.length > 0) return;
    for (const { name, mutates } of inputs)
      if (!mutates && tensorsIn(operands[name]).some((t) => this.tracks(t)))
        throw new MmError('ERR_ARGUMENT', `${op}: ${name} leads back to a tensor with requiresGrad, and what is written in place passes no gradient on: use an op that returns its result (copy, concat), or write under noGrad()`);
  }

  /** Records a hand-written rule. `saved` tensors stay usable until the node was walked. */
  recordNode(inputs: Tensor[], outputs: (Tensor | null)[], saved: Tensor[], backward: BackwardFn): void {
    if (!inputs.some((t) => this.tracks(t))) return;
    for (const t of inputs) if (t.requiresGrad) this.#leaves.add(t);
    for (const t of saved) t.hold();
    for (const t of outputs) if (t) this.#made.add(t);
    this.#nodes.push({ inputs, outputs, saved, backward });
  }

  /**
   * d loss / d wrt for each of `wrt`, leaves or results of recorded ops; null for one that the loss does not depend on, or
   * that the tape does not track. `loss` has one element, unless its upstream gradient is given. A gradient is in its tensor's
   * dtype or in f32. Frees everything recorded, also where it throws; the tape cannot be used again.
   */
  backward(loss: Tensor, wrt: readonly Tensor[], upstream?: Tensor): (Tensor | null)[] {
    const wanted = new Set(wrt);
    const all = this.backwardAll([[loss, upstream ?? null]], wanted);
    for (const [t, grad] of all) if (!wanted.has(t)) grad.dispose();
    return wrt.map((t) => all.get(t) ?? null);
  }

  /**
   * Gradients of all leaves, and of `also` among the results of recorded ops, from several outputs with their upstream
   * gradients (null: ones, for a single element).
   */
  backwardAll(roots: readonly (readonly [Tensor, Tensor | null])[], also: ReadonlySet<Tensor> = new Set()): Map<Tensor, Tensor> {
    if (this.#spent) throw new MmError('ERR_DISPOSED', 'the tape was used up by backward() or dispose(); make a new one');
    try {
      return noGrad(() => scope(() => this.#walk(roots, also)));
    } finally {
      this.dispose();
    }
  }

  #walk(roots: readonly (readonly [Tensor, Tensor | null])[], also: ReadonlySet<Tensor>): Map<Tensor, Tensor> {
    const grads = new Map<Tensor, Tensor>();
    for (const [root, given] of roots) {
      if (!given && root.size !== 1)
        throw new MmError('ERR_SHAPE', `backward() starts from one element; the shape is [${root.shape.join(', ')}]: give the upstream gradient`);
      accumulate(grads, root, given ? run('copy', { x: given })['y']! : onesLike(root));
    }
    for (let node = this.#nodes.at(-1); node; node = this.#nodes.at(-1)) {
      const up = node.outputs.map((o) => (o ? (grads.get(o) ?? null) : null));
      if (up.some((g) => g)) {
        const { inputs, backward } = node;
        const needs = inputs.map((t) => this.tracks(t));
        using temporary = new Scope();
        const results = temporary.run(() => backward(up, needs));
        results.forEach((g, i) => {
          if (g && needs[i]) {
            temporary.release(g);
            accumulate(grads, inputs[i]!, g);
          }
        });
      }
      for (const o of node.outputs)
        if (o && !also.has(o)) {
          grads.get(o)?.dispose();
          grads.delete(o);
        }
      for (const t of node.saved) t.drop();
      this.#nodes.pop();
    }
    for (const [t, g] of grads)
      if (!t.requiresGrad && !also.has(t)) {
        g.dispose();
        grads.delete(t);
      }
    return grads;
  }

  /** Lets go of everything recorded. */
  dispose(): void {
    this.#spent = true;
    for (const node of this.#nodes) for (const t of node.saved) t.drop();
    this.#nodes = [];
    this.#made.clear();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Made on the device: nothing is uploaded, so that a graph can hold it. */
function onesLike(t: Tensor): Tensor {
  const ones = Tensor.zeros(t.shape, { device: t.device, dtype: t.dtype });
  run('fill', { x: ones }, { value: 1 });
  return ones;
}

function accumulate(grads: Map<Tensor, Tensor>, t: Tensor, g: Tensor): void {
  const before = grads.get(t);
  if (!before) {
    grads.set(t, g);
    return;
  }
  const [a, b] = inOneDtype([before, g]);
  grads.set(t, run('add', { a, b })['y']!);
  for (const part of [before, g, a!, b!]) part.dispose();
}

/** Finds out what a function depends on; keeps nothing for a walk back. */
class Probe extends Tape {
  readonly #outer: Tape;
  readonly #inside: Set<Tensor>;
  /** parameters, and results of the tapes around this one, that the function reads beside its inputs */
  readonly outside = new Set<Tensor>();

  constructor(outer: Tape, given: Iterable<Tensor>) {
    super();
    this.#outer = outer;
    this.#inside = new Set(given);
  }

  /** Whether `t` is an input that wants a gradient, or was computed from something that does. */
  made(t: Tensor): boolean {
    return this.#inside.has(t);
  }
  override tracks(t: Tensor): boolean {
    return this.#inside.has(t) || this.#outer.tracks(t);
  }
  override recordNode(inputs: Tensor[], outputs: (Tensor | null)[]): void {
    const wanted = inputs.filter((t) => this.tracks(t));
    if (wanted.length === 0) return;
    for (const t of wanted) if (!this.#inside.has(t)) this.outside.add(t);
    for (const t of outputs) if (t) this.#inside.add(t);
  }
}

/**
 * Runs `fn(inputs)` without keeping its intermediates and computes them again during backward (arXiv 1604.06174): memory
 * for one more forward. `fn` must be deterministic and return one tensor. What it reads beside its inputs is kept.
 */
export function checkpoint(fn: (inputs: Tensor[]) => Tensor, inputs: Tensor[]): Tensor {
  const outer = active;
  if (!outer) return fn(inputs);
  // Aliases tell an input from the same tensor read as a closure.
  const aliases = (): Tensor[] => inputs.map((t) => t.aliased(t.shape, t.strides, 0));
  return scope(() => {
    const given = aliases();
    const probe = new Probe(outer, given.filter((_, i) => outer.tracks(inputs[i]!)));
    const output = probe.record(() => fn(given));
    const same = given.indexOf(output);
    if (same >= 0) return inputs[same]!;
    if (!probe.made(output)) return output;
    const outside = [...probe.outside];
    outer.recordNode([...inputs, ...outside], [output], [...inputs, ...outside], ([g], needs) => {
      const again = aliases();
      const sources = [...again, ...outside];
      using inner = new Tape();
      inner.watch(sources.filter((_, i) => needs[i]));
      const recomputed = inner.record(() => scope(() => fn(again)));
      const grads = inner.backwardAll([[recomputed, g!]], new Set(sources));
      return sources.map((t) => grads.get(t) ?? null);
    });
    return output;
  });
}
