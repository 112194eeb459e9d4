import { zeros, type Reference } from '../case.js';

/** The cubic convolution kernel of Keys with A = -0.75. */
function kernel(distance: number): number {
  const A = -0.75;
  const d = Math.abs(distance);
  if (d <= 1) return (A + 2) * d ** 3 - (A + 3) * d ** 2 + 1;
  if (d < 2) return A * d ** 3 - 5 * A * d ** 2 + 8 * A * d - 4 * A;
  return 0;
}

export const posEmbedBicubic: Reference = ({ posEmbed }, { outH, outW }) => {
  const [, tokens, channels] = posEmbed!.shape as [number, number, number];
  const side = Math.sqrt(tokens);
  const clamp = (i: number): number => Math.min(side - 1, Math.max(0, i));
  const y = zeros([1, Number(outH) * Number(outW), channels]);
  for (let v = 0; v < Number(outH); v++)
    for (let u = 0; u < Number(outW); u++) {
      const row = ((v + 0.5) * side) / Number(outH) - 0.5;
      const col = ((u + 0.5) * side) / Number(outW) - 0.5;
      for (let i = Math.floor(row) - 1; i <= Math.floor(row) + 2; i++)
        for (let j = Math.floor(col) - 1; j <= Math.floor(col) + 2; j++)
          for (let c = 0; c < channels; c++)
            y.data[(v * Number(outW) + u) * channels + c]! += kernel(row - i) * kernel(col - j) * posEmbed!.data[(clamp(i) * side + clamp(j)) * channels + c]!;
    }
  return { y };
};
