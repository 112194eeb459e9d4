// Lets the linker of a new system make binaries for an old glibc: writes libc.so and libm.so that hold no code but only the names of
// the installed ones, each at its newest version that the old glibc has too. What is linked against them asks for those versions, and
// what the old glibc lacks has no version then, which check-package.mjs finds before a user's machine does (glibc-since.cc defines the
// few names that the C++ library wants nevertheless).
//
// The alternatives were an image of an old distribution, which is slower to get and has an older compiler, and zig's stubs, the same
// idea with 350 MB of another compiler.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const floor = '2.28';

/** Orders `GLIBC_2.3.4` before `GLIBC_2.28`. */
export function compareVersions(a, b) {
  const [x, y] = [a, b].map((version) => version.replace(/^\D+/, '').split('.').map(Number));
  for (let i = 0; i < Math.max(x.length, y.length); i++) if ((x[i] ?? 0) !== (y[i] ?? 0)) return (x[i] ?? 0) - (y[i] ?? 0);
  return 0;
}

/** The dynamic symbols of a library as objdump -T lists them: name, version ('' for none), whether data, weak, defined there, size. */
export function dynamicSymbols(path) {
  const listed = execFileSync('objdump', ['-T', path], { encoding: 'utf8', maxBuffer: 1 << 28 });
  return [...listed.matchAll(/^[0-9a-f]+ (.)(.).{4}(.) (\S+)\t([0-9a-f]+) +(?:(?:Base|\(?(\w+_[\d.]+)\)?) +)?(\S+)$/gm)].map(([, , weak, kind, section, size, version, name]) => ({
    name,
    version: version ?? '',
    data: kind === 'O',
    weak: weak === 'w',
    defined: section !== '*UND*' && section !== '*ABS*',
    size: parseInt(size, 16),
  }));
}

function stub(folder, library, soname) {
  const versions = new Map();
  for (const symbol of dynamicSymbols(library)) {
    if (!symbol.defined || !symbol.version.startsWith('GLIBC_') || compareVersions(symbol.version, floor) > 0) continue;
    versions.set(symbol.name, [...(versions.get(symbol.name) ?? []), symbol]);
  }
  const lines = ['.text'];
  const nodes = new Set();
  for (const [name, list] of versions)
    list
      .sort((a, b) => compareVersions(b.version, a.version))
      .forEach(({ version, data, size }, i) => {
        const label = `mm_${name}_${i}`;
        nodes.add(version);
        // `@@` marks the version that a reference without one gets.
        lines.push(`.globl ${label}`, `.type ${label},@${data ? 'object' : 'function'}`, `.size ${label},${size}`, `${label}:`, `.symver ${label},${name}${i ? '@' : '@@'}${version}`);
      });
  const [source, script, out] = ['s', 'map', 'so'].map((ending) => join(folder, `lib${soname.slice(3).split('.')[0]}.${ending}`));
  writeFileSync(source, `${lines.join('\n')}\n`);
  writeFileSync(script, [...nodes].sort(compareVersions).map((node) => `${node} { };\n`).join('') + 'MM_LOCAL { local: mm_*; };\n');
  execFileSync('gcc', ['-shared', '-nostdlib', `-Wl,-soname,${soname}`, `-Wl,--version-script=${script}`, source, '-o', out]);
}

/** Writes the stubs and the names that came later into a folder. Gives what the compiler has to be told when it links. */
export function linkFlags(folder) {
  mkdirSync(folder, { recursive: true });
  const system = '/lib/x86_64-linux-gnu';
  stub(folder, join(system, 'libc.so.6'), 'libc.so.6');
  stub(folder, join(system, 'libm.so.6'), 'libm.so.6');
  const since = join(folder, 'glibc-since.o');
  execFileSync('g++', ['-O2', '-fPIC', '-fvisibility=hidden', '-c', join(import.meta.dirname, 'glibc-since.cc'), '-o', since]);
  return [
    `-L${folder}`,
    since,
    '-static-libstdc++', // of the compiler's version, so the system's may be older
    `-Wl,--version-script=${join(import.meta.dirname, 'exports.map')}`, // and its symbols stay inside: Node has a copy of its own
    '-Wl,--no-as-needed',
    join(system, 'libdl.so.2'), // empty here, as the next two; where glibc is older than 2.34 they hold dlopen and the threads
    join(system, 'libpthread.so.0'),
    join(system, 'librt.so.1'), // shm_open, for the CUDA runtime
    join(system, 'ld-linux-x86-64.so.2'), // __tls_get_addr
    '-Wl,--as-needed',
  ];
}
