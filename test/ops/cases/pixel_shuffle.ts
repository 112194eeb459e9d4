import { normal, type OpCase } from '../case.js';

const shuffle = (name: string, shape: number[]): OpCase => ({ op: 'pixelShuffle', name, inputs: { x: normal(shape) } });

export const cases: OpCase[] = [
  shuffle('one token out', [1, 4, 1]),
  shuffle('odd channels', [2, 16, 7]),
  shuffle('side 6', [1, 36, 65]),
  shuffle('side 32', [2, 1024, 3]),
  shuffle('no images', [0, 16, 8]),
];
