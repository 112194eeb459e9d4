import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { MmError } from '../../../native/errors.js';

/** The six icon sets, each the work of one artist or studio, as iconify packages them (`@iconify-json/<artist>`). */
export const artists = ['twemoji', 'noto', 'openmoji', 'emojione', 'noto-v1', 'fluent-emoji-flat'] as const;
export type Artist = (typeof artists)[number];

/** One drawing: the inside of an `<svg>` element and its view box. */
export interface Drawing {
  body: string;
  left: number;
  top: number;
  width: number;
  height: number;
}

export interface IconSet {
  artist: Artist;
  version: string;
  drawings: ReadonlyMap<string, Drawing>;
}

const require = createRequire(import.meta.url);

/**
 * Reads a JSON file out of an installed package. The sets are development dependencies: somebody who installed only
 * the library is told which package is missing.
 */
export function readPackageJson<T>(packageName: string, file: string): T {
  let path: string;
  try {
    path = require.resolve(`${packageName}/${file}`);
  } catch (cause) {
    throw new MmError('ERR_CONFIG', `the emoji task needs the package ${packageName}: npm install ${packageName}`, {
      cause,
    });
  }
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as T;
  } catch (cause) {
    throw new MmError('ERR_FILE_FORMAT', `${path} is not readable JSON: ${(cause as Error).message}`, { cause });
  }
}

/** The version of an installed package. */
export function packageVersion(packageName: string): string {
  return readPackageJson<{ version: string }>(packageName, 'package.json').version;
}

interface IconifyJson {
  left?: number;
  top?: number;
  width?: number;
  height?: number;
  icons: Record<string, { body: string; left?: number; top?: number; width?: number; height?: number }>;
}

/**
 * The drawings of one artist. Aliases are left out: an alias is an older or shorter name of a drawing that is listed
 * under its own name, so it would put one picture under two names.
 */
export function readIconSet(artist: Artist): IconSet {
  const json = readPackageJson<IconifyJson>(`@iconify-json/${artist}`, 'icons.json');
  const drawings = new Map<string, Drawing>();
  for (const [icon, own] of Object.entries(json.icons)) {
    drawings.set(icon, {
      body: own.body,
      left: own.left ?? json.left ?? 0,
      top: own.top ?? json.top ?? 0,
      width: own.width ?? json.width ?? 16,
      height: own.height ?? json.height ?? 16,
    });
  }
  return { artist, version: packageVersion(`@iconify-json/${artist}`), drawings };
}

/** Code points (upper case, `FE0F` removed, joined by `-`) of the icons of a set, or nothing where it lists none. */
export function readCodePoints(artist: Artist): ReadonlyMap<string, string> {
  const chars = readPackageJson<Record<string, string>>(`@iconify-json/${artist}`, 'chars.json');
  return new Map(Object.entries(chars).map(([hex, icon]) => [icon, plainHexcode(hex)]));
}

/** `FE0F` only asks for colour; sets write it or leave it out as they please. */
export function plainHexcode(hexcode: string): string {
  return hexcode
    .toUpperCase()
    .split('-')
    .filter((point) => point !== 'FE0F')
    .join('-');
}
