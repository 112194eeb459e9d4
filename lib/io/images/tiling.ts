import { MmError } from '../../native/errors.js';

export interface TilingOptions {
  /** Fewest tiles, thumbnail not counted. Default 1. */
  readonly minNum?: number;
  /** Most tiles, thumbnail not counted. Default 12. */
  readonly maxNum?: number;
  /** Edge of a tile in pixels. Default 448. */
  readonly imageSize?: number;
  /** Whether an image of several tiles gets the whole image once more, small. Default true. */
  readonly thumbnail?: boolean;
}

/** How an image is cut: `cols` x `rows` = `tiles` tiles, row-major, then the thumbnail; `total` counts all. */
export interface TileLayout {
  readonly cols: number;
  readonly rows: number;
  readonly tiles: number;
  readonly thumbnail: boolean;
  readonly total: number;
  /** Edge of a tile in pixels. */
  readonly imageSize: number;
}

function positive(name: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 1) throw new MmError('ERR_ARGUMENT', `${name} is ${value}; an integer of at least 1 is needed`);
}

/**
 * InternVL's dynamic tiling: of all grids of minNum to maxNum tiles the one whose aspect ratio is nearest to the image's. Among
 * grids of equal ratio the larger one wins if the image covers more than half of its pixels.
 * @param width, height of the image in pixels
 * @throws MmError ERR_ARGUMENT
 */
export function tileLayout(width: number, height: number, options: TilingOptions = {}): TileLayout {
  const { minNum = 1, maxNum = 12, imageSize = 448, thumbnail = true } = options;
  for (const [name, value] of Object.entries({ width, height, minNum, maxNum, imageSize })) positive(name, value);
  if (minNum > maxNum) throw new MmError('ERR_ARGUMENT', `minNum is ${minNum}, more than maxNum ${maxNum}`);

  const aspect = width / height;
  let best = { cols: 1, rows: 1 };
  let bestDifference = Infinity;
  // By rising area, so that the rule for equal ratios always weighs a larger grid against a smaller one.
  for (let area = minNum; area <= maxNum; area++) {
    for (let cols = 1; cols <= area; cols++) {
      if (area % cols !== 0) continue;
      const rows = area / cols;
      const difference = Math.abs(aspect - cols / rows);
      const fillsHalf = width * height > 0.5 * imageSize * imageSize * area;
      if (difference < bestDifference || (difference === bestDifference && fillsHalf)) best = { cols, rows };
      bestDifference = Math.min(bestDifference, difference);
    }
  }
  const tiles = best.cols * best.rows;
  const withThumbnail = thumbnail && tiles > 1;
  return { ...best, tiles, thumbnail: withThumbnail, total: tiles + (withThumbnail ? 1 : 0), imageSize };
}
