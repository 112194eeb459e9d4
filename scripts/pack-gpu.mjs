// Packs what git ignores and a run on another x86-64 Linux machine needs, which has neither Node nor a network: into
// .device/base what seldom changes (node, the rendered drawings), into .device/run the build. On the other machine, in a copy of
// the tracked files with these two folders: `. .device/run/setup.sh`, and then any command, such as
// `node dist/test/ops/main.js --device cuda`.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir, tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const require = createRequire(join(root, 'package.json'));
const [base, run] = ['base', 'run'].map((name) => join(root, '.device', name));
const work = mkdtempSync(join(tmpdir(), 'mmmamba-pack-'));
const stage = join(work, 'stage');

function sh(script, ...args) {
  const result = spawnSync('bash', ['-c', `set -euo pipefail; ${script}`, 'pack', ...args], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  if (result.status !== 0) throw new Error(`failed: ${script} ${args.join(' ')}`);
  return result.stdout.trim();
}
/** Compresses into a file that appears whole. */
function pack(filters, from, to) {
  sh(`nice -n 19 xz -c ${filters} "$1" > "$2"`, from, `${to}.part`);
  renameSync(`${to}.part`, to);
}
const stripped = (from, to) => {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
  sh('strip "$1"', to);
};
const json = (path) => JSON.parse(readFileSync(path, 'utf8'));
const write = (path, content) => {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
};

/**
 * Blanks the languages but English, the legacy encodings and the dictionaries of ICU's data inside the node binary, which are a
 * third of it when compressed: ICU looks at an item's header when it opens it, and then goes on without it.
 */
function trimLocales(binary) {
  const needed = /^(en|root|pool|res_index|supplementalData|zoneinfo64|timezoneTypes|metaZones|numberingSystems|keyTypeData|likelySubtags|plurals)/;
  const bytes = readFileSync(binary);
  for (let at = bytes.indexOf('CmnD'); at >= 0; at = bytes.indexOf('CmnD', at + 4)) {
    const header = at - 12; // u16 size of the header, magic 0xda 0x27, ..., the format's name
    if (bytes[header + 2] !== 0xda || bytes[header + 3] !== 0x27) continue;
    const toc = header + bytes.readUInt16LE(header);
    const count = bytes.readUInt32LE(toc);
    for (let i = 0; i + 1 < count; i++) {
      const [name, from, , to] = [0, 1, 2, 3].map((k) => toc + bytes.readUInt32LE(toc + 4 + 8 * i + 4 * k));
      const item = bytes.toString('latin1', name, bytes.indexOf(0, name));
      if (/\.(res|cnv|dict|cfu)$/.test(item) && !needed.test(basename(item))) bytes.fill(0, from, to);
    }
  }
  writeFileSync(binary, bytes);
  const works = "process.exit(new Intl.NumberFormat('en').format(1234.5) === '1,234.5' && 'é'.normalize('NFD').length === 2 ? 0 : 1)";
  sh('"$1" -e "$2"', binary, works);
}

/** Files of a package that running needs. */
function copyPackage(name, keep = () => true) {
  const from = join(root, 'node_modules', name);
  const waste = /^(test|tests|docs?|src)(\/|$)|(^|\/)node_modules(\/|$)|\.(d\.[cm]?ts|map|md|ts|flow)$/;
  cpSync(from, join(stage, 'node_modules', name), {
    recursive: true,
    filter: (path) => {
      const file = relative(from, path);
      return file === '' || (!waste.test(file) && (statSync(path).isDirectory() || file === 'package.json' || keep(file)));
    },
  });
}

function packages() {
  const lock = json(join(root, 'package-lock.json')).packages;
  const special = ['sharp', 'emojibase-data', 'node-addon-api'];
  const names = new Set();
  const visit = (name) => {
    if (names.has(name) || special.includes(name)) return;
    names.add(name);
    Object.keys(lock[`node_modules/${name}`].dependencies ?? {}).forEach(visit);
  };
  const { dependencies, devDependencies } = json(join(root, 'package.json'));
  [...Object.keys(dependencies), 'fast-check'].forEach(visit);
  for (const name of names) copyPackage(name);
  copyPackage('emojibase-data', (file) => /^(en\/data|meta\/groups)\.json$/.test(file));
  // Names of the drawings without the drawings, which the cache holds rendered.
  for (const name of Object.keys(devDependencies).filter((n) => n.startsWith('@iconify-json/'))) {
    copyPackage(name, (file) => file === 'chars.json');
    const icons = json(join(root, 'node_modules', name, 'icons.json')).icons;
    const mark = (body) => createHash('sha256').update(body).digest('base64').slice(0, 8); // equal drawings stay equal
    const bare = Object.fromEntries(Object.entries(icons).map(([icon, { body }]) => [icon, { body: mark(body) }]));
    write(join(stage, 'node_modules', name, 'icons.json'), JSON.stringify({ icons: bare }));
  }
  standIn();
}

/** In place of sharp's native libraries. Its versions are part of the cache's key. */
function standIn() {
  const { versions } = require('sharp');
  const folder = join(stage, 'node_modules', 'sharp');
  write(join(folder, 'package.json'), JSON.stringify({ name: 'sharp', version: versions.sharp, main: 'index.js' }));
  write(join(folder, 'versions.json'), JSON.stringify(versions));
  copyFileSync(join(root, 'scripts', 'sharp-stand-in.cjs'), join(folder, 'index.js'));
}

const setup = `# Sourced in the repository's root on the other machine. What is unpacked from .device/base stays in /tmp for later calls, which
# need not bring that folder again.
if [ -e node_modules/ava ]; then echo 'this is where the pack was made; it is for another machine' >&2; return 1; fi
unpacked=/tmp/mmmamba-unpacked
mkdir -p "$unpacked/bin" "$unpacked/cache/mmmamba"
plain() { if command -v xz >/dev/null; then xz -dc "$1"; else python3 -c 'import lzma,shutil,sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer, 1 << 20)' "$1"; fi; }
if [ ! -x "$unpacked/bin/node" ]; then plain .device/base/node.xz > "$unpacked/bin/node" && chmod +x "$unpacked/bin/node"; fi
for packed in .device/base/*.rgb.xz; do
  name=$(basename "$packed" .xz)
  [ -e "$packed" ] && [ ! -e "$unpacked/cache/mmmamba/$name" ] && plain "$packed" > "$unpacked/cache/mmmamba/$name"
done
rm -rf dist build node_modules build-cuda
plain .device/run/run.tar.xz | tar -x
export PATH="$unpacked/bin:$PATH" XDG_CACHE_HOME="$unpacked/cache"
for lib in /usr/local/cuda*/targets/x86_64-linux/lib/libcublasLt.so.1[23]; do
  [ -e "$lib" ] && export MMMAMBA_CUBLASLT_PATH="\${MMMAMBA_CUBLASLT_PATH:-$lib}"
done
`;

try {
  for (const folder of [base, run, stage]) mkdirSync(folder, { recursive: true });

  const node = join(base, 'node.xz');
  if (!existsSync(node)) {
    const binary = join(work, 'node');
    stripped(process.execPath, binary);
    trimLocales(binary);
    pack('--x86 --lzma2=preset=6,dict=64MiB', binary, node);
  }
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'mmmamba');
  for (const name of existsSync(cache) ? readdirSync(cache).filter((n) => n.endsWith('.rgb')) : []) {
    const to = join(base, `${name}.xz`);
    if (!existsSync(to) || statSync(to).mtimeMs < statSync(join(cache, name)).mtimeMs) pack('--lzma2=preset=6,dict=128MiB,pb=0,lc=4', join(cache, name), to);
  }

  cpSync(join(root, 'dist'), join(stage, 'dist'), { recursive: true, filter: (path) => !/\.(d\.ts|map|test\.js)$/.test(path) });
  stripped(join(root, 'build', 'Release', 'mmmamba.node'), join(stage, 'build', 'Release', 'mmmamba.node'));
  const library = join(root, 'build-cuda', 'libmmmamba_cuda.so');
  if (existsSync(library)) stripped(library, join(stage, 'build-cuda', basename(library)));
  else console.error('mmmamba: build-cuda/libmmmamba_cuda.so is not there: packed without it');
  const dirty = sh('git status --porcelain --untracked-files=no') ? '+' : '';
  write(join(stage, 'build', 'commit'), `${sh('git rev-parse --short=12 HEAD')}${dirty}\n`);
  packages();

  const tar = join(work, 'run.tar');
  sh('tar --sort=name --owner=0 --group=0 -cf "$1" -C "$2" .', tar, stage);
  pack('--x86 --lzma2=preset=6,dict=128MiB', tar, join(run, 'run.tar.xz'));
  writeFileSync(join(run, 'setup.sh'), setup);

  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const sizes = [base, run].map((folder) => readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0));
  const tracked = sh('{ git ls-files -z; git ls-files -z --others --exclude-standard; } | xargs -0 stat -c %s 2>/dev/null | paste -sd+ | bc');
  for (const folder of [base, run])
    for (const name of readdirSync(folder)) console.log(`${relative(root, join(folder, name))}  ${mib(statSync(join(folder, name)).size)}`);
  console.log(`with the ${mib(Number(tracked))} of files that git does not ignore: ${mib(Number(tracked) + sizes[0] + sizes[1])} in all, ${mib(Number(tracked) + sizes[1])} without .device/base`);
} finally {
  rmSync(work, { recursive: true, force: true });
}
