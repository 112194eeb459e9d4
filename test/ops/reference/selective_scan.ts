import { zeros, type NdArray, type Reference } from '../case.js';

const softplus = (x: number): number => (x > 30 ? x : Math.log1p(Math.exp(x)));
const silu = (x: number): number => x / (1 + Math.exp(-x));

export const selectiveScan: Reference = ({ u, delta, A, B, C, D, z, deltaBias }, { deltaSoftplus }) => {
  const [batch, channels, length] = u!.shape as [number, number, number];
  const states = A!.shape[1]!;
  // element of a (D, N), (B, N, L) or (B, G, N, L) projection
  const at = (p: NdArray, b: number, d: number, n: number, t: number): number => {
    if (p.shape.length === 2) return p.data[d * states + n]!;
    const groups = p.shape.length === 4 ? p.shape[1]! : 1;
    const group = Math.floor(d / (channels / groups));
    return p.data[((b * groups + group) * states + n) * length + t]!;
  };
  const out = zeros(u!.shape);
  const lastState = zeros([batch, channels, states]);
  for (let b = 0; b < batch; b++)
    for (let d = 0; d < channels; d++) {
      const state = lastState.data.subarray((b * channels + d) * states, (b * channels + d + 1) * states);
      for (let t = 0; t < length; t++) {
        const i = (b * channels + d) * length + t;
        const raw = delta!.data[i]! + (deltaBias ? deltaBias.data[d]! : 0);
        const step = deltaSoftplus ? softplus(raw) : raw;
        let y = D ? D.data[d]! * u!.data[i]! : 0;
        for (let n = 0; n < states; n++) {
          state[n] = Math.exp(step * A!.data[d * states + n]!) * state[n]! + step * at(B!, b, d, n, t) * u!.data[i]!;
          y += at(C!, b, d, n, t) * state[n]!;
        }
        out.data[i] = z ? y * silu(z.data[i]!) : y;
      }
    }
  return { out, lastState };
};
