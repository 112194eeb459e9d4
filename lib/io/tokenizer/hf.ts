import type { Tokenizer as JsonTokenizer } from '@huggingface/tokenizers';
import { join } from 'node:path';
import { MmError } from '../../native/errors.js';
import { reasonOf } from '../fail.js';
import { optionalString, readJsonObject, readOptionalJsonObject, tokenContent } from './files.js';
import { checkedIds, type DecodeOptions, type EncodeOptions, type Tokenizer } from './tokenizer.js';

/** The file's name in a model folder. */
export const HF_TOKENIZER_FILE = 'tokenizer.json';

/** A Hugging Face `tokenizer.json`, with `tokenizer_config.json` beside it where there is one. */
export class HfTokenizer implements Tokenizer {
  readonly kind = 'hf';
  readonly vocabSize: number;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly padId: number | undefined;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly unkId: number | undefined;
  readonly chatTemplate: string | undefined;

  private constructor(
    private readonly inner: JsonTokenizer,
    config: Record<string, unknown>,
  ) {
    let greatest = -1;
    for (const id of inner.get_vocab(true).values()) greatest = Math.max(greatest, id);
    this.vocabSize = greatest + 1;
    this.specialTokens = new Map([...inner.get_added_tokens_decoder()].map(([id, token]) => [token.content, id]));
    const named = (key: string): number | undefined => {
      const content = tokenContent(config[key]);
      return content === undefined ? undefined : inner.token_to_id(content);
    };
    this.padId = named('pad_token');
    this.bosId = named('bos_token');
    this.eosId = named('eos_token');
    this.unkId = named('unk_token');
    this.chatTemplate = optionalString(config.chat_template);
  }

  /**
   * @param folder with `tokenizer.json` and, if need be, `tokenizer_config.json`
   * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT
   */
  static async load(folder: string): Promise<HfTokenizer> {
    const path = join(folder, HF_TOKENIZER_FILE);
    const tokenizer = await readJsonObject(path);
    const config = await readOptionalJsonObject(join(folder, 'tokenizer_config.json'));
    const { Tokenizer } = await import('@huggingface/tokenizers');
    try {
      return new HfTokenizer(new Tokenizer(tokenizer, config), config);
    } catch (cause) {
      throw new MmError('ERR_FILE_FORMAT', `${path} is not a tokenizer that can be read: ${reasonOf(cause)}`, { cause });
    }
  }

  tokenId(token: string): number | undefined {
    return this.inner.token_to_id(token);
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    return this.inner.encode(text, { add_special_tokens: options.addSpecialTokens ?? false }).ids;
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const list = checkedIds(ids, this.vocabSize);
    // The library refuses an empty list.
    return list.length === 0 ? '' : this.inner.decode(list, { skip_special_tokens: options.skipSpecialTokens ?? false });
  }
}
