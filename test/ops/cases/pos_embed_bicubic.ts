import { normal, type OpCase } from '../case.js';

const resize = (name: string, side: number, channels: number, outH: number, outW: number): OpCase => ({
  op: 'posEmbedBicubic',
  name,
  inputs: { posEmbed: normal([1, side * side, channels]) },
  attrs: { outH, outW },
});

export const cases: OpCase[] = [
  resize('one cell', 1, 1, 3, 2),
  resize('same grid', 4, 8, 4, 4),
  resize('larger', 4, 65, 6, 6),
  resize('smaller', 7, 33, 3, 5),
  resize('to one cell', 5, 130, 1, 1),
  resize('oblong', 3, 7, 9, 4),
];
