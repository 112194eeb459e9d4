import type { EmojiImages } from './data/emoji/index.js';

/** One drawing as a PNG data URI, for reports. */
export async function pictureUri(images: EmojiImages, index: number): Promise<string> {
  const { default: sharp } = await import('sharp');
  const { size, pixels } = images;
  const bytes = size * size * 3;
  const png = await sharp(Buffer.from(pixels.subarray(index * bytes, (index + 1) * bytes)), { raw: { width: size, height: size, channels: 3 } })
    .png({ palette: true })
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}
