import { zeros, type NdArray, type Reference } from '../case.js';

/** `x cos + [-x2, x1] sin` at the position of every token. */
function rotated(x: NdArray, cos: NdArray, sin: NdArray, positionIds: NdArray, sign: number): NdArray {
  const [batch, heads, length, dim] = x.shape as [number, number, number, number];
  const half = dim / 2;
  const y = zeros(x.shape);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let l = 0; l < length; l++) {
        const position = positionIds.data[(positionIds.shape[0] === 1 ? 0 : b) * length + l]!;
        const at = ((b * heads + h) * length + l) * dim;
        for (let d = 0; d < dim; d++) {
          const turned = d < half ? -x.data[at + d + half]! : x.data[at + d - half]!;
          y.data[at + d] = x.data[at + d]! * cos.data[position * dim + d]! + sign * turned * sin.data[position * dim + d]!;
        }
      }
  return y;
}

export const rope: Reference = ({ q, k, cos, sin, positionIds }, { inverse = false }) => ({
  qEmbed: rotated(q!, cos!, sin!, positionIds!, inverse ? -1 : 1),
  kEmbed: rotated(k!, cos!, sin!, positionIds!, inverse ? -1 : 1),
});

/** Rounded to f32 where the reference implementation computes in f32. */
export const ropeTable: Reference = (_, attrs) => {
  const number = (name: string, initial: number): number => Number(attrs[name] ?? initial);
  const dim = number('headDim', 0);
  const maxPosition = number('maxPosition', 0);
  const seqLen = number('seqLen', 0);
  const factor = number('factor', 1);
  const rows = number('length', 0) || Math.max(maxPosition, seqLen);
  let base = number('theta', 10000);
  if (attrs['scaling'] === 'dynamic' && seqLen > maxPosition) base *= ((factor * seqLen) / maxPosition - (factor - 1)) ** (dim / (dim - 2));
  const cos = zeros([rows, dim]);
  const sin = zeros([rows, dim]);
  for (let t = 0; t < rows; t++)
    for (let d = 0; d < dim; d++) {
      const exponent = Math.fround((2 * (d % (dim / 2))) / dim);
      const frequency = Math.fround(1 / Math.fround(Math.fround(base) ** exponent));
      const position = attrs['scaling'] === 'linear' ? Math.fround(t / factor) : t;
      const angle = Math.fround(position * frequency);
      cos.data[t * dim + d] = Math.cos(angle);
      sin.data[t * dim + d] = Math.sin(angle);
    }
  return { cos, sin };
};
