import { zeros, type NdArray, type Reference } from '../case.js';
import { sequences } from './ssd.js';

type Inputs = Parameters<Reference>[0];

/** `S_t = decay S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`, step by step; decay(step, n) of key channel n. */
function recurrence({ q, k, v, initialState, cuSeqlens }: Inputs, scale: number, normalize: boolean, decay: (step: number, n: number) => number): Record<string, NdArray> {
  const [batch, length, heads, K] = q!.shape as [number, number, number, number];
  const V = v!.shape[3]!;
  const factor = scale || 1 / Math.sqrt(K);
  const parts = sequences(batch, length, cuSeqlens);
  const o = zeros(v!.shape);
  const finalState = zeros([parts.length, heads, K, V]);
  if (initialState) finalState.data.set(initialState.data);
  parts.forEach(([b, start, end], i) => {
    for (let h = 0; h < heads; h++) {
      const state = finalState.data.subarray((i * heads + h) * K * V, (i * heads + h + 1) * K * V);
      const keys = new Float64Array(K);
      for (let t = start; t < end; t++) {
        const step = (b * length + t) * heads + h;
        let den = 0;
        for (let n = 0; n < K; n++) {
          keys[n]! += k!.data[step * K + n]!;
          den += q!.data[step * K + n]! * keys[n]!;
        }
        for (let j = 0; j < V; j++) {
          let sum = 0;
          for (let n = 0; n < K; n++) {
            const s = decay(step, n) * state[n * V + j]! + k!.data[step * K + n]! * v!.data[step * V + j]!;
            state[n * V + j] = s;
            sum += q!.data[step * K + n]! * s;
          }
          o.data[step * V + j] = normalize ? (factor * sum) / (factor * den + 1e-10) : factor * sum;
        }
      }
    }
  });
  return { o, finalState };
}

export const linearAttention: Reference = (inputs, { scale = 0, normalize = false }) => recurrence(inputs, Number(scale), Boolean(normalize), () => 1);
export const simpleGla: Reference = (inputs, { scale = 0 }) => recurrence(inputs, Number(scale), false, (step) => Math.exp(inputs['g']!.data[step]!));
export const gla: Reference = (inputs, { scale = 0 }) => {
  const K = inputs['q']!.shape[3]!;
  return recurrence(inputs, Number(scale), false, (step, n) => Math.exp(inputs['gk']!.data[step * K + n]!));
};
