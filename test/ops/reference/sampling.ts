import { zeros, type Reference } from '../case.js';

const largest = (row: Float64Array): number => row.reduce((best, v, i) => (v > row[best]! ? i : best), 0);

export const argmax: Reference = ({ x }) => {
  const n = x!.shape.at(-1)!;
  const index = zeros(x!.shape.slice(0, -1));
  for (let i = 0; i < index.data.length; i++) index.data[i] = largest(x!.data.subarray(i * n, (i + 1) * n));
  return { index };
};

/** First word of Philox4x32-10 (Salmon et al. 2011). */
export function philox(key: [number, number], counter: [number, number, number, number]): number {
  let [c0, c1, c2, c3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key.map(BigInt) as [bigint, bigint];
  const word = 0xffffffffn;
  for (let round = 0; round < 10; round++) {
    const p = 0xd2511f53n * c0;
    const q = 0xcd9e8d57n * c2;
    [c0, c1, c2, c3] = [(q >> 32n) ^ c1 ^ k0, q & word, (p >> 32n) ^ c3 ^ k1, p & word];
    k0 = (k0 + 0x9e3779b9n) & word;
    k1 = (k1 + 0xbb67ae85n) & word;
  }
  return Number(c0);
}
const split = (x: number): [number, number] => [x % 2 ** 32, Math.floor(x / 2 ** 32)];

export const sample: Reference = ({ logits }, { temperature = 1, topK = 0, topP = 1, seed = 0, offset = 0 }) => {
  const [rows, n] = logits!.shape as [number, number];
  const token = zeros([rows]);
  for (let i = 0; i < rows; i++) {
    const row = logits!.data.subarray(i * n, (i + 1) * n);
    const best = largest(row);
    if (Number(temperature) === 0) {
      token.data[i] = best;
      continue;
    }
    const mass = Array.from(row, (v) => Math.exp((v - row[best]!) / Number(temperature)));
    let kept = Array.from(row, (_, j) => j).sort((a, b) => row[b]! - row[a]! || a - b);
    if (Number(topK) > 0) kept = kept.slice(0, Number(topK));
    const total = kept.reduce((sum, j) => sum + mass[j]!, 0);
    if (Number(topP) < 1) {
      let before = 0;
      kept = kept.filter((j) => {
        const keep = before < Number(topP) * total;
        before += mass[j]!;
        return keep;
      });
    }
    kept.sort((a, b) => a - b);
    const u = Math.floor(philox(split(Number(seed)), [...split(Number(offset)), i, 0]) / 256) / 2 ** 24;
    const goal = u * kept.reduce((sum, j) => sum + mass[j]!, 0);
    let cumulated = 0;
    token.data[i] = kept.find((j) => (cumulated += mass[j]!) > goal) ?? kept.at(-1)!;
  }
  return { token };
};
