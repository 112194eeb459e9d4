import { zeros, type NdArray, type Reference } from '../case.js';

const scalar = (value: number): NdArray => ({ shape: [], data: Float64Array.of(value) });

function logSoftmax(row: Float64Array, temperature = 1): { lse: number; logs: number[] } {
  const scaled = Array.from(row, (v) => v / temperature);
  const top = scaled.reduce((a, b) => Math.max(a, b), -Infinity);
  const lse = top + Math.log(scaled.reduce((sum, v) => sum + Math.exp(v - top), 0));
  return { lse, logs: scaled.map((v) => v - lse) };
}

export const crossEntropy: Reference = ({ logits, labels, lossWeight }, { ignoreIndex = -100, labelSmoothing = 0 }) => {
  const classes = logits!.shape.at(-1)!;
  const perToken = zeros(labels!.shape);
  const lse = zeros(labels!.shape);
  let total = 0;
  let divisor = 0;
  labels!.data.forEach((label, i) => {
    const row = logSoftmax(logits!.data.subarray(i * classes, (i + 1) * classes));
    lse.data[i] = row.lse;
    const counts = label !== Number(ignoreIndex);
    if (counts) {
      const e = Number(labelSmoothing);
      const mean = row.logs.reduce((a, b) => a + b, 0) / classes;
      perToken.data[i] = -(1 - e) * row.logs[label]! - e * mean;
    }
    const weight = lossWeight ? lossWeight.data[i]! : 1;
    total += perToken.data[i]! * weight;
    divisor += lossWeight ? weight : counts ? 1 : 0;
  });
  return { loss: scalar(divisor === 0 ? 0 : total / divisor), perToken, lse };
};

export const klDiv: Reference = ({ student, teacher, mask }, { temperature = 1, divisor = 0 }) => {
  const shape = student!.shape.slice(0, -1);
  const classes = student!.shape.at(-1)!;
  const perPosition = zeros(shape);
  const lseStudent = zeros(shape);
  const lseTeacher = zeros(shape);
  const t = Number(temperature);
  let total = 0;
  for (let i = 0; i < perPosition.data.length; i++) {
    const s = logSoftmax(student!.data.subarray(i * classes, (i + 1) * classes), t);
    const p = logSoftmax(teacher!.data.subarray(i * classes, (i + 1) * classes), t);
    lseStudent.data[i] = s.lse;
    lseTeacher.data[i] = p.lse;
    perPosition.data[i] = t * t * p.logs.reduce((sum, log, v) => sum + Math.exp(log) * (log - s.logs[v]!), 0);
    total += perPosition.data[i]! * (mask ? mask.data[i]! : 1);
  }
  const by = Number(divisor) || (shape[0] ?? 1);
  return { loss: scalar(perPosition.data.length ? total / by : 0), perPosition, lseStudent, lseTeacher };
};

export const mse: Reference = ({ pred, target }, { factor = 1 }) => {
  const n = pred!.data.length;
  const squares = pred!.data.reduce((sum, v, i) => sum + (v - target!.data[i]!) ** 2, 0);
  return { loss: scalar(n ? (Number(factor) * squares) / n : 0) };
};
