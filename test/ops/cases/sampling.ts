import { normal, values, type Draw, type OpCase } from '../case.js';

const draw = (name: string, logits: Draw, attrs: OpCase['attrs']): OpCase => ({ op: 'sample', name, inputs: { logits }, attrs });

export const cases: OpCase[] = [
  { op: 'argmax', name: 'one', inputs: { x: normal([1]) } },
  { op: 'argmax', name: 'odd rows', inputs: { x: normal([3, 5, 65]) } },
  { op: 'argmax', name: 'equal elements', inputs: { x: values([2, 20], [...Array<number>(20).fill(1), ...Array.from({ length: 20 }, (_, i) => (i % 7 === 3 ? 2 : 0))], 'f32') } },
  { op: 'argmax', name: 'all minus infinity but one', inputs: { x: values([19], Array.from({ length: 19 }, (_, i) => (i === 17 ? -5 : -Infinity)), 'f32') } },
  { op: 'argmax', name: 'long rows', inputs: { x: normal([2, 1118]) } },
  { op: 'argmax', name: 'no rows', inputs: { x: normal([0, 7]) } },
  draw('greedy', normal([5, 130]), { temperature: 0 }),
  draw('plain', normal([33, 65], 2), { seed: 1 }),
  draw('a large seed and offset', normal([33, 65], 2), { seed: 2 ** 40 + 5, offset: 2 ** 33 + 1 }),
  draw('temperature', normal([33, 517], 2), { temperature: 0.7, seed: 2 }),
  draw('topK', normal([33, 130], 2), { topK: 5, seed: 3 }),
  draw('topK with equals', values([3, 8], Array<number>(24).fill(0.5), 'f32'), { topK: 3, seed: 4 }),
  draw('topK of one', normal([7, 130]), { topK: 1, seed: 4 }),
  draw('topP', normal([33, 130], 2), { topP: 0.8, seed: 5 }),
  draw('tiny topP', normal([7, 65]), { topP: 0.001, seed: 6 }),
  draw('all limits', normal([33, 1118], 3), { temperature: 1.3, topK: 50, topP: 0.9, seed: 7, offset: 9 }),
  draw('one token', normal([2, 1]), { seed: 1 }),
  draw('masked tokens', values([4, 6], Array.from({ length: 24 }, (_, i) => (i % 3 ? -Infinity : i % 5)), 'f32'), { seed: 8 }),
  draw('no rows', normal([0, 7]), { seed: 1 }),
];
