import test from 'ava';
import { existsSync } from 'node:fs';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { artists, emojiCacheFile, loadEmojiImages, renderDrawing, selectEmoji } from '../../lib/train/data/emoji/index.js';
import type { EmojiImages } from '../../lib/train/data/emoji/index.js';
import { smallSelection, temporaryFolder } from './data-fixture.js';

const selection = smallSelection(selectEmoji(), 4);

/** Loads with a progress count: 0 means that the cache served. */
async function load(cacheDir: string, size = 24): Promise<{ images: EmojiImages; rendered: number }> {
  let rendered = 0;
  const images = await loadEmojiImages(selection, { cacheDir, size, onProgress: () => rendered++ });
  return { images, rendered };
}

test('training never sees the held-out artist, the test set is all of it', async (t) => {
  const { images, rendered } = await load(temporaryFolder());
  const total = selection.names.reduce((sum, { artists }) => sum + artists.length, 0);
  t.is(rendered, total);
  t.is(images.pixels.length, total * 24 * 24 * 3);
  const heldOut = artists.indexOf('fluent-emoji-flat');
  t.true(images.train.every((image) => images.artist[image] !== heldOut));
  t.true(images.test.every((image) => images.artist[image] === heldOut));
  t.deepEqual([...images.test].map((image) => images.name[image]), [0, 1, 2, 3]);
  t.is(images.train.length + images.test.length, total);
});

test('a whole cache serves the same pixels', async (t) => {
  const cacheDir = temporaryFolder();
  const first = await load(cacheDir);
  const second = await load(cacheDir);
  t.is(second.rendered, 0);
  t.deepEqual(second.images, first.images);
});

test('a truncated, damaged, lengthened or stale cache is rebuilt', async (t) => {
  const cacheDir = temporaryFolder();
  const file = emojiCacheFile(selection, 24, cacheDir);
  const { images: first, rendered: total } = await load(cacheDir);
  const whole = await readFile(file);
  const damages: Record<string, () => Promise<void>> = {
    empty: () => writeFile(file, ''),
    'cut in the header': () => truncate(file, 20),
    'cut in the pixels': () => truncate(file, whole.length - 1),
    longer: () => writeFile(file, Buffer.concat([whole, Buffer.from([0])])),
    'one bit of the pixels': () => writeFile(file, flipped(whole, whole.length - 100)),
    'another key': () => writeFile(file, flipped(whole, 12)),
    'another format': () => writeFile(file, flipped(whole, 0)),
  };
  for (const [name, damage] of Object.entries(damages)) {
    await damage();
    const { images, rendered } = await load(cacheDir);
    t.is(rendered, total, name);
    t.deepEqual(images, first, name);
    t.deepEqual(await readFile(file), whole, name);
  }
});

test('another size is another cache', async (t) => {
  const cacheDir = temporaryFolder();
  await load(cacheDir);
  const { images, rendered } = await load(cacheDir, 16);
  t.true(rendered > 0);
  t.is(images.size, 16);
  t.true(existsSync(emojiCacheFile(selection, 24, cacheDir)));
});

test('drawings: transparent is white, colours are kept, an oblong view box is centred', async (t) => {
  const body = '<rect width="10" height="20" fill="#ff0000"/>';
  const rgb = await renderDrawing({ body, left: 0, top: 0, width: 10, height: 20 }, 16);
  const at = (x: number, y: number) => [...rgb.subarray((y * 16 + x) * 3, (y * 16 + x) * 3 + 3)];
  t.is(rgb.length, 16 * 16 * 3);
  t.deepEqual(at(1, 8), [255, 255, 255]);
  t.deepEqual(at(8, 8), [255, 0, 0]);
  t.deepEqual(at(14, 8), [255, 255, 255]);
});

test('a drawing that cannot be rendered is named', async (t) => {
  const sets = artists.map((artist) => ({
    artist,
    version: '0',
    drawings: new Map(
      selection.names.map(({ icon }) => [icon, { body: '<broken', left: 0, top: 0, width: 9, height: 9 }]),
    ),
  }));
  await t.throwsAsync(loadEmojiImages(selection, { cacheDir: temporaryFolder(), sets }), {
    code: 'ERR_IMAGE',
    message: /cannot render twemoji:/,
  });
});

test('rendering stops on a signal; sizes are checked', async (t) => {
  const cacheDir = temporaryFolder();
  await t.throwsAsync(loadEmojiImages(selection, { cacheDir, signal: AbortSignal.abort() }), { code: 'ERR_ABORTED' });
  t.false(existsSync(emojiCacheFile(selection, 80, cacheDir)));
  await t.throwsAsync(loadEmojiImages(selection, { cacheDir, size: 0 }), { code: 'ERR_ARGUMENT' });
});

function flipped(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] ^= 1;
  return copy;
}
