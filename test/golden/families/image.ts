import { join } from 'node:path';
import { decodeImage } from '../../../lib/io/images/decode.js';
import { cutTiles, preprocessImage } from '../../../lib/io/images/preprocess.js';
import { resizeBicubic, type RgbImage } from '../../../lib/io/images/resize.js';
import { tileLayout } from '../../../lib/io/images/tiling.js';
import type { Golden, Handler } from '../golden.js';

async function preprocess(g: Golden): Promise<void> {
  const size = g.number('image_size');
  const { shape, data } = g.stored('in.image_u8');
  const image: RgbImage = { width: shape[1]!, height: shape[0]!, data: data as Uint8Array };
  if (g.attrs['png'] !== undefined) {
    const decoded = await decodeImage(join(g.options.root, g.text('png')));
    g.exactly('decoded size', [decoded.width, decoded.height], [image.width, image.height]);
    if (Buffer.compare(decoded.data, image.data) !== 0) g.wrong(`the pixels decoded from ${g.text('png')} differ from in.image_u8`);
  }
  const tiling = { imageSize: size, maxNum: g.number('max_num'), minNum: g.number('min_num', 1) };
  const layout = tileLayout(image.width, image.height, tiling);
  g.exactly('cols, rows, thumbnail', [layout.cols, layout.rows, layout.thumbnail], [g.attrs['cols'], g.attrs['rows'], g.attrs['thumbnail']]);
  const resized = resizeBicubic(image, layout.cols * size, layout.rows * size);
  await g.judge('out.resized_u8', resized.data, { limit: 0 });
  const [mean, std] = ['mean', 'std'].map((name) => g.attrs[name] as [number, number, number]);
  const { pixelValues, tiles } = preprocessImage(image, { ...tiling, ...(mean && { mean }), ...(std && { std }) });
  g.exactly('tiles', tiles, g.attrs['num_tiles']);
  await g.judge('out.pixel_values', pixelValues, { limit: 1e-6 });
  await g.judge('out.tiles_u8', cutTiles(image, layout), { limit: 0 });
}

interface TilingTable {
  image_size: number;
  min_num?: number;
  rows: ({ width: number; height: number } & Record<string, unknown>)[];
}
type Layout = Record<'cols' | 'rows' | 'tiles' | 'total', number> & { thumbnail: boolean };

async function tiling(g: Golden): Promise<void> {
  const table = (await g.json()) as TilingTable;
  for (const row of table.rows)
    for (const [key, expected] of Object.entries(row)) {
      const maxNum = Number(/^max(\d+)$/.exec(key)?.[1] ?? NaN);
      if (Number.isNaN(maxNum)) continue;
      const options = { imageSize: table.image_size, minNum: table.min_num ?? 1, maxNum };
      const { cols, rows, tiles, thumbnail, total } = tileLayout(row.width, row.height, options);
      const { cols: c, rows: r, tiles: n, thumbnail: th, total: all } = expected as Layout;
      g.exactly(`${row.width} x ${row.height}, ${key}`, [cols, rows, tiles, thumbnail, total], [c, r, n, th, all]);
    }
}

export const image: Record<string, Handler> = { image_preprocess: preprocess, dynamic_tiling: tiling };
