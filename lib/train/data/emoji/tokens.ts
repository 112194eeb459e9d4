import { IMAGE_CONTEXT, IMAGE_END, IMAGE_START } from '../../../io/tokenizer/tokenizer.js';
import type { Tokenizer } from '../../../io/tokenizer/tokenizer.js';
import { MmError } from '../../../native/errors.js';
import type { EmojiSelection } from './names.js';
import { emojiCorpus } from './questions.js';

/** The token ids that batches are written with; plain data, so that a worker thread needs no tokenizer. Padding is 0. */
export interface EmojiTokens {
  bos: number;
  eos: number;
  imageStart: number;
  imageEnd: number;
  imageContext: number;
  /** every word of `emojiCorpus` */
  words: ReadonlyMap<string, number>;
}

/**
 * Looks the task's words up in a tokenizer, e.g. `WordTokenizer.build(emojiCorpus(selection))`.
 * @throws MmError ERR_CONFIG naming what the tokenizer lacks
 */
export function emojiTokens(selection: EmojiSelection, tokenizer: Tokenizer): EmojiTokens {
  const needed = (id: number | undefined, what: string): number => {
    if (id === undefined) throw new MmError('ERR_CONFIG', `the tokenizer has no token for ${what}`);
    return id;
  };
  if (tokenizer.padId !== 0) {
    throw new MmError('ERR_CONFIG', `the tokenizer pads with ${tokenizer.padId}; batches are padded with 0`);
  }
  const words = new Set(emojiCorpus(selection).flatMap((line) => line.split(' ')));
  return {
    bos: needed(tokenizer.bosId, 'the beginning of a sequence'),
    eos: needed(tokenizer.eosId, 'the end of a sequence'),
    imageStart: needed(tokenizer.tokenId(IMAGE_START), IMAGE_START),
    imageEnd: needed(tokenizer.tokenId(IMAGE_END), IMAGE_END),
    imageContext: needed(tokenizer.tokenId(IMAGE_CONTEXT), IMAGE_CONTEXT),
    words: new Map([...words].map((word) => [word, needed(tokenizer.tokenId(word), `the word "${word}"`)])),
  };
}
