import { zeros, type Reference } from '../case.js';

export const patchEmbed: Reference = ({ x, weight, bias }) => {
  const [images, channels, height, width] = x!.shape as [number, number, number, number];
  const [features, , p] = weight!.shape as [number, number, number, number];
  const rows = height / p;
  const cols = width / p;
  const y = zeros([images, rows * cols, features]);
  for (let n = 0; n < images; n++)
    for (let r = 0; r < rows; r++)
      for (let q = 0; q < cols; q++)
        for (let e = 0; e < features; e++) {
          let sum = bias ? bias.data[e]! : 0;
          for (let c = 0; c < channels; c++)
            for (let i = 0; i < p; i++)
              for (let j = 0; j < p; j++)
                sum += x!.data[((n * channels + c) * height + r * p + i) * width + q * p + j]! * weight!.data[((e * channels + c) * p + i) * p + j]!;
          y.data[((n * rows + r) * cols + q) * features + e] = sum;
        }
  return { y };
};
