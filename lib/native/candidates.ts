import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ownFolder, packageRoot } from './root.js';

/** What prebuilt binaries are sorted by: Node's names of system and processor. */
export const platform = `${process.platform}-${process.arch}`;

/** The command that makes what is missing. */
export const compile = "npx mmmamba build (needs g++ 12 or newer, make and python3)";

/** Binaries of this platform in a `prebuilds` folder. Linux may hold one for glibc and one for musl: the wrong one does not load. */
function prebuilt(folder: string): string[] {
  const path = join(folder, 'prebuilds', platform);
  if (!existsSync(path)) return [];
  return readdirSync(path)
    .filter((name) => name.endsWith('.node'))
    .sort()
    .map((name) => join(path, name));
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
  return shipped.length > 0 && !shipped.includes(platform)
    ? `${where}: prebuilt binaries exist for ${shipped.join(', ')}\n  → compile it here: ${compile}`
    : `${where}\n  → compile it here: ${compile}; in a bundle, copy the package's folder 'prebuilds' beside the bundle`;
}
