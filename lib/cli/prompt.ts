import { reasonOf } from '../io/fail.js';
import { decodeImage, DEFAULT_MAX_PIXELS } from '../io/images/decode.js';
import { preprocessImage } from '../io/images/preprocess.js';
import type { RgbImage } from '../io/images/resize.js';
import { encodeChat, stopIds } from '../io/tokenizer/chat.js';
import type { Tokenizer } from '../io/tokenizer/tokenizer.js';
import type { ModelConfig } from '../models/config.js';
import { batchOf, type Batch } from '../models/inputs.js';
import { MmError } from '../native/errors.js';

export interface Prompt {
  batch: Batch;
  stopTokens: number[];
}

/** A picture and a text as one row of tokens: in the layout of the emoji task, or as a chat where the vocabulary is not of words. */
export async function buildPrompt(config: ModelConfig, tokenizer: Tokenizer, text: string, image?: string): Promise<Prompt> {
  return tokenizer.kind === 'word' ? emojiPrompt(config, tokenizer, text, image) : chatPrompt(config, tokenizer, text, image);
}

async function emojiPrompt(config: ModelConfig, tokenizer: Tokenizer, text: string, image?: string): Promise<Prompt> {
  const { imageSize, patchSize } = config.vision;
  const id = (token: string): number => tokenizer.tokenId(token)!;
  const words = tokenizer.encode(text);
  const unknown = text.split(/\s+/).filter((word) => word !== '' && tokenizer.encode(word).includes(tokenizer.unkId!));
  if (unknown.length > 0)
    throw new MmError(
      'ERR_ARGUMENT',
      `the model's vocabulary lacks ${unknown.join(', ')}; it understands "what is this ?", "what group ?" and "is there a ... ?"`,
    );
  const head = [tokenizer.bosId!];
  const stopTokens = [tokenizer.eosId!, ...config.endTokens];
  if (image === undefined) return { batch: batchOf([[...head, ...words]]), stopTokens };
  const { pixelValues } = preprocessImage(await onWhite(image), { imageSize, maxNum: 1 });
  const context = new Array<number>((imageSize / patchSize) ** 2 / 4).fill(config.imageToken);
  return { batch: batchOf([[...head, id('<img>'), ...context, id('</img>'), ...words]], { pixelValues, imageFlags: [1] }), stopTokens };
}

/** The picture in the middle of a white square, as the emoji task's drawings are; transparent parts become white, too. */
async function onWhite(path: string): Promise<RgbImage> {
  const { width, height } = await decodeImage(path); // refuses what is no picture
  const { default: sharp } = await import('sharp');
  const side = Math.max(width, height);
  const bad = (problem: string, cause?: unknown): MmError => new MmError('ERR_IMAGE', `${path} cannot be put on a white square: ${problem}`, { cause });
  if (side * side > DEFAULT_MAX_PIXELS)
    throw bad(`${width} x ${height} pixels take a square of ${side} x ${side} = ${side * side} pixels, more than the limit of ${DEFAULT_MAX_PIXELS}`);
  const white = { r: 255, g: 255, b: 255, alpha: 1 };
  try {
    const { data, info } = await sharp(path, { failOn: 'error' }) // as decodeImage has it
      .resize(side, side, { fit: 'contain', background: white })
      .flatten({ background: white })
      .toColourspace('srgb')
      .raw()
      .toBuffer({ resolveWithObject: true });
    if (info.channels !== 3) throw bad(`it has ${info.channels} channels after conversion; 3 are needed`);
    return { width: side, height: side, data };
  } catch (cause) {
    if (cause instanceof MmError) throw cause;
    throw bad(reasonOf(cause).split('\n')[0]!, cause);
  }
}

async function chatPrompt(config: ModelConfig, tokenizer: Tokenizer, text: string, image?: string): Promise<Prompt> {
  const { imageSize, patchSize, pixelShuffle } = config.vision;
  const picture = image === undefined ? undefined : preprocessImage(await decodeImage(image), { imageSize });
  const perTile = (imageSize / patchSize) ** 2 / 4;
  const chat = (tokens: number): number[] => encodeChat(tokenizer, [{ role: 'user', content: text }], { tokensPerImage: picture ? [tokens] : [] });
  const ids = chat(perTile * (picture?.tiles ?? 0));
  const images = picture ? { pixelValues: picture.pixelValues, imageFlags: new Array<number>(picture.tiles).fill(1) } : {};
  const batch = batchOf([ids], images);
  // Behind the embedding layers four patches become one token; before them each patch is a token.
  if (picture && pixelShuffle === 'post') batch.patchIds = Int32Array.from(chat(4 * perTile * picture.tiles));
  return { batch, stopTokens: [...stopIds(tokenizer), ...config.endTokens] };
}
