/** Limits of one op as index.json gives them: numbers, or formulas as text. */
export type Tolerances = Record<string, unknown>;

const absent = { fp32_out: 1e-5, fp32_grad: 5e-5 };
const lowest = 1e-2; // of bf16: half a unit in the last place is 2^-9, and sums of rounded operands

/** A number, or the value of the formulas that index.json knows. */
function evaluated(value: unknown, stat: number, positions: ArrayLike<number>): number | undefined {
  if (typeof value === 'number') return value;
  const text = String(value ?? '');
  const position = /^([\d.e-]+) \+ ([\d.e-]+)\*max\(position\)$/.exec(text);
  if (position) return Number(position[1]) + Number(position[2]) * Array.from(positions).reduce((a, b) => Math.max(a, b), 0);
  const scaled = /^([\d.e-]+)\*stats\[2\]\+([\d.e-]+)$/.exec(text);
  if (scaled) return Number(scaled[1]) * stat + Number(scaled[2]);
  if (text === '' || text === 'same') return undefined;
  throw new Error(`the tolerance ${JSON.stringify(value)} is not understood`);
}

/**
 * The limit of maxrel for tensor `name`; in f16 that of bf16.
 * @param stat stats[2] of the tensor: the error that rounding its operands to bf16 alone makes
 */
export function limitOf(name: string, dtype: 'f32' | 'bf16' | 'f16', tolerances: Tolerances, stat = 0, positions: ArrayLike<number> = []): number {
  const prefix = dtype === 'f32' ? 'fp32' : 'bf16';
  const keys = name.startsWith('grad.')
    ? [...(/^grad\.(A|dt_bias)$/.test(name) ? [`${prefix}_grad_A_dt_bias`] : []), `${prefix}_grad`]
    : [...(/^out\.loss$/.test(name) ? [`${prefix}_loss`] : []), `${prefix}_out`];
  const key = keys.find((k) => tolerances[k] !== undefined);
  // 'same' points from the gradients to the outputs
  const value = key === undefined ? undefined : tolerances[key] === 'same' ? tolerances[`${prefix}_out`] : tolerances[key];
  const listed = evaluated(value, stat, positions);
  if (dtype !== 'f32') return Math.max(4 * stat, lowest, listed ?? 0);
  return listed ?? (name.startsWith('grad.') ? absent.fp32_grad : absent.fp32_out);
}
