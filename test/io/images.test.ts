import test, { type ExecutionContext } from 'ava';
import sharp from 'sharp';
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { decodeImage } from '../../lib/io/images/decode.js';
import { cutTiles, preprocessImage } from '../../lib/io/images/preprocess.js';
import { resizeBicubic, type RgbImage } from '../../lib/io/images/resize.js';
import { tileLayout } from '../../lib/io/images/tiling.js';
import { readSafetensors, type RawTensor } from '../../lib/io/safetensors.js';
import { compiled, fails, fixture, golden, temporaryFolder } from './_helpers.js';

interface TableEntry {
  cols: number;
  rows: number;
  tiles: number;
  thumbnail: boolean;
  total: number;
}
interface Table {
  image_size: number;
  min_num: number;
  rows: { width: number; height: number; max12: TableEntry; max6: TableEntry }[];
}

const asImage = ({ shape, data }: RawTensor): RgbImage => ({ height: shape[0], width: shape[1], data });

/** Bytes must agree one by one; a deepEqual of a megabyte would print it. */
function sameBytes(t: ExecutionContext, actual: Uint8Array, expected: Uint8Array, what: string): void {
  t.is(actual.byteLength, expected.byteLength, `${what}: length`);
  t.is(actual.findIndex((byte, i) => byte !== expected[i]), -1, `${what}: first byte that differs`);
}

test('tiling: every row of the golden table', async (t) => {
  const table = JSON.parse(await readFile(golden('image/tiling_table.json'), 'utf8')) as Table;
  t.true(table.rows.length > 10);
  for (const { width, height, max12, max6 } of table.rows) {
    for (const [maxNum, expected] of [[12, max12], [6, max6]] as const) {
      const imageSize = table.image_size;
      t.deepEqual(tileLayout(width, height, { minNum: table.min_num, maxNum, imageSize }), { ...expected, imageSize }, `${width}x${height}, at most ${maxNum}`);
    }
  }
});

test('tiling: no thumbnail, fewest tiles, extreme shapes, arguments', async (t) => {
  t.deepEqual(tileLayout(896, 448, { thumbnail: false }), { cols: 2, rows: 1, tiles: 2, thumbnail: false, total: 2, imageSize: 448 });
  t.is(tileLayout(448, 448, { minNum: 2, maxNum: 4 }).tiles, 4);
  t.is(tileLayout(1, 100_000).rows, 12);
  t.is(tileLayout(100_000, 1).cols, 12);
  t.is(tileLayout(1, 1).total, 1);
  await fails(t, () => tileLayout(0, 5), 'ERR_ARGUMENT', /width is 0/);
  await fails(t, () => tileLayout(5, NaN), 'ERR_ARGUMENT', /height is NaN/);
  await fails(t, () => tileLayout(5, 5, { minNum: 3, maxNum: 2 }), 'ERR_ARGUMENT', /minNum is 3, more than maxNum 2/);
  await fails(t, () => tileLayout(5, 5, { imageSize: 1.5 }), 'ERR_ARGUMENT', /imageSize is 1.5/);
});

const CASES = [
  { name: 'rgb_100x170', imageSize: 28, maxNum: 5 },
  { name: 'rgba_90x64', imageSize: 20, maxNum: 4 },
  { name: 'rgb_up_40x50', imageSize: 28, maxNum: 2 },
  { name: 'single_tile_33x33', imageSize: 28, maxNum: 6 },
];

for (const { name, imageSize, maxNum } of CASES) {
  test(`golden image ${name}: decoded, resized, cut and normalised bit for bit`, async (t) => {
    const { tensors } = await readSafetensors(golden(`image/${name}.safetensors`));
    const image = await decodeImage(golden(`image/${name}.png`));
    const input = tensors.get('in.image_u8')!;
    t.deepEqual([image.height, image.width], [...input.shape].slice(0, 2));
    sameBytes(t, image.data, input.data, 'decoded');

    const { pixelValues, tiles, layout } = preprocessImage(image, { imageSize, maxNum });
    const resized = tensors.get('out.resized_u8')!;
    sameBytes(t, resizeBicubic(image, layout.cols * imageSize, layout.rows * imageSize).data, resized.data, 'resized');
    sameBytes(t, cutTiles(image, layout), tensors.get('out.tiles_u8')!.data, 'tiles');
    const expected = tensors.get('out.pixel_values')!;
    t.deepEqual([tiles, 3, imageSize, imageSize], [...expected.shape]);
    sameBytes(t, new Uint8Array(pixelValues.buffer), expected.data, 'pixel values');
  });
}

test('resize: harsh black and white noise to many sizes, as Pillow', async (t) => {
  const { tensors } = await readSafetensors(fixture('resize.safetensors'));
  const input = asImage(tensors.get('input')!);
  for (const [name, expected] of tensors) {
    if (name === 'input') continue;
    const { width, height, data } = asImage(expected);
    sameBytes(t, resizeBicubic(input, width, height).data, data, name);
  }
});

test('resize: arguments', async (t) => {
  const image = { width: 2, height: 2, data: new Uint8Array(12) };
  await fails(t, () => resizeBicubic(image, 0, 1), 'ERR_ARGUMENT', /width is 0/);
  await fails(t, () => resizeBicubic(image, 1, 1.5), 'ERR_ARGUMENT', /height is 1.5/);
  await fails(t, () => resizeBicubic({ ...image, width: 3 }, 1, 1), 'ERR_SHAPE', /3 x 2 needs 18 bytes, its data has 12/);
});

test('decode: colour models, depths, palettes, animations, EXIF, as Pillow', async (t) => {
  const { tensors } = await readSafetensors(fixture('images/expected.safetensors'));
  t.is(tensors.size, 23);
  for (const [name, expected] of tensors) {
    const fromPath = await decodeImage(fixture('images', name));
    t.deepEqual([fromPath.height, fromPath.width, 3], [...expected.shape], name);
    sameBytes(t, fromPath.data, expected.data, name);
    const fromBytes = await decodeImage(new Uint8Array(await readFile(fixture('images', name))));
    sameBytes(t, fromBytes.data, expected.data, `${name} from bytes`);
  }
});

test('decode: what is no image, or only a part of one', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'x.png');
  const refuse = async (content: string | Uint8Array, message: RegExp): Promise<void> => {
    await writeFile(path, content);
    await fails(t, decodeImage(path), 'ERR_IMAGE', message);
    await fails(t, decodeImage(Buffer.from(content)), 'ERR_IMAGE', /an image of \d+ bytes cannot be decoded/);
  };
  await refuse('', /x\.png cannot be decoded: it is empty \(0 bytes\)/);
  await refuse('hello, I am text', /x\.png cannot be decoded: .*unsupported image format/);
  await refuse(Buffer.alloc(5000), /unsupported image format/);
  await refuse('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', /format svg is not supported/);
  await fails(t, decodeImage(join(folder, 'none.png')), 'ERR_FILE_IO', /none\.png.*ENOENT/);
  await fails(t, decodeImage(folder), 'ERR_FILE_IO', /EISDIR/);
  for (const name of ['rgb.png', 'rgb_444.jpg', 'lossless.webp', 'rgb.gif', 'cmyk.jpg', 'rgb.tif', 'rgb16.png']) {
    const whole = await readFile(fixture('images', name));
    for (const share of [0.05, 0.3, 0.6, 0.9]) {
      const part = whole.subarray(0, Math.floor(whole.length * share));
      await fails(t, decodeImage(part), 'ERR_IMAGE', /cannot be decoded/);
    }
  }
});

test('decode: damaged bytes give an error or an image, never a crash', async (t) => {
  const names = ['rgb.png', 'rgb_420.jpg', 'lossy.webp', 'animated.gif', 'cmyk.tif'];
  let seed = 1;
  const random = (below: number): number => (seed = (seed * 48271) % 2147483647) % below;
  for (const name of names) {
    const whole = await readFile(fixture('images', name));
    for (let round = 0; round < 20; round++) {
      const damaged = Buffer.from(whole);
      for (let i = 0; i < 8; i++) damaged[random(damaged.length)] = random(256);
      const result = await decodeImage(damaged, { maxPixels: 1_000_000 }).catch((cause: unknown) => cause);
      const ok = result instanceof Error ? (result as Error & { code: string }).code === 'ERR_IMAGE' : (result as RgbImage).data.length > 0;
      t.true(ok, `${name}: ${String(result)}`);
    }
  }
});

test('decode: too many pixels are refused before they are decoded', async (t) => {
  // The file holds next to no pixels: a decoder that began would call it truncated.
  await fails(t, decodeImage(fixture('images/bomb.png')), 'ERR_IMAGE', /bomb\.png cannot be decoded: 50000 x 50000 = 2500000000 pixels, more than the limit of 89478485/);
  await fails(t, decodeImage(fixture('images/rgb.png'), { maxPixels: 743 }), 'ERR_IMAGE', /31 x 24 = 744 pixels, more than the limit of 743/);
  await t.notThrowsAsync(decodeImage(fixture('images/rgb.png'), { maxPixels: 744 }));
});

test('one pixel and one line of pixels become whole tiles', async (t) => {
  const color = [250, 20, 90];
  const filled = (width: number, height: number): Promise<Buffer> =>
    sharp({ create: { width, height, channels: 3, background: { r: color[0]!, g: color[1]!, b: color[2]! } } }).png().toBuffer();
  for (const [width, height, count] of [[1, 1, 1], [4000, 1, 6], [1, 4000, 6]] as const) {
    const image = await decodeImage(await filled(width, height));
    t.deepEqual([image.width, image.height], [width, height]);
    t.deepEqual([...image.data.subarray(0, 3)], color);
    const { pixelValues, layout } = preprocessImage(image, { imageSize: 28, maxNum: 6, mean: [0, 0, 0], std: [1, 1, 1] });
    t.is(layout.tiles, count);
    const channels = new Set(Array.from(pixelValues, (v) => Math.round(255 * v)));
    t.deepEqual([...channels], color, `${width} x ${height}`);
  }
});

test('decode: without sharp the error says how to install it', async (t) => {
  // A loader hook that knows no sharp, in a process of its own.
  const hook = `export async function resolve(s, c, next) {
    if (s === 'sharp') throw Object.assign(new Error("Cannot find package 'sharp'"), { code: 'ERR_MODULE_NOT_FOUND' });
    return next(s, c);
  }`;
  const source = `import { register } from 'node:module';
    register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hook)}));
    const { decodeImage } = await import(${JSON.stringify(compiled('../../lib/io/images/decode.js'))});
    await decodeImage(${JSON.stringify(fixture('images/rgb.png'))}).catch((e) => console.log(e.code, e.message));`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', source]);
  t.is(stdout.trim(), 'ERR_IMAGE images cannot be decoded: the package sharp is not installed; run: npm install sharp');
});

test('preprocess: own mean and deviation, arguments', async (t) => {
  const image = { width: 4, height: 4, data: new Uint8Array(48).fill(255) };
  const { pixelValues } = preprocessImage(image, { imageSize: 2, maxNum: 1, mean: [0, 0.5, 1], std: [1, 0.5, 2] });
  t.deepEqual([...pixelValues], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
  await fails(t, () => preprocessImage(image, { std: [1, 0, 1] }), 'ERR_ARGUMENT', /std is \[1, 0, 1\]/);
  await fails(t, () => preprocessImage(image, { mean: [NaN, 0, 1] }), 'ERR_ARGUMENT', /mean is \[NaN, 0, 1\]/);
});
