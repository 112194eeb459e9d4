import { zeros, type NdArray, type Reference } from '../case.js';

interface Sequence {
  batch: number;
  firstQuery: number;
  queries: number;
  firstKey: number;
  keys: number;
}
interface Mask {
  causal: boolean;
  left: number;
  right: number;
}

/** The whole row of scores of one query, then softmax: query i stands at key position i + keys - queries. */
export function softmaxAttention(q: NdArray, k: NdArray, v: NdArray, sequences: readonly Sequence[], scale: number, { causal, left, right }: Mask): { o: NdArray; lse: NdArray } {
  const [batch, length, heads, dim] = q.shape as [number, number, number, number];
  const [, keyLength, kvHeads] = k.shape as [number, number, number, number];
  const factor = scale || 1 / Math.sqrt(dim);
  const o = zeros(q.shape);
  const lse = zeros([batch, heads, length]);
  lse.data.fill(-Infinity);
  for (const s of sequences)
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor(h / (heads / kvHeads));
      for (let i = 0; i < s.queries; i++) {
        const at = ((s.batch * length + s.firstQuery + i) * heads + h) * dim;
        const position = i + s.keys - s.queries;
        const scores = new Map<number, number>();
        for (let j = 0; j < s.keys; j++) {
          if (causal && j > position) continue;
          if (left >= 0 && j < position - left) continue;
          if (!causal && right >= 0 && j > position + right) continue;
          const key = ((s.batch * keyLength + s.firstKey + j) * kvHeads + kvHead) * dim;
          let score = 0;
          for (let d = 0; d < dim; d++) score += q.data[at + d]! * k.data[key + d]!;
          scores.set(key, score * factor);
        }
        if (!scores.size) continue;
        const largest = Math.max(...scores.values());
        let total = 0;
        for (const score of scores.values()) total += Math.exp(score - largest);
        for (const [key, score] of scores)
          for (let d = 0; d < dim; d++) o.data[at + d]! += (Math.exp(score - largest) / total) * v.data[key + d]!;
        lse.data[(s.batch * heads + h) * length + s.firstQuery + i] = largest + Math.log(total);
      }
    }
  return { o, lse };
}

export const attention: Reference = ({ q, k, v, cuSeqlensQ, cuSeqlensK }, { scale = 0, causal = false, windowLeft = -1, windowRight = -1 }) => {
  const sequences: Sequence[] = [];
  if (cuSeqlensQ && cuSeqlensK)
    for (let i = 0; i + 1 < cuSeqlensQ.data.length; i++)
      sequences.push({
        batch: 0,
        firstQuery: cuSeqlensQ.data[i]!,
        queries: cuSeqlensQ.data[i + 1]! - cuSeqlensQ.data[i]!,
        firstKey: cuSeqlensK.data[i]!,
        keys: cuSeqlensK.data[i + 1]! - cuSeqlensK.data[i]!,
      });
  else
    for (let b = 0; b < q!.shape[0]!; b++) sequences.push({ batch: b, firstQuery: 0, queries: q!.shape[1]!, firstKey: 0, keys: k!.shape[1]! });
  return { ...softmaxAttention(q!, k!, v!, sequences, Number(scale), { causal: Boolean(causal), left: Number(windowLeft), right: Number(windowRight) }) };
};
