/** The worst error of a tensor: maxrel = max |a - g| / max |g| over the finite entries. */
export interface Comparison {
  maxrel: number;
  /** what was wrong where, for people */
  text: string;
}

function place(index: number, shape: readonly number[]): string {
  const at: number[] = [];
  for (let i = shape.length - 1; i >= 0; i--) {
    at.unshift(index % shape[i]!);
    index = Math.floor(index / shape[i]!);
  }
  return `[${at.join(', ')}]`;
}

/**
 * Compares with the expected values. Infinities and NaN must stand where the expected ones do; a shape that differs or a
 * missing one counts as an infinite error. Where all expected values are 0 the error is absolute.
 */
export function compare(actual: ArrayLike<number>, expected: ArrayLike<number>, shape: readonly number[]): Comparison {
  if (actual.length !== expected.length) return { maxrel: Infinity, text: `${actual.length} elements where ${expected.length} were expected` };
  let scale = 0;
  let worst = -1;
  let difference = 0;
  for (let i = 0; i < expected.length; i++) {
    const g = expected[i]!;
    const a = actual[i]!;
    if (!Number.isFinite(g) || !Number.isFinite(a)) {
      if (Object.is(a, g)) continue;
      return { maxrel: Infinity, text: `${a} where ${g} was expected at ${place(i, shape)}` };
    }
    scale = Math.max(scale, Math.abs(g));
    const d = Math.abs(a - g);
    if (d > difference) {
      difference = d;
      worst = i;
    }
  }
  const maxrel = difference / (scale || 1);
  if (worst < 0) return { maxrel, text: 'equal' };
  const where = `${actual[worst]!} where ${expected[worst]!} was expected (max ${scale.toExponential(2)})`;
  return { maxrel, text: `maxrel ${maxrel.toExponential(2)} at ${place(worst, shape)}: ${where}` };
}

/** |a - g|_2 / |g|_2. */
export function relativeL2(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return actual.length === expected.length ? Math.sqrt(difference / (norm || 1)) : Infinity;
}
