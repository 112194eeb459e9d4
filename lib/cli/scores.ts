import type { Scores } from '../train/evaluate.js';

const percent = (value: number): string => `${(100 * value).toFixed(1)} %`;

/** Scores as lines for people. */
export function scoreLines({ name, group, yesno }: Scores): string {
  const lines = [
    name && `exact names   ${percent(name.accuracy)}  (${name.correct} of ${name.total})`,
    group && `groups        ${percent(group.accuracy)}  (${group.correct} of ${group.total})`,
    yesno && `yes/no        ${percent(yesno.accuracy)}  (F1 ${percent(yesno.f1)}, ${percent(yesno.yesRatio)} answered yes, ${yesno.total} questions)`,
  ];
  return lines.map((line) => (line ? `${line}\n` : '')).join('');
}

/** Rows as a table with aligned columns; the first row is the head. */
export function textTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
      .join('  ')
      .trimEnd();
  const [head, ...body] = rows.map(line);
  return `${head}\n${'-'.repeat(Math.max(...rows.map((r) => line(r).length)))}\n${body.join('\n')}\n`;
}
