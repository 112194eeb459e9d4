// Draws the rows of bench/headline.ts from a result of `npm run bench -- --device cuda --shapes large --json`: times as multiples of the
// floor, ours beside the best peer's, and prints the same rows as a table for the README.
//   node dist/bench/chart.js [bench/results/cuda-kernels-large.json [bench/results/cuda-kernels-large.svg]]
import { readFileSync, writeFileSync } from 'node:fs';
import { init } from 'echarts';
import { headlines, type Headline } from './headline.js';
import type { KernelRow, PeerTime } from './kernels.js';

interface Shown extends Headline {
  row: KernelRow;
  best: PeerTime | undefined;
}

const [from = 'bench/results/cuda-kernels-large.json', to = 'bench/results/cuda-kernels-large.svg'] = process.argv.slice(2);
const result = JSON.parse(readFileSync(from, 'utf8')) as { machine: { commit: string; date: string; backend: { name: string } }; rows: KernelRow[] };
const shown = headlines.map((h): Shown => {
  const row = result.rows.find((r) => r.op === h.op && r.name === h.name);
  if (!row) throw new Error(`${from} has no row '${h.op}: ${h.name}'`);
  return { ...h, row, best: row.peers.toSorted((a, b) => a.ms - b.ms)[0] };
});

const ms = (value: number): string => (value < 0.01 ? `${(1e3 * value).toPrecision(3)} µs` : `${value < 100 ? value.toPrecision(3) : value.toFixed(0)} ms`);
const rate = ({ row, rate }: Shown): string =>
  rate === 'TFLOP/s' ? ` (${(row.gflopPerSecond / 1e3).toFixed(0)} TFLOP/s)` : rate === 'GB/s' ? ` (${row.gbPerSecond.toFixed(0)} GB/s)` : '';

function table(): string {
  const line = (...cells: string[]): string => `| ${cells.join(' | ')} |\n`;
  const peer = ({ best }: Shown): string => (best ? `${ms(best.ms)} (${best.peer})` : '');
  const over = ({ row, best }: Shown): string => (best ? (row.ms / best.ms).toFixed(2) : '');
  return (
    line('bf16, batch 1 where nothing else is said', 'ours', 'best peer', 'ours over it', 'floor') +
    line('---', '---', '---', '---', '---') +
    shown.map((s) => line(s.label, ms(s.row.ms) + rate(s), peer(s), over(s), ms(s.row.floorMs))).join('')
  );
}

function chart(): string {
  const height = 90 + 26 * shown.length;
  const view = init(null, null, { renderer: 'svg', ssr: true, width: 980, height });
  const points = (time: (s: Shown) => number | undefined): (number | null)[] =>
    shown.map((s) => time(s)).map((value, i) => (value === undefined ? null : Number((value / shown[i]!.row.floorMs).toFixed(2))));
  const grey = { color: '#6b7280' }; // legible on a light and on a dark page
  const labels = shown.map(({ label }, i) => (label === 'its backward' ? `${shown[i - 1]!.label}, backward` : label));
  const bar = (name: string, color: string, data: (number | null)[]) =>
    ({ name, type: 'bar', data, barWidth: 8, barGap: '15%', itemStyle: { color }, label: { show: true, position: 'right', fontSize: 10, ...grey } });
  try {
    view.setOption({
      animation: false,
      textStyle: { fontFamily: 'sans-serif' },
      title: { text: `Times the floor (1 = bytes over bandwidth or operations over peak); ${result.machine.backend.name}, ${result.machine.commit.slice(0, 7)}, ${result.machine.date.slice(0, 10)}`, textStyle: { fontSize: 13, fontWeight: 'normal', ...grey } },
      legend: { top: 30, itemGap: 40, textStyle: grey },
      grid: { left: 390, right: 50, top: 64, bottom: 24 },
      xAxis: { type: 'log', min: 0.8, max: 30, axisLabel: grey, splitLine: { lineStyle: { color: '#9ca3af', opacity: 0.3 } } },
      yAxis: { type: 'category', inverse: true, data: labels, axisLabel: { ...grey, fontSize: 11 }, axisTick: { show: false } },
      series: [bar('mmmamba', '#2563eb', points((s) => s.row.ms)), bar('best peer', '#d97706', points((s) => s.best?.ms))],
    });
    return view.renderToSVGString();
  } finally {
    view.dispose(); // else its timer keeps the process alive
  }
}

writeFileSync(to, chart());
process.stdout.write(table());
