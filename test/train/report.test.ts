import test from 'ava';
import { barChart, lineChart, thin } from '../../lib/train/report/charts.js';
import { byteText, reportHtml, type ReportData } from '../../lib/train/report/index.js';
import { clock, createProgress, short } from '../../lib/train/progress.js';
import { Writable } from 'node:stream';

const data: ReportData = {
  title: 'A <b>title</b>',
  date: '2025-01-01',
  facts: [['machine', 'two & three']],
  results: [
    { model: 'teacher', stage: 'trained', name: 0.56, questions: 1168 },
    { model: 'linear', stage: 'seeded', name: 0, questions: 1168 },
    { model: 'linear', stage: 'stage 1', name: 0.1, questions: 1168 },
    { model: 'hybrid', stage: 'seeded', name: 0.02, questions: 1168 },
    { model: 'hybrid', stage: 'stage 1', name: 0.2, questions: 1168 },
  ],
  losses: [{ model: 'both', stage: 'stage 1', points: Array.from({ length: 1000 }, (_, i) => [i, 1 / (i + 1)] as const) }],
  samples: [{ image: 'data:image/png;base64,AA==', truth: 'red apple', answers: { teacher: 'red apple', linear: '<script>' } }],
  context: [
    {
      model: 'teacher',
      points: [
        { tokens: 1024, msPerToken: 1, bytes: 2 ** 20 },
        { tokens: 32768, msPerToken: 30, bytes: 2 ** 25 },
      ],
    },
    {
      model: 'linear',
      points: [
        { tokens: 1024, msPerToken: 0.5, bytes: 200_000 },
        { tokens: 32768, msPerToken: 0.5, bytes: 200_000 },
      ],
    },
  ],
};

test('a report needs nothing beside itself', (t) => {
  const html = reportHtml(data);
  for (const [, value] of html.matchAll(/(?:src|href|srcset|data)="([^"]*)"/g)) t.regex(value!, /^data:/);
  for (const [, value] of html.matchAll(/url\(["']?([^)"']*)/g)) t.regex(value!, /^#/);
  t.notRegex(html, /<script|<link|@import|<iframe/);
  t.regex(html, /prefers-color-scheme:dark/);
  t.true(html.includes('A &#60;b&#62;title'));
  for (const shown of ['56.0 %', '18 %', '32 MiB', 'Wed, 01 Jan 2025']) t.true(html.includes(shown), shown);
});

test("drawings fill their container, name themselves and take the page's colours", (t) => {
  const svg = lineChart(
    [
      {
        name: 'a',
        color: 'var(--linear)',
        points: [
          [1, 2],
          [2, 3],
        ],
      },
    ],
    { name: 'x' },
    { name: 'y', log: true },
    'A "title"',
  );
  t.regex(svg, /^<svg role="img" aria-label="A &#34;title&#34;" [^>]*viewBox="0 0 \d+ \d+"[^>]*>/);
  t.is(svg.match(/viewBox=/g)?.length, 1);
  t.regex(svg, /stroke="var\(--linear\)"/);
  const bars = barChart(
    ['one'],
    [{ name: 'b', color: 'var(--hybrid)', values: [0.5] }],
    { name: 'r', color: 'var(--teacher)', value: 1 },
    { name: 'y' },
    String,
    'bars',
  );
  t.regex(bars, /fill="var\(--hybrid\)"/);
});

test('long curves are thinned by means', (t) => {
  const points = thin(
    Array.from({ length: 1000 }, (_, i) => [i, i] as const),
    100,
  );
  t.is(points.length, 100);
  t.deepEqual(points[0], [4.5, 4.5]);
});

test('units', (t) => {
  t.deepEqual([0, 1536, 2 ** 20, 5.26e9].map(byteText), ['0 B', '1.5 KiB', '1 MiB', '4.9 GiB']);
  t.deepEqual([75, 3675, Infinity].map(clock), ['1:15', '1:01:15', '-:--']);
  t.deepEqual([7, 0.0123456, 1.23e-7, 1234.567].map(short), ['7', '0.0123', '1.2e-7', '1230']);
});

test('without a terminal progress is plain lines', (t) => {
  let text = '';
  const stream = new Writable({ write: (chunk: Buffer, _, done) => ((text += chunk.toString()), done()) }) as unknown as NodeJS.WriteStream;
  const progress = createProgress({ stream, lineEvery: 1e9 });
  progress.start('stage 1', 10, 4);
  progress.update(5, { loss: 0.5 });
  progress.message('a message');
  progress.update(6, { loss: 0.25 });
  progress.stop();
  t.regex(text, /^a message\nstage 1: 6\/10 .*left {2}loss 0\.25\n$/);
  t.notRegex(text, /\x1b/);
});
