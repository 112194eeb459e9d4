import type { EChartsCoreOption } from 'echarts/core';
import { init } from './echarts.js';

/** Colours are CSS variables of the report's page, so that one drawing serves the light and the dark theme. */
const text = 'var(--text)';
const muted = 'var(--muted)';
const grid = 'var(--grid)';

export interface Series {
  readonly name: string;
  /** a CSS colour, e.g. `var(--linear)` */
  readonly color: string;
}
export interface Line extends Series {
  readonly points: readonly (readonly [x: number, y: number])[];
  /** marks each point; for few points */
  readonly marks?: boolean;
}
export interface Axis {
  readonly name: string;
  readonly log?: boolean;
  readonly format?: (value: number) => string;
}

/** About a column of a wide page; on a phone it shrinks by a fifth, and its letters can still be read. */
const width = 420;
const height = 300;

/** One chart as an `<svg>` that fills its container; `label` is read to those who do not see it. */
function draw(option: EChartsCoreOption, label: string): string {
  const chart = init(null, null, { renderer: 'svg', ssr: true, width, height });
  try {
    chart.setOption({
      animation: false,
      textStyle: { fontFamily: 'inherit' },
      grid: { left: 66, right: 16, top: 36, bottom: 46 },
      ...option,
      legend: { top: 0, itemGap: 24, itemWidth: 18, textStyle: { color: text }, ...(option['legend'] as object | undefined) },
    });
    const title = label.replaceAll(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    return chart.renderToSVGString().replace(/^<svg width="\d+" height="\d+"/, `<svg role="img" aria-label="${title}"`);
  } finally {
    chart.dispose(); // else its animation timer keeps the process alive
  }
}

const line = { lineStyle: { color: grid } };
const label = (format?: (value: number) => string) => ({ color: muted, hideOverlap: true, ...(format ? { formatter: format } : {}) });

const axis = ({ name, log, format }: Axis, vertical: boolean) => ({
  type: log ? ('log' as const) : ('value' as const),
  name,
  nameLocation: 'middle' as const,
  nameGap: vertical ? 50 : 28,
  nameTextStyle: { color: muted },
  axisLabel: label(format),
  axisLine: line,
  splitLine: { show: vertical, ...line },
});

/** Lines over a numeric axis. */
export function lineChart(lines: readonly Line[], x: Axis, y: Axis, title: string): string {
  const shown = lines.filter(({ points }) => points.length > 0);
  const all = shown.flatMap(({ points }) => points);
  const bound = (log: boolean | undefined, values: number[]) =>
    log && values.length > 0 ? { min: 2 ** Math.floor(Math.log2(Math.min(...values))), logBase: 2 } : {};
  return draw(
    {
      xAxis: {
        ...axis(x, false),
        ...(x.log
          ? bound(
              true,
              all.map(([v]) => v),
            )
          : { min: 0 }),
      },
      yAxis: {
        ...axis(y, true),
        ...bound(
          y.log,
          all.map(([, v]) => v),
        ),
      },
      series: shown.map((s) => ({
        type: 'line',
        name: s.name,
        data: s.points.map(([a, b]) => [a, b]),
        showSymbol: s.marks ?? false,
        symbol: 'circle',
        symbolSize: 6,
        lineStyle: { color: s.color, width: 2 },
        itemStyle: { color: s.color, borderColor: s.color },
      })),
    },
    title,
  );
}

const dashes = 'path://M0,5h12v2h-12zM18,5h12v2h-12z';

/** Bars side by side over categories, each with its value as `barLabel` writes it, and one dashed line to compare them with. */
export function barChart(
  categories: readonly string[],
  bars: readonly (Series & { readonly values: readonly (number | null)[] })[],
  reference: Series & { readonly value: number },
  y: Axis,
  barLabel: (value: number) => string,
  title: string,
): string {
  return draw(
    {
      legend: { data: [...bars.map(({ name }) => ({ name })), { name: reference.name, icon: dashes }] },
      xAxis: { type: 'category', data: [...categories], axisLabel: { color: text }, axisLine: line, axisTick: { show: false } },
      yAxis: { ...axis(y, true), min: 0 },
      series: [
        ...bars.map((b) => ({
          type: 'bar',
          name: b.name,
          data: [...b.values],
          itemStyle: { color: b.color },
          barMaxWidth: 48,
          label: {
            show: true,
            position: 'top',
            color: text,
            formatter: ({ value }: { value: number | null }) => (value === null ? '' : barLabel(value)),
          },
        })),
        {
          // The points carry the legend and the axis; the mark runs across the whole chart.
          type: 'line',
          name: reference.name,
          data: categories.map(() => reference.value),
          showSymbol: false,
          lineStyle: { color: reference.color, type: 'dashed', width: 0 },
          itemStyle: { color: reference.color },
          markLine: {
            symbol: 'none',
            data: [{ yAxis: reference.value }],
            lineStyle: { color: reference.color, type: 'dashed', width: 2 },
            label: { show: false },
          },
        },
      ],
      grid: { left: 66, right: 16, top: 36, bottom: 28 },
    },
    title,
  );
}

/** At most `most` points, each the mean of its neighbours: enough for the eye, and small in the file. */
export function thin(points: readonly (readonly [number, number])[], most = 240): [number, number][] {
  const per = Math.max(1, Math.ceil(points.length / most));
  const out: [number, number][] = [];
  for (let at = 0; at < points.length; at += per) {
    const part = points.slice(at, at + per);
    const mean = (i: 0 | 1): number => part.reduce((sum, p) => sum + p[i], 0) / part.length;
    out.push([mean(0), mean(1)]);
  }
  return out;
}
