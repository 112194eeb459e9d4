import { MmError } from '../native/errors.js';
import type { Random } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import { Parameter, type ParameterOptions, type Placement } from './parameter.js';

/** What a state holds or lacks, against what a module declares. */
export interface StateProblems {
  missing: string[];
  unexpected: string[];
  mismatched: string[];
}

const MOST_NAMES = 12;

function listed(title: string, names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const more = names.length > MOST_NAMES ? [`  ... and ${names.length - MOST_NAMES} more`] : [];
  return [`${title} (${names.length}):`, ...names.slice(0, MOST_NAMES).map((name) => `  ${name}`), ...more];
}

/** A part of a model: parameters under a path, and other modules. Parameters bear the names of the reference implementation. */
export abstract class Module implements Disposable {
  readonly #own: Parameter[] = [];
  readonly #children: Module[] = [];

  /** @param path prefix of the parameters' names, without the last dot */
  constructor(
    readonly path: string,
    readonly placement: Placement,
  ) {}

  /** Declares a parameter `<path>.<name>`. */
  protected parameter(name: string, shape: readonly number[], options: ParameterOptions): Parameter {
    const parameter = new Parameter(this.path ? `${this.path}.${name}` : name, shape, this.placement, options);
    this.#own.push(parameter);
    return parameter;
  }
  protected child<M extends Module>(module: M): M {
    this.#children.push(module);
    return module;
  }

  /** All parameters, in the order of declaration. */
  parameters(): Parameter[] {
    return [...this.#own, ...this.#children.flatMap((c) => c.parameters())];
  }
  namedParameters(): Map<string, Parameter> {
    return new Map(this.parameters().map((p) => [p.name, p]));
  }
  /** Makes exactly the parameters that `choose` names trainable, and returns them. */
  setTrainable(choose: (name: string) => boolean): Parameter[] {
    return this.parameters().filter((p) => (p.trainable = choose(p.name)));
  }
  /** New values for all parameters, from their initialisers. */
  initialise(random: Random): void {
    for (const p of this.parameters()) p.initialise(random);
  }

  /** Compares names and shapes (file layout) with what is declared. */
  compareState(shapes: ReadonlyMap<string, readonly number[]>): StateProblems {
    const declared = this.namedParameters();
    const missing = [...declared.keys()].filter((name) => !shapes.has(name));
    const unexpected = [...shapes.keys()].filter((name) => !declared.has(name));
    const mismatched = [...declared.values()].flatMap(({ name, shape }) => {
      const found = shapes.get(name);
      if (!found || (found.length === shape.length && found.every((d, i) => d === shape[i]))) return [];
      return [`${name}: [${found.join(', ')}] instead of [${shape.join(', ')}]`];
    });
    return { missing, unexpected, mismatched };
  }

  /**
   * Copies tensors (file layout, any float dtype) into the parameters of the same names.
   * @param options with `partial`, names may be missing (their parameters stay as they are); unexpected ones are still errors
   * @throws MmError ERR_SHAPE with all missing, unexpected and mismatched names
   */
  loadState(state: ReadonlyMap<string, Tensor>, options: { partial?: boolean } = {}): void {
    const problems = this.compareState(new Map([...state].map(([name, t]) => [name, t.shape])));
    if (options.partial) problems.missing = [];
    throwStateProblems('the state', problems);
    const declared = this.namedParameters();
    for (const [name, tensor] of state) declared.get(name)!.set(tensor);
  }

  /** New tensors with all values, file layout; the caller disposes them. */
  stateDict(): Map<string, Tensor> {
    return new Map(this.parameters().map((p) => [p.name, p.fileTensor()]));
  }

  dispose(): void {
    for (const p of this.#own) p.dispose();
    for (const c of this.#children) c.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** @throws MmError ERR_SHAPE that lists every problem, if there is one */
export function throwStateProblems(what: string, { missing, unexpected, mismatched }: StateProblems): void {
  const lines = [...listed('missing', missing), ...listed('unexpected', unexpected), ...listed('of another shape', mismatched)];
  if (lines.length > 0) throw new MmError('ERR_SHAPE', `${what} does not fit the model\n${lines.join('\n')}`);
}
