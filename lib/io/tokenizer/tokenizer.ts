import { MmError } from '../../native/errors.js';

export interface EncodeOptions {
  /** Adds what the model expects round a text, usually the beginning-of-sequence token. Default false. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leaves special tokens out of the text. Default false. */
  readonly skipSpecialTokens?: boolean;
}

/** Text to token ids and back. */
export interface Tokenizer {
  readonly kind: 'word' | 'sentencepiece' | 'hf';
  /** One more than the greatest id: the rows that an embedding needs. */
  readonly vocabSize: number;
  /** Tokens that stand for themselves, e.g. `<img>` → its id. A text that contains one is split there. */
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly padId: number | undefined;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly unkId: number | undefined;
  /** The Jinja chat template that came with the tokenizer, if one did. */
  readonly chatTemplate: string | undefined;
  /** The id of a token by its exact text, or undefined. */
  tokenId(token: string): number | undefined;
  encode(text: string, options?: EncodeOptions): number[];
  /** @throws MmError ERR_ARGUMENT for an id outside 0..vocabSize-1 */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
}

/** The tokens round and in place of an image; every vocabulary that sees images has them. */
export const IMAGE_START = '<img>';
export const IMAGE_END = '</img>';
export const IMAGE_CONTEXT = '<IMG_CONTEXT>';

/** A piece of text, or a special token. */
export type Segment = { readonly text: string } | { readonly token: string };

/** A special token with what it swallows of the white space beside it. */
export interface SpecialToken {
  readonly content: string;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
}

/** Splits a text at special tokens, the longest first where one begins another. Empty pieces are left out. */
export function splitter(tokens: Iterable<SpecialToken>): (text: string) => Segment[] {
  const byContent = new Map([...tokens].map((token) => [token.content, token]));
  const literals = [...byContent.keys()].filter((content) => content !== '').sort((a, b) => b.length - a.length);
  if (literals.length === 0) return (text) => (text === '' ? [] : [{ text }]);
  const pattern = new RegExp(`(${literals.map((literal) => literal.replaceAll(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|')})`);
  return (text) => {
    // split() with a capture group: text at even places, tokens at odd ones.
    const parts = text.split(pattern);
    for (let i = 1; i < parts.length; i += 2) {
      const token = byContent.get(parts[i])!;
      if (token.lstrip) parts[i - 1] = parts[i - 1].trimEnd();
      if (token.rstrip) parts[i + 1] = parts[i + 1].trimStart();
    }
    const segments = parts.map((part, i): Segment => (i % 2 === 1 ? { token: part } : { text: part }));
    return segments.filter((segment) => !('text' in segment) || segment.text !== '');
  };
}

/** Ids as an array, each checked. */
export function checkedIds(ids: Iterable<number>, vocabSize: number): number[] {
  const list = [...ids];
  for (const [i, id] of list.entries()) {
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw new MmError('ERR_ARGUMENT', `token ${i} has the id ${id}; the vocabulary has ids 0 to ${vocabSize - 1}`);
    }
  }
  return list;
}
