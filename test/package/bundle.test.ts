import test from 'ava';
import { build } from 'esbuild';
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { node, project } from './project.js';

const app = `
import * as mm from 'mmmamba';
mm.add({ a: mm.Tensor.from([1, 2]), b: mm.Tensor.from([3, 4]) }).data().then((sum) => console.log([...sum].join(' ')));`;

/** Bundles the app into a folder of its own, where nothing else is. */
async function bundled(format: 'esm' | 'cjs'): Promise<{ folder: string; file: string }> {
  const { folder: from, tarball } = project();
  const source = join(from, 'app.mjs');
  writeFileSync(source, app);
  const folder = mkdtempSync(join(dirname(tarball), `bundle-${format}-`));
  const file = join(folder, format === 'esm' ? 'app.mjs' : 'app.cjs');
  const { warnings } = await build({
    entryPoints: [source],
    outfile: file,
    bundle: true,
    platform: 'node',
    format,
    external: ['sharp'],
    logLevel: 'silent',
    logOverride: { 'empty-import-meta': 'silent' },
  });
  if (warnings.length > 0) throw new Error(warnings.map(({ text }) => text).join('\n'));
  return { folder, file };
}

for (const format of ['esm', 'cjs'] as const)
  test(`bundled by esbuild as ${format}, with the package's folder prebuilds beside it`, async (t) => {
    const { folder, file } = await bundled(format);
    try {
      const without = await node([file], { folder, env: project().env });
      t.is(without.code, 1);
      t.regex(without.stderr, /in a bundle, copy the package's folder 'prebuilds' beside the bundle/);
      cpSync(join(project().installed, 'prebuilds'), join(folder, 'prebuilds'), { recursive: true });
      const { stdout, stderr } = await node([file], { folder, env: project().env });
      t.is(stdout, '4 6\n', stderr);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
