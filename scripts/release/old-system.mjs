// Runs the packed package on the C and C++ libraries of an old system, Debian 11 (glibc 2.31, GCC 10), the oldest that Debian still
// serves: `node scripts/release/old-system.mjs` after `npm run prebuild`. Part of the release checklist; CI reads the symbols alone.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { debian } from './debian.mjs';

const root = join(import.meta.dirname, '..', '..');
const folder = mkdtempSync(join(tmpdir(), 'mmmamba-old-system-'));
try {
  debian(folder, { suite: 'bullseye', type: 'deb' })('download', 'libc6', 'libstdc++6', 'libgcc-s1');
  for (const name of readdirSync(folder).filter((file) => file.endsWith('.deb'))) execFileSync('dpkg', ['-x', name, 'system'], { cwd: folder });
  const libraries = ['lib', 'usr/lib'].map((path) => join(folder, 'system', path, 'x86_64-linux-gnu'));
  const project = join(folder, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"private":true}\n');
  execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', folder], { cwd: root, stdio: 'ignore' });
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', join(folder, readdirSync(folder).find((name) => name.endsWith('.tgz')))], { cwd: project, stdio: 'ignore' });
  const text = `
    const mm = require('mmmamba');
    const matrix = mm.Tensor.full([256, 256], 1, { dtype: 'bf16' });
    mm.matmul({ a: matrix, b: matrix }).toFloat32().then(([first]) => {
      const [cpu, cuda] = mm.backends();
      console.log(JSON.stringify({ glibc: process.report.getReport().header.glibcVersionRuntime, first, gemm: cpu.devices[0].gemm, cuda: cuda.reason }, null, 1));
      if (first !== 256 || /symbol|GLIBC|cannot open/.test(cuda.reason)) process.exit(1);
    });`;
  const loader = join(libraries[0], 'ld-linux-x86-64.so.2');
  execFileSync(loader, ['--library-path', libraries.join(':'), process.execPath, '-e', text], { cwd: project, stdio: 'inherit' });
} finally {
  rmSync(folder, { recursive: true });
}
