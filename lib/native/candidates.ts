import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { ownFolder, packageRoot } from './root.js';

/** What prebuilt binaries are sorted by: Node's names of system and processor. */
export const platform = `${process.platform}-${process.arch}`;

/** The command that makes what is missing. */
export const compile = "npx mmmamba build (needs g++ 12 or newer, make and python3)";

/** What this library uses of node-gyp-build, which comes without types: how names of prebuilt binaries are read and ordered. */
interface NodeGypBuild {
  parseTags(file: string): { file: string };
  matchTags(runtime: string, abi: string): (tags: { file: string }) => boolean;
  compareTags(runtime: string): (a: { file: string }, b: { file: string }) => number;
}

/** The .node files in a `prebuilds` folder for this system and processor. */
function binaries(folder: string): string[] {
  const path = join(folder, 'prebuilds', platform);
  return existsSync(path) ? readdirSync(path).filter((name) => name.endsWith('.node')) : [];
}

/**
 * Those of them that node-gyp-build takes for this Node and C library, as their names say (glibc or musl), the best first. A bundle has
 * no node-gyp-build: it is CommonJS, which bundlers make an ES module of that throws when it is loaded. There the one rule counts that
 * our names need.
 */
function prebuilt(folder: string): string[] {
  const names = binaries(folder).sort();
  let rules: NodeGypBuild;
  try {
    rules = createRequire(join(ownFolder, 'candidates.js'))('node-gyp-build') as NodeGypBuild;
  } catch {
    const other = existsSync('/etc/alpine-release') ? '.glibc.' : '.musl.';
    return names.filter((name) => !name.includes(other)).map((name) => join(folder, 'prebuilds', platform, name));
  }
  return names
    .map((name) => rules.parseTags(name))
    .filter(rules.matchTags('node', process.versions.modules))
    .sort(rules.compareTags('node'))
    .map(({ file }) => join(folder, 'prebuilds', platform, file));
}

/**
 * Where the addon may lie, in the order in which it is tried.
 *
 * A local build comes before the prebuilt binary: it is there because somebody asked for it (`npm run build` in a checkout,
 * `npx mmmamba build` in an installed package), and a prebuilt binary that shadowed it would run yesterday's code. The last place
 * is for bundles: `prebuilds` copied beside the bundle.
 */
export function candidates(): string[] {
  const local = join(packageRoot, 'build', 'Release', 'mmmamba.node');
  return [...(existsSync(local) ? [local] : []), ...prebuilt(packageRoot), ...prebuilt(ownFolder)];
}

/** What to say when there is no candidate at all. */
export function nothingFound(): string {
  const folder = join(packageRoot, 'prebuilds');
  const shipped = existsSync(folder) ? readdirSync(folder).sort() : [];
  const where = `there is no ${join(packageRoot, 'build', 'Release', 'mmmamba.node')} and no binary in ${join(folder, platform)}`;
  if (shipped.length > 0 && !shipped.includes(platform)) return `${where}: prebuilt binaries exist for ${shipped.join(', ')}\n  → compile it here: ${compile}`;
  const others = binaries(packageRoot);
  if (others.length > 0) return `${where} for this C library: ${others.join(', ')} is for another\n  → compile it here: ${compile}`;
  return `${where}\n  → compile it here: ${compile}; in a bundle, copy the package's folder 'prebuilds' beside the bundle`;
}
