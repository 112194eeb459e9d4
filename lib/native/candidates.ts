import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import { ownFolder, packageRoot } from './root.js';

/** What prebuilt binaries are sorted by: Node's names of system and processor. */
export const platform = `${process.platform}-${process.arch}`;

/** The command that makes what is missing. */
export const compile = "npx mmmamba build (needs g++ 12 or newer, make and python3)";

const { parseTags, matchTags, compareTags } = nodeGypBuild;

/** The .node files in a `prebuilds` folder for this system and processor. */
function binaries(folder: string): string[] {
  const path = join(folder, 'prebuilds', platform);
  return existsSync(path) ? readdirSync(path).filter((name) => name.endsWith('.node')) : [];
}

/** Those of them that node-gyp-build takes for this Node and C library, as their names say (glibc or musl), the best first. */
function prebuilt(folder: string): string[] {
  return binaries(folder)
    .sort()
    .map(parseTags)
    .filter(matchTags('node', process.versions.modules))
    .sort(compareTags('node'))
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
