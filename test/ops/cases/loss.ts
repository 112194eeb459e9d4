import { ints, normal, uniform, values, type Draw, type OpCase } from '../case.js';

const entropy = (name: string, logits: number[], labels: Draw, extra: { weight?: boolean; attrs?: OpCase['attrs'] } = {}): OpCase => ({
  op: 'crossEntropy',
  name,
  inputs: { logits: normal(logits, 2), labels, ...(extra.weight && { lossWeight: uniform(logits.slice(0, -1), 0, 1, { dtype: 'f32' }) }) },
  attrs: extra.attrs ?? {},
});
const kl = (name: string, shape: number[], attrs: OpCase['attrs'] = {}, mask = false): OpCase => ({
  op: 'klDiv',
  name,
  inputs: { student: normal(shape, 1.5), teacher: normal(shape, 1.5), ...(mask && { mask: uniform(shape.slice(0, -1), 0, 1, { dtype: 'f32' }) }) },
  attrs,
});
const squares = (name: string, shape: number[], factor = 1): OpCase => ({ op: 'mse', name, inputs: { pred: normal(shape), target: normal(shape) }, attrs: { factor } });

export const cases: OpCase[] = [
  entropy('one position', [5], values([], [3])),
  entropy('odd vocabulary', [2, 7, 65], ints([2, 7], 0, 65)),
  entropy('ignored positions', [6, 130], values([6], [5, -100, 129, -100, 0, 64])),
  entropy('everything ignored', [3, 17], values([3], [-100, -100, -100])),
  entropy('another ignored label', [4, 33], values([4], [7, 1, 7, 32]), { attrs: { ignoreIndex: 7 } }),
  entropy('weights', [2, 8, 40], ints([2, 8], 0, 40), { weight: true }),
  entropy('weights and ignored positions', [5, 40], values([5], [3, -100, 17, 39, -100]), { weight: true }),
  entropy('label smoothing', [5, 130], ints([5], 0, 130), { attrs: { labelSmoothing: 0.1 } }),
  entropy('several blocks of a row', [3, 2500], ints([3], 0, 2500)),
  entropy('many positions', [517, 33], ints([517], 0, 33), { weight: true, attrs: { labelSmoothing: 0.05 } }),
  entropy('no positions', [0, 33], ints([0], 0, 33)),
  kl('one position', [65]),
  kl('batch mean', [2, 5, 50]),
  kl('temperature', [2, 4, 31], { temperature: 2 }),
  kl('mask and divisor', [3, 7, 130], { divisor: 11 }, true),
  kl('several blocks of a row', [3, 2500], { temperature: 1.5 }, true),
  kl('many positions', [517, 17]),
  kl('no positions', [0, 33]),
  squares('one element', [1]),
  squares('a factor', [3, 5, 65], 1000),
  squares('several blocks', [130, 517]),
  squares('nothing', [0, 3]),
];
