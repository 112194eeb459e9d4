// Part of `npm run build:ts`: puts what dist/lib/train/report/echarts.js uses of ECharts into that file, with its licence beside it, so that
// the package needs no ECharts where it is installed (68 MB in 1,700 files, up to a second of installing).
import { build } from 'esbuild';
import { copyFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const folder = join(import.meta.dirname, '..', 'dist', 'lib', 'train', 'report');
const file = join(folder, 'echarts.js');
await build({
  entryPoints: [file],
  outfile: file,
  allowOverwrite: true,
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  minify: true,
  define: { 'process.env.NODE_ENV': '"production"' },
  legalComments: 'none',
  banner: { js: '// Of Apache ECharts and ZRender, minified; licences: echarts.LICENSE and its neighbours.' },
  logLevel: 'warning',
});
for (const rest of [`${file}.map`, file.replace(/js$/, 'd.ts')]) rmSync(rest); // of what was there before

const echarts = dirname(createRequire(import.meta.url).resolve('echarts/package.json'));
const zrender = dirname(createRequire(join(echarts, 'package.json')).resolve('zrender/package.json'));
for (const [from, to] of [
  [join(echarts, 'LICENSE'), 'echarts.LICENSE'],
  [join(echarts, 'NOTICE'), 'echarts.NOTICE'],
  [join(echarts, 'licenses', 'LICENSE-d3'), 'echarts.LICENSE-d3'],
  [join(zrender, 'LICENSE'), 'echarts.LICENSE-zrender'],
])
  copyFileSync(from, join(folder, to));
