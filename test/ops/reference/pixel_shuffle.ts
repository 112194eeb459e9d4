import { zeros, type Reference } from '../case.js';

export const pixelShuffle: Reference = ({ x }) => {
  const [images, tokens, channels] = x!.shape as [number, number, number];
  const side = Math.sqrt(tokens);
  const y = zeros([images, tokens / 4, 4 * channels]);
  for (let n = 0; n < images; n++)
    for (let row = 0; row < side; row++)
      for (let col = 0; col < side; col++)
        for (let c = 0; c < channels; c++) {
          const token = Math.floor(row / 2) * (side / 2) + Math.floor(col / 2);
          const channel = ((row % 2) * 2 + (col % 2)) * channels + c;
          y.data[(n * (tokens / 4) + token) * 4 * channels + channel] = x!.data[(n * tokens + row * side + col) * channels + c]!;
        }
  return { y };
};
