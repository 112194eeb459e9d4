import { zeros, type Reference } from '../case.js';

export const embedding: Reference = ({ weight, ids }) => {
  const width = weight!.shape[1]!;
  const y = zeros([...ids!.shape, width]);
  for (let i = 0; i < ids!.data.length; i++)
    for (let j = 0; j < width; j++) y.data[i * width + j] = weight!.data[ids!.data[i]! * width + j]!;
  return { y };
};
