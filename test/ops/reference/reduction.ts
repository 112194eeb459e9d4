import { zeros, type Reference } from '../case.js';

const reduce =
  (f: (terms: number[]) => number): Reference =>
  ({ x }, { axis = -1000, keepDims }) => {
    const rank = x!.shape.length;
    const all = Number(axis) === -1000;
    const at = Number(axis) < 0 ? Number(axis) + rank : Number(axis);
    const gone = (i: number): boolean => all || i === at;
    const inner = all ? 1 : x!.shape.slice(at + 1).reduce((a, b) => a * b, 1);
    const count = all ? x!.data.length : x!.shape[at]!;
    const y = zeros(x!.shape.flatMap((d, i) => (!gone(i) ? [d] : keepDims ? [1] : [])));
    for (let i = 0; i < y.data.length; i++) {
      const first = Math.floor(i / inner) * count * inner + (i % inner);
      y.data[i] = f(Array.from({ length: count }, (_, j) => x!.data[first + j * inner]!));
    }
    return { y };
  };
const total = (terms: number[]): number => terms.reduce((a, b) => a + b, 0);

export const sum = reduce(total);
export const mean = reduce((terms) => total(terms) / terms.length);
export const max = reduce((terms) => terms.reduce((a, b) => Math.max(a, b), -Infinity));
