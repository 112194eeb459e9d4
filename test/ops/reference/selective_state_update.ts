import { zeros, type NdArray, type Reference } from '../case.js';

const softplus = (x: number): number => (x > 30 ? x : Math.log1p(Math.exp(x)));
const silu = (x: number): number => x / (1 + Math.exp(-x));

export const selectiveStateUpdate: Reference = ({ state, x, dt, A, B, C, D, z, dtBias }, { dtSoftplus }) => {
  const heads = state!.shape.length === 4;
  const batch = state!.shape[0]!;
  const H = heads ? state!.shape[1]! : 1;
  const P = state!.shape.at(-2)!;
  const N = state!.shape.at(-1)!;
  const G = heads ? B!.shape[1]! : 1;
  const tied = heads && dt!.shape.length === 2;
  const out = zeros(x!.shape);
  const next: NdArray = { shape: state!.shape, data: state!.data.slice() };
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < H; h++)
      for (let p = 0; p < P; p++) {
        const row = (b * H + h) * P + p;
        const own = tied ? h : h * P + p;
        const raw = dt!.data[tied ? b * H + h : row]! + (dtBias ? dtBias.data[own]! : 0);
        const step = dtSoftplus ? softplus(raw) : raw;
        const group = b * G + Math.floor(h / (H / G));
        let y = D ? D.data[heads && D.shape.length === 1 ? h : h * P + p]! * x!.data[row]! : 0;
        for (let n = 0; n < N; n++) {
          const decay = Math.exp(step * A!.data[tied ? h : own * N + n]!);
          next.data[row * N + n] = decay * next.data[row * N + n]! + step * x!.data[row]! * B!.data[group * N + n]!;
          y += C!.data[group * N + n]! * next.data[row * N + n]!;
        }
        out.data[row] = z ? y * silu(z.data[row]!) : y;
      }
  return { out, state: next };
};
