import { barChart, lineChart, thin, type Line } from './charts.js';

export type ModelName = 'teacher' | 'linear' | 'hybrid';

/** Everything that a report shows; plain data, also written as report.json. */
export interface ReportData {
  title: string;
  /** ISO 8601 */
  date: string;
  /** one line each: machine, versions, settings */
  facts: [name: string, value: string][];
  /** share of exact names on the unseen artist, 0 to 1, and of the other questions where they were asked */
  results: { model: ModelName; stage: string; name: number; group?: number; yesNo?: number; questions: number }[];
  /** loss by update */
  losses: { model: ModelName | 'both'; stage: string; points: (readonly [step: number, loss: number])[] }[];
  samples: { image: string; truth: string; answers: Partial<Record<ModelName, string>> }[];
  /** one token after a context of so many */
  context: { model: ModelName; points: { tokens: number; msPerToken: number; bytes: number }[] }[];
}

const color = (model: ModelName | 'both'): string => `var(--${model === 'both' ? 'teacher' : model})`;

export const escapeHtml = (text: string): string => text.replaceAll(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
export const percent = (value: number): string => `${(100 * value).toFixed(1)} %`;

/** 1536 → '1.5 KiB' */
export function byteText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  const power = bytes > 0 ? Math.min(3, Math.floor(Math.log2(bytes) / 10)) : 0;
  const value = bytes / 1024 ** power;
  return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}
export const tokenText = (tokens: number): string => (tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}K` : String(tokens));

const threeDigits = (value: number): string => String(Number(value.toPrecision(3)));
const figure = (svg: string, caption: string): string => `<figure>${svg}<figcaption>${escapeHtml(caption)}</figcaption></figure>`;

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = (tag: string, row: readonly string[]): string => `<tr>${row.map((c) => `<${tag}>${c}</${tag}>`).join('')}</tr>`;
  return `<div class="scroll"><table><thead>${cells('th', head)}</thead><tbody>${rows.map((r) => cells('td', r)).join('')}</tbody></table></div>`;
}

function accuracy(data: ReportData): string {
  const teacher = data.results.find(({ model }) => model === 'teacher');
  if (!teacher) return '';
  const stages = [...new Set(data.results.filter(({ model }) => model !== 'teacher').map(({ stage }) => stage))];
  const of = (model: ModelName, stage: string) => data.results.find((r) => r.model === model && r.stage === stage);
  const students = (['linear', 'hybrid'] as const).filter((model) => data.results.some((r) => r.model === model));
  const chart = barChart(
    stages,
    students.map((model) => ({ name: model, color: color(model), values: stages.map((stage) => of(model, stage)?.name ?? null) })),
    { name: `teacher, ${percent(teacher.name)}`, color: color('teacher'), value: teacher.name },
    { name: 'exact names, %', format: (value) => String(Math.round(100 * value)) },
    (value) => (100 * value).toFixed(1),
    'Exact names on the unseen artist by stage',
  );
  const asked = (['group', 'yesNo'] as const).filter((kind) => data.results.some((r) => r[kind] !== undefined));
  const rows = data.results.map((r) => [
    r.model,
    escapeHtml(r.stage),
    percent(r.name),
    `${Math.round((100 * r.name) / teacher.name)} %`,
    ...asked.map((kind) => (r[kind] === undefined ? '' : percent(r[kind]))),
  ]);
  const head = ['model', 'after', 'exact names', 'of teacher', ...asked.map((kind) => ({ group: 'groups', yesNo: 'yes/no' })[kind])];
  return `<section><h2>Accuracy by stage</h2>
<p>Full names, exact, by greedy decoding, of ${teacher.questions} drawings by an artist that no model was trained on.
The teacher has softmax attention in every layer; mmMamba-linear has none, mmMamba-hybrid some.</p>
<div class="columns"><div>${chart}</div>${table(head, rows)}</div></section>`;
}

function losses(data: ReportData): string {
  const titles = new Map<string, Line[]>();
  for (const { model, stage, points } of data.losses) {
    const curve = {
      name: model === 'both' ? 'all mixers' : model,
      color: color(model),
      points: thin(points.filter(([, y]) => Number.isFinite(y) && y > 0)),
    };
    titles.set(stage, [...(titles.get(stage) ?? []), curve]);
  }
  const charts = [...titles].map(([stage, lines]) =>
    figure(lineChart(lines, { name: 'update' }, { name: 'loss', log: true, format: threeDigits }, `Loss of ${stage}`), stage),
  );
  return charts.length === 0 ? '' : `<section><h2>Loss curves</h2><div class="columns">${charts.join('')}</div></section>`;
}

function samples(data: ReportData): string {
  if (data.samples.length === 0) return '';
  const cards = data.samples.map(({ image, truth, answers }) => {
    const name = escapeHtml(truth);
    const rows = (['teacher', 'linear', 'hybrid'] as const)
      .filter((model) => answers[model] !== undefined)
      .map((model) => {
        const right = answers[model] === truth;
        return `<dt style="color:${color(model)}">${model}</dt><dd>${right ? '✓' : '✗'} ${escapeHtml(answers[model]! || '(nothing)')}</dd>`;
      });
    return `<article><img src="${image}" alt="${name}" width="96" height="96"><h3>${name}</h3><dl>${rows.join('')}</dl></article>`;
  });
  return `<section><h2>What the models call them</h2>
<p>Drawings of the unseen artist, taken at regular intervals from the test set.</p><div class="cards">${cards.join('')}</div></section>`;
}

function context(data: ReportData): string {
  if (data.context.length === 0) return '';
  const lines = (pick: (p: ReportData['context'][number]['points'][number]) => number): Line[] =>
    data.context.map(({ model, points }) => ({
      name: model,
      color: color(model),
      marks: true,
      points: points.map((p) => [p.tokens, pick(p)] as const),
    }));
  const x = { name: 'tokens of context', log: true, format: tokenText };
  const lengths = [...new Set(data.context.flatMap(({ points }) => points.map(({ tokens }) => tokens)))].sort((a, b) => a - b);
  const rows = lengths.map((tokens) => [
    tokenText(tokens),
    ...data.context.flatMap(({ points }) => {
      const p = points.find((q) => q.tokens === tokens);
      return p ? [`${p.msPerToken.toFixed(2)} ms`, byteText(p.bytes)] : ['', ''];
    }),
  ]);
  const time = lineChart(
    lines((p) => p.msPerToken),
    x,
    { name: 'ms per token', log: true, format: threeDigits },
    'Time per token by length of the context',
  );
  const memory = lineChart(
    lines((p) => p.bytes),
    x,
    { name: 'memory of the context', log: true, format: byteText },
    'Memory by length of the context',
  );
  return `<section><h2>Long contexts</h2><p>Time of the next token (the median of up to 192, the lengths taking turns), and memory of
what is remembered of the context (the state of a mixer, the keys and values of attention), at batch 1.
The values of the context are random: neither depends on them.</p>
<div class="columns"><div>${time}</div><div>${memory}</div></div>
${table(['tokens', ...data.context.flatMap(({ model }) => [`${model}: time`, `${model}: memory`])], rows)}</section>`;
}

const style = `
:root{color-scheme:light dark;--bg:#fbfbfd;--card:#fff;--text:#1d2330;--muted:#667085;--grid:#dde1e8;
--teacher:#6b7280;--linear:#2563eb;--hybrid:#c2570c}
@media (prefers-color-scheme:dark){:root{--bg:#11141a;--card:#1a1f28;--text:#e6e9ef;--muted:#98a1b2;--grid:#323a48;
--teacher:#a3adbd;--linear:#6ea8fe;--hybrid:#f5a742}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1rem 4rem}
h1{font-size:1.6rem;margin:0 0 .25rem}
h2{font-size:1.2rem;margin:0 0 .5rem}
section{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:1.25rem;margin:1.25rem 0}
p{margin:.25rem 0 1rem;color:var(--muted);max-width:70ch}
svg{width:100%;height:auto;display:block;font-family:inherit}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:1.25rem}
figure{margin:0}
figcaption{color:var(--muted);text-align:center;font-size:.9rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin-top:1rem;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600}
.scroll th:first-child,.scroll td:first-child{position:sticky;left:0;background:var(--card)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:1rem}
article{border:1px solid var(--grid);border-radius:8px;padding:.75rem;text-align:center}
article img{background:#fff;border-radius:6px}
article h3{font-size:1rem;margin:.5rem 0}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem .6rem;margin:0;text-align:left;font-size:.9rem}
dd{margin:0}
.facts td:first-child{color:var(--muted)}
.facts td+td{white-space:normal;overflow-wrap:anywhere}
@media (max-width:520px){section{padding:1rem .75rem}
article{display:grid;grid-template:auto 1fr/72px 1fr;column-gap:.75rem;text-align:left}
article img{grid-row:1/3;width:72px;height:72px}
article h3{margin:0 0 .25rem}}`;

/** The report as one HTML document that needs nothing beside it: drawings as inline SVG, pictures as data URIs. */
export function reportHtml(data: ReportData): string {
  const facts = data.facts.map(([name, value]) => `<tr><td>${escapeHtml(name)}</td><td>${escapeHtml(value)}</td></tr>`).join('');
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>${escapeHtml(data.title)}</title><style>${style}</style></head>
<body><main><h1>${escapeHtml(data.title)}</h1><p>${escapeHtml(new Date(data.date).toUTCString())}</p>
${accuracy(data)}
${samples(data)}
${context(data)}
${losses(data)}
<section class="facts"><h2>How this was made</h2><table><tbody>${facts}</tbody></table></section>
</main></body></html>
`;
}
