import { MmError } from '../../native/errors.js';
import { writeFileAtomic } from '../atomic.js';
import { readJsonObject } from './files.js';
import {
  checkedIds,
  IMAGE_CONTEXT,
  IMAGE_END,
  IMAGE_START,
  splitter,
  type DecodeOptions,
  type EncodeOptions,
  type Segment,
  type Tokenizer,
} from './tokenizer.js';

/** The file's name in a model folder. */
export const WORD_VOCAB_FILE = 'word_vocab.json';

const FORMAT = 'mmmamba-word-vocab';
const VERSION = 1;
const PAD = '<pad>';
const BOS = '<bos>';
const EOS = '<eos>';
const UNK = '<unk>';
/** In this order: the models take 0 for padding. */
const SPECIAL = [PAD, BOS, EOS, UNK, IMAGE_START, IMAGE_END, IMAGE_CONTEXT];

/** A word with its inner apostrophes, or one other character that is not white space. */
const WORD = /[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*|\S/gu;

/** Composed after lower-casing, which may decompose: a word must come out of its own spelling unchanged. */
const wordsOf = (text: string): string[] => text.toLowerCase().normalize('NFC').match(WORD) ?? [];

export interface BuildOptions {
  /** Most words kept, the frequent ones. Default: all. */
  readonly maxWords?: number;
  /** Words seen less often are left out. Default 1. */
  readonly minCount?: number;
  /** Special tokens beside the built-in ones, e.g. those of a chat template. */
  readonly extraSpecialTokens?: readonly string[];
}

/**
 * One id a word, for small vocabularies: lower-case words and single punctuation marks; what is not in the vocabulary becomes
 * `<unk>`. Ids: the special tokens (`<pad>` is 0), then the words. Decoding joins words by single spaces, so
 * `decode(encode(text)) === normalize(text)` where every word is known.
 */
export class WordTokenizer implements Tokenizer {
  readonly kind = 'word';
  readonly chatTemplate = undefined;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly padId: number;
  readonly bosId: number;
  readonly eosId: number;
  readonly unkId: number;
  private readonly tokens: readonly string[];
  private readonly ids: ReadonlyMap<string, number>;
  private readonly split: (text: string) => Segment[];

  private constructor(
    private readonly special: readonly string[],
    words: readonly string[],
  ) {
    this.tokens = [...special, ...words];
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
    this.specialTokens = new Map(special.map((token, id) => [token, id]));
    this.split = splitter(special.map((content) => ({ content })));
    [this.padId, this.bosId, this.eosId, this.unkId] = [PAD, BOS, EOS, UNK].map((token) => this.ids.get(token)!);
  }

  /**
   * A vocabulary of the words in `corpus`, frequent ones first, equal ones by code point: the same corpus gives the same ids.
   * @throws MmError ERR_ARGUMENT
   */
  static build(corpus: Iterable<string>, options: BuildOptions = {}): WordTokenizer {
    const { maxWords = Infinity, minCount = 1, extraSpecialTokens = [] } = options;
    const special = [...SPECIAL, ...extraSpecialTokens];
    const problem = problemWith(special, []);
    if (problem !== undefined) throw new MmError('ERR_ARGUMENT', `extraSpecialTokens: ${problem}`);
    const split = splitter(special.map((content) => ({ content })));
    const counts = new Map<string, number>();
    for (const text of corpus) {
      for (const segment of split(text)) {
        if (!('text' in segment)) continue;
        for (const word of wordsOf(segment.text)) counts.set(word, (counts.get(word) ?? 0) + 1);
      }
    }
    const words = [...counts].filter(([, count]) => count >= minCount).sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1));
    return new WordTokenizer(special, words.slice(0, maxWords).map(([word]) => word));
  }

  /** @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT */
  static async load(path: string): Promise<WordTokenizer> {
    const bad = (problem: string): MmError => new MmError('ERR_FILE_FORMAT', `${path} is not a word vocabulary: ${problem}`);
    const { format, version, special, words } = await readJsonObject(path);
    if (format !== FORMAT) throw bad(`"format" is ${JSON.stringify(format)}, "${FORMAT}" is needed`);
    if (version !== VERSION) throw bad(`"version" is ${JSON.stringify(version)}, this release reads ${VERSION}`);
    const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every((item) => typeof item === 'string');
    if (!isStrings(special) || !isStrings(words)) throw bad('"special" and "words" must be lists of strings');
    const problem = problemWith(special, words);
    if (problem !== undefined) throw bad(problem);
    return new WordTokenizer(special, words);
  }

  /** Atomic. @throws MmError ERR_FILE_IO */
  async save(path: string): Promise<void> {
    await writeFileAtomic(path, this.toJson());
  }

  /** The content of the vocabulary's file, for `writeFolderAtomic`. */
  toJson(): string {
    const words = this.tokens.slice(this.special.length);
    return `${JSON.stringify({ format: FORMAT, version: VERSION, special: this.special, words }, null, 1)}\n`;
  }

  get vocabSize(): number {
    return this.tokens.length;
  }

  tokenId(token: string): number | undefined {
    return this.ids.get(token);
  }

  /** The text as decoding would give it back: lower case, single spaces. Special tokens stay as they are. */
  normalize(text: string): string {
    return this.pieces(text).join(' ');
  }

  private pieces(text: string): string[] {
    return this.split(text).flatMap((segment) => ('token' in segment ? [segment.token] : wordsOf(segment.text)));
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const ids = this.pieces(text).map((piece) => this.ids.get(piece) ?? this.unkId);
    return options.addSpecialTokens ? [this.bosId, ...ids] : ids;
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const kept = checkedIds(ids, this.vocabSize).filter((id) => !options.skipSpecialTokens || id >= this.special.length);
    return kept.map((id) => this.tokens[id]).join(' ');
  }
}

/** What makes a vocabulary unusable, or undefined. */
function problemWith(special: readonly string[], words: readonly string[]): string | undefined {
  if (special[0] !== PAD) return `the first special token is ${JSON.stringify(special[0])}, ${PAD} is needed (the models take id 0 for padding)`;
  const missing = SPECIAL.find((token) => !special.includes(token));
  if (missing !== undefined) return `the special token ${missing} is missing`;
  const seen = new Set<string>();
  for (const token of [...special, ...words]) {
    if (token === '') return 'a token is empty';
    if (seen.has(token)) return `the token ${JSON.stringify(token)} appears twice`;
    seen.add(token);
  }
  const unreachable = words.find((word) => wordsOf(word).length !== 1 || wordsOf(word)[0] !== word);
  return unreachable === undefined ? undefined : `the word ${JSON.stringify(unreachable)} is not one lower-case word or punctuation mark`;
}
