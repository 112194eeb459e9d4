import { zeros, type Reference } from '../case.js';

export const rmsNorm: Reference = ({ x, weight }, { eps }) => {
  const y = zeros(x!.shape);
  const width = x!.shape.at(-1)!;
  for (let row = 0; row < x!.data.length; row += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x!.data[row + i]! ** 2;
    const factor = 1 / Math.sqrt(squares / width + Number(eps));
    for (let i = 0; i < width; i++) y.data[row + i] = x!.data[row + i]! * factor * weight!.data[i]!;
  }
  return { y };
};
