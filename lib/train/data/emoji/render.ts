import { createHash } from 'node:crypto';
import { mkdir, open } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { writeFileAtomic } from '../../../io/atomic.js';
import { fileError } from '../../../io/fail.js';
import { MmError } from '../../../native/errors.js';
import { artists, readIconSet } from './artists.js';
import type { Artist, Drawing, IconSet } from './artists.js';
import type { EmojiSelection } from './names.js';

/**
 * All drawings of a selection as pixels. Image i is `pixels[i * size * size * 3 ...]`: u8, rows of RGB triples, on
 * white. The memory is shared, so that worker threads read it without a copy.
 */
export interface EmojiImages {
  /** height and width in pixels */
  size: number;
  pixels: Uint8Array<SharedArrayBuffer>;
  /** (images) index into `selection.names` */
  name: Int32Array;
  /** (images) index into `artists` */
  artist: Uint8Array;
  /** image indices of the artists that training may see, by artist, then name */
  train: Int32Array;
  /** image indices of the held-out artist, by name */
  test: Int32Array;
}

export interface RenderOptions {
  /**
   * Pixels a side, default 80: more than the 64 that the model sees, so that a rotated or enlarged image is sampled
   * from real detail. The un-augmented images pass through the same sampling.
   */
  size?: number;
  /** default `$XDG_CACHE_HOME/mmmamba` or `~/.cache/mmmamba` */
  cacheDir?: string;
  /** called while rendering, not when the cache serves */
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
  sets?: readonly IconSet[];
}

/** Where caches go if nobody says otherwise. */
export function defaultCacheDir(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'mmmamba');
}

/**
 * Renders every drawing of the selection, or reads them back from one cache file. The file carries a key (package and
 * renderer versions, size, names) and a checksum: one that is stale, truncated or damaged is rendered again.
 */
export async function loadEmojiImages(selection: EmojiSelection, options: RenderOptions = {}): Promise<EmojiImages> {
  const { size = 80, cacheDir = defaultCacheDir(), sets = artists.map(readIconSet) } = options;
  if (!Number.isInteger(size) || size < 8 || size > 512) {
    throw new MmError('ERR_ARGUMENT', `size: expected 8 to 512 pixels, got ${size}`);
  }
  const images = indexImages(selection, size);
  const key = cacheKey(selection, size, sets);
  const file = emojiCacheFile(selection, size, cacheDir);
  if (await readCache(file, key, images.pixels)) return images;
  await render(selection, images, sets, options);
  try {
    await mkdir(cacheDir, { recursive: true });
    await writeFileAtomic(file, [cacheHeader(key, images.pixels), images.pixels]);
  } catch (cause) {
    throw fileError('write the emoji cache', file, cause);
  }
  return images;
}

/** The cache file of a selection; one a size and held-out artist, so that old ones are replaced, not collected. */
export function emojiCacheFile(selection: EmojiSelection, size = 80, cacheDir = defaultCacheDir()): string {
  return join(cacheDir, `emoji-${selection.heldOut}-${size}.rgb`);
}

function indexImages(selection: EmojiSelection, size: number): EmojiImages {
  const name: number[] = [];
  const artist: number[] = [];
  const train: number[] = [];
  const test: number[] = [];
  artists.forEach((by, artistIndex) => {
    selection.names.forEach((entry, nameIndex) => {
      if (!entry.artists.includes(by)) return;
      (by === selection.heldOut ? test : train).push(name.length);
      name.push(nameIndex);
      artist.push(artistIndex);
    });
  });
  return {
    size,
    pixels: new Uint8Array(new SharedArrayBuffer(name.length * size * size * 3)),
    name: Int32Array.from(name),
    artist: Uint8Array.from(artist),
    train: Int32Array.from(train),
    test: Int32Array.from(test),
  };
}

async function render(
  selection: EmojiSelection,
  images: EmojiImages,
  sets: readonly IconSet[],
  { onProgress, signal }: RenderOptions,
): Promise<void> {
  const total = images.name.length;
  const bytes = images.size * images.size * 3;
  const drawings = new Map<Artist, ReadonlyMap<string, Drawing>>(sets.map((set) => [set.artist, set.drawings]));
  let next = 0;
  let done = 0;
  const work = async () => {
    while (next < total) {
      if (signal?.aborted) throw new MmError('ERR_ABORTED', 'rendering was stopped');
      const index = next++;
      const by = artists[images.artist[index]];
      const { icon } = selection.names[images.name[index]];
      let rgb: Uint8Array;
      try {
        rgb = await renderDrawing(drawings.get(by)!.get(icon)!, images.size);
      } catch (cause) {
        next = total;
        throw new MmError('ERR_IMAGE', `cannot render ${by}:${icon}: ${(cause as Error).message}`, { cause });
      }
      images.pixels.set(rgb, index * bytes);
      onProgress?.(++done, total);
    }
  };
  // As many in flight as libuv has threads: sharp works there.
  await Promise.all([work(), work(), work(), work()]);
}

/** One drawing as (size, size, 3) u8 RGB on white; a view box that is not square is centred. */
export async function renderDrawing(drawing: Drawing, size: number): Promise<Uint8Array> {
  const { body, left, top, width, height } = drawing;
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${size}" ` +
    `height="${size}" viewBox="${left} ${top} ${width} ${height}">${body}</svg>`;
  const { data, info } = await sharp(Buffer.from(svg))
    .flatten({ background: '#fff' })
    .toColourspace('srgb')
    .raw()
    .toBuffer({ resolveWithObject: true });
  if (info.width !== size || info.height !== size || info.channels !== 3) {
    throw new Error(`got ${info.width}x${info.height}x${info.channels}, expected ${size}x${size}x3`);
  }
  return data;
}

const magic = 'MMEMOJI1';
const headerBytes = magic.length + 32 + 32;

/** What the pixels depend on. */
function cacheKey(selection: EmojiSelection, size: number, sets: readonly IconSet[]): Buffer {
  const parts = {
    size,
    sets: sets.map((set) => [set.artist, set.version]),
    renderer: [sharp.versions.sharp, sharp.versions.rsvg, sharp.versions.vips],
    names: selection.names.map((name) => [name.icon, name.artists]),
  };
  return createHash('sha256').update(JSON.stringify(parts)).digest();
}

/** magic, key (32 bytes), SHA-256 of the pixels (32 bytes); the pixels follow. */
function cacheHeader(key: Buffer, pixels: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(magic), key, createHash('sha256').update(pixels).digest()]);
}

/** Fills `pixels` and returns true if the file is whole and has this key. */
async function readCache(file: string, key: Buffer, pixels: Uint8Array): Promise<boolean> {
  let handle;
  try {
    handle = await open(file);
  } catch {
    return false;
  }
  try {
    const header = Buffer.alloc(headerBytes);
    const { size } = await handle.stat();
    if (size !== headerBytes + pixels.byteLength) return false;
    await handle.read(header, 0, headerBytes, 0);
    for (let at = 0; at < pixels.byteLength; ) {
      const { bytesRead } = await handle.read(pixels, at, pixels.byteLength - at, headerBytes + at);
      if (bytesRead === 0) return false;
      at += bytesRead;
    }
    return header.equals(cacheHeader(key, pixels));
  } catch {
    return false;
  } finally {
    await handle.close();
  }
}
