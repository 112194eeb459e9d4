import { readFile } from 'node:fs/promises';
import type { Sharp, SharpOptions } from 'sharp';
import { MmError } from '../../native/errors.js';
import { fileError, reasonOf, systemCode } from '../fail.js';
import type { RgbImage } from './resize.js';

export interface DecodeOptions {
  /** Images of more pixels are refused before they are decoded. Default 89,478,485, where Pillow begins to warn. */
  readonly maxPixels?: number;
}

export const DEFAULT_MAX_PIXELS = 89_478_485;

/** What sharp may decode here. It knows vector formats too, which would let a file draw, and which Pillow refuses. */
const FORMATS: ReadonlySet<string> = new Set(['jpeg', 'png', 'webp', 'gif', 'tiff', 'heif']);

type MakeSharp = (input: Uint8Array, options: SharpOptions) => Sharp;

/** sharp is loaded when the first image is decoded: whoever uses no images need not have it. */
async function loadSharp(): Promise<MakeSharp> {
  try {
    return (await import('sharp')).default;
  } catch (cause) {
    const absent = systemCode(cause) === 'ERR_MODULE_NOT_FOUND';
    const problem = absent ? 'the package sharp is not installed' : `the package sharp cannot be loaded (${reasonOf(cause)})`;
    throw new MmError('ERR_IMAGE', `images cannot be decoded: ${problem}; run: npm install sharp`, { cause });
  }
}

/** Pillow's CMYK to RGB, which knows no ink: libvips would go through a colour profile. (n, 4) → (n, 3) */
function cmykToRgb(cmyk: Uint8Array): Uint8Array {
  const rgb = new Uint8Array((cmyk.length / 4) * 3);
  for (let i = 0, o = 0; i < cmyk.length; i += 4) {
    const white = 255 - cmyk[i + 3];
    for (let c = 0; c < 3; c++) {
      const product = cmyk[i + c] * white + 128; // ((p >> 8) + p) >> 8 = p / 255, rounded
      rgb[o++] = Math.max(0, white - (((product >> 8) + product) >> 8));
    }
  }
  return rgb;
}

/**
 * Decodes an image to 8-bit RGB as Pillow's `Image.open(...).convert('RGB')` does: alpha is dropped, not blended; palettes are
 * looked up; colour profiles and EXIF orientation are left alone; of an animation the first frame counts. Two differences: 16-bit
 * greyscale keeps its high byte, where Pillow clips everything above 255 to white; and transparent pixels of a GIF are black,
 * where Pillow shows the palette's colour, which libvips does not tell.
 * @param source a path, or the bytes of a JPEG, PNG, WebP, GIF, TIFF or AVIF file
 * @returns (height, width, 3) u8
 * @throws MmError ERR_FILE_IO where the file cannot be read; ERR_IMAGE where it is empty, truncated, no image, of too many pixels,
 *   or where sharp is not installed
 */
export async function decodeImage(source: string | Uint8Array, options: DecodeOptions = {}): Promise<RgbImage> {
  const { maxPixels = DEFAULT_MAX_PIXELS } = options;
  const name = typeof source === 'string' ? source : `an image of ${source.byteLength} bytes`;
  const bad = (problem: string, cause?: unknown): MmError => new MmError('ERR_IMAGE', `${name} cannot be decoded: ${problem}`, { cause });

  const sharp = await loadSharp();
  let bytes: Uint8Array;
  try {
    bytes = typeof source === 'string' ? await readFile(source) : source;
  } catch (cause) {
    throw fileError('read', name, cause);
  }
  if (bytes.byteLength === 0) throw bad('it is empty (0 bytes)');

  try {
    // The limit is checked here and not by sharp, whose message names no numbers. Only the header has been read so far.
    const { format, width, height, space } = await sharp(bytes, { limitInputPixels: false }).metadata();
    if (!FORMATS.has(format)) throw bad(`the format ${format} is not supported; JPEG, PNG, WebP, GIF, TIFF and AVIF are`);
    if (width * height > maxPixels) {
      throw bad(`${width} x ${height} = ${width * height} pixels, more than the limit of ${maxPixels} (option maxPixels)`);
    }
    const image = sharp(bytes, { limitInputPixels: maxPixels, failOn: 'error', ignoreIcc: true });
    const cmyk = space === 'cmyk';
    const raw = cmyk ? image.pipelineColourspace('cmyk').toColourspace('cmyk') : image.removeAlpha().toColourspace('srgb');
    const { data, info } = await raw.raw().toBuffer({ resolveWithObject: true });
    if (info.channels !== (cmyk ? 4 : 3)) throw bad(`it has ${info.channels} channels after conversion`);
    return { width: info.width, height: info.height, data: cmyk ? cmykToRgb(data) : data };
  } catch (cause) {
    if (cause instanceof MmError) throw cause;
    throw bad(reasonOf(cause).split('\n')[0], cause);
  }
}
