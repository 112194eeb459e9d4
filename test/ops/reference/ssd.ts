import { zeros, type NdArray, type Reference } from '../case.js';

/** Where sequence i of the state array stands: [batch row, first step, end]. */
export function sequences(batch: number, length: number, cu: NdArray | undefined): [number, number, number][] {
  if (!cu) return Array.from({ length: batch }, (_, b) => [b, 0, length]);
  return Array.from({ length: cu.data.length - 1 }, (_, i) => [0, cu.data[i]!, cu.data[i + 1]!]);
}

/** The recurrence step by step. */
export const ssd: Reference = ({ x, dt, A, B, C, D, z, dtBias, initialStates, cuSeqlens }, { dtSoftplus = true }) => {
  const [batch, length, heads, P] = x!.shape as [number, number, number, number];
  const [groups, N] = B!.shape.slice(2) as [number, number];
  const parts = sequences(batch, length, cuSeqlens);
  const y = zeros(x!.shape);
  const finalStates = zeros([parts.length, heads, P, N]);
  if (initialStates) finalStates.data.set(initialStates.data);
  parts.forEach(([b, start, end], i) => {
    for (let h = 0; h < heads; h++) {
      const group = Math.floor(h / (heads / groups));
      const state = finalStates.data.subarray((i * heads + h) * P * N, (i * heads + h + 1) * P * N);
      for (let t = start; t < end; t++) {
        const step = (b * length + t) * heads + h;
        let d = dt!.data[step]! + (dtBias ? dtBias.data[h]! : 0);
        if (dtSoftplus) d = Math.max(d, 0) + Math.log1p(Math.exp(-Math.abs(d)));
        const decay = Math.exp(d * A!.data[h]!);
        const row = ((b * length + t) * groups + group) * N;
        for (let p = 0; p < P; p++) {
          const at = step * P + p;
          let sum = 0;
          for (let n = 0; n < N; n++) {
            const s = decay * state[p * N + n]! + d * x!.data[at]! * B!.data[row + n]!;
            state[p * N + n] = s;
            sum += s * C!.data[row + n]!;
          }
          if (D) sum += D.data[D.shape.length === 2 ? h * P + p : h]! * x!.data[at]!;
          if (z) sum *= z.data[at]! / (1 + Math.exp(-z.data[at]!));
          y.data[at] = sum;
        }
      }
    }
  });
  return { y, finalStates };
};
