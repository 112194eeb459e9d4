import type { SentencePieceProcessor } from '@agnai/sentencepiece-js';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { MmError } from '../../native/errors.js';
import { fileError, reasonOf } from '../fail.js';
import { isJsonObject } from '../json.js';
import { optionalString, readOptionalJsonObject, tokenContent } from './files.js';
import { PIECE_TYPE, readPieces, type Piece } from './model-proto.js';
import { checkedIds, splitter, type DecodeOptions, type EncodeOptions, type Segment, type SpecialToken, type Tokenizer } from './tokenizer.js';

/** The file's name in a model folder. */
export const SENTENCEPIECE_FILE = 'tokenizer.model';

/** The InternLM2 tokenizer adds none of its own; these apply where `tokenizer_config.json` is silent. */
const DEFAULT_TOKENS = { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>' } as const;

interface Settings {
  /** id → token added to the model's own, or put in place of one of its pieces */
  readonly added: ReadonlyMap<number, SpecialToken>;
  readonly addBos: boolean;
  readonly addEos: boolean;
  readonly chatTemplate: string | undefined;
  readonly names: { readonly bos?: string; readonly eos?: string; readonly unk?: string; readonly pad?: string };
}

/** Added tokens stand in `tokenizer_config.json` (id → token, newer) or in `added_tokens.json` (token → id, older). */
async function readSettings(folder: string): Promise<Settings> {
  const configPath = join(folder, 'tokenizer_config.json');
  const addedPath = join(folder, 'added_tokens.json');
  const config = await readOptionalJsonObject(configPath);
  const added = new Map<number, SpecialToken>();
  const add = (path: string, id: number, token: SpecialToken): void => {
    const problem = (text: string): MmError => new MmError('ERR_FILE_FORMAT', `${path}: the added token ${JSON.stringify(token.content)} ${text}`);
    if (!Number.isSafeInteger(id) || id < 0 || id > 0xffffff) throw problem(`has the id ${id}; an integer from 0 to ${0xffffff} is needed`);
    if (token.content === '') throw problem(`with id ${id} is empty`);
    const known = added.get(id);
    if (known !== undefined && known.content !== token.content) throw problem(`has the id ${id}, as has ${JSON.stringify(known.content)}`);
    if (known === undefined) added.set(id, token);
  };
  if (isJsonObject(config.added_tokens_decoder)) {
    for (const [id, token] of Object.entries(config.added_tokens_decoder)) {
      const content = tokenContent(token);
      if (content === undefined) throw new MmError('ERR_FILE_FORMAT', `${configPath}: added_tokens_decoder ${id} has no "content"`);
      const { lstrip, rstrip } = token as { lstrip?: unknown; rstrip?: unknown };
      add(configPath, Number(id), { content, lstrip: lstrip === true, rstrip: rstrip === true });
    }
  }
  for (const [content, id] of Object.entries(await readOptionalJsonObject(addedPath))) add(addedPath, Number(id), { content });
  return {
    added,
    addBos: config.add_bos_token !== false,
    addEos: config.add_eos_token === true,
    chatTemplate: optionalString(config.chat_template),
    names: {
      bos: tokenContent(config.bos_token) ?? DEFAULT_TOKENS.bos_token,
      eos: tokenContent(config.eos_token) ?? DEFAULT_TOKENS.eos_token,
      unk: tokenContent(config.unk_token) ?? DEFAULT_TOKENS.unk_token,
      pad: tokenContent(config.pad_token),
    },
  };
}

async function loadProcessor(path: string): Promise<{ pieces: Piece[]; processor: SentencePieceProcessor }> {
  const bad = (problem: string, cause?: unknown): MmError =>
    new MmError('ERR_FILE_FORMAT', `${path} is not a SentencePiece model: ${problem}`, { cause });
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw fileError('read', path, cause);
  }
  let pieces: Piece[];
  try {
    pieces = readPieces(bytes);
  } catch (cause) {
    throw bad(reasonOf(cause), cause);
  }
  // Loaded when first needed: it carries 700 kB of WebAssembly.
  const module = await import('@agnai/sentencepiece-js');
  const processor = new module.SentencePieceProcessor();
  let status: string;
  try {
    await processor.load(path);
    const result = processor.processor.status();
    status = result.ToString();
    result.delete();
  } catch (cause) {
    throw bad(reasonOf(cause), cause);
  }
  if (status !== 'OK') throw bad(status);
  return { pieces, processor };
}

/**
 * InternLM2's tokenizer: a SentencePiece `tokenizer.model` with added tokens (`<|im_start|>`, `<img>`, ...) from the JSON files
 * beside it. Text between special tokens is encoded by SentencePiece itself.
 */
export class SentencePieceTokenizer implements Tokenizer {
  readonly kind = 'sentencepiece';
  readonly vocabSize: number;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly padId: number | undefined;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly unkId: number | undefined;
  readonly chatTemplate: string | undefined;
  private readonly ids: ReadonlyMap<string, number>;
  private readonly specialById: ReadonlyMap<number, string>;
  private readonly split: (text: string) => Segment[];

  private constructor(
    private readonly processor: SentencePieceProcessor,
    pieces: readonly Piece[],
    private readonly settings: Settings,
  ) {
    const ids = new Map<string, number>();
    const special = new Map<number, SpecialToken>();
    pieces.forEach(({ text, type }, id) => {
      ids.set(text, id);
      if (type === PIECE_TYPE.control || type === PIECE_TYPE.unknown) special.set(id, { content: text });
    });
    let greatest = pieces.length - 1;
    for (const [id, token] of settings.added) {
      special.set(id, token);
      ids.set(token.content, id);
      greatest = Math.max(greatest, id);
    }
    this.vocabSize = greatest + 1;
    this.ids = ids;
    this.specialById = new Map([...special].map(([id, { content }]) => [id, content]));
    this.specialTokens = new Map([...special].map(([id, { content }]) => [content, id]));
    this.split = splitter(special.values());
    this.chatTemplate = settings.chatTemplate;
    const named = (name: string | undefined): number | undefined => (name === undefined ? undefined : ids.get(name));
    this.padId = named(settings.names.pad);
    this.bosId = named(settings.names.bos);
    this.eosId = named(settings.names.eos);
    this.unkId = named(settings.names.unk);
  }

  /**
   * @param folder with `tokenizer.model` and, if need be, `tokenizer_config.json` and `added_tokens.json`
   * @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT
   */
  static async load(folder: string): Promise<SentencePieceTokenizer> {
    const settings = await readSettings(folder);
    const { pieces, processor } = await loadProcessor(join(folder, SENTENCEPIECE_FILE));
    return new SentencePieceTokenizer(processor, pieces, settings);
  }

  tokenId(token: string): number | undefined {
    return this.ids.get(token);
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    if (options.addSpecialTokens && this.settings.addBos && this.bosId !== undefined) ids.push(this.bosId);
    for (const segment of this.split(text)) {
      if ('token' in segment) ids.push(this.specialTokens.get(segment.token)!);
      // Through UTF-8 once: a lone surrogate becomes U+FFFD here, before WebAssembly makes something else of it.
      else for (const id of this.processor.encodeIds(Buffer.from(segment.text, 'utf8').toString('utf8'))) ids.push(id);
    }
    if (options.addSpecialTokens && this.settings.addEos && this.eosId !== undefined) ids.push(this.eosId);
    return ids;
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    let text = '';
    let run: number[] = [];
    const flush = (): void => {
      if (run.length > 0) text += this.processor.decodeIds(run);
      run = [];
    };
    for (const id of checkedIds(ids, this.vocabSize)) {
      const special = this.specialById.get(id);
      if (special === undefined) {
        run.push(id);
        continue;
      }
      flush();
      if (!options.skipSpecialTokens) text += special;
    }
    flush();
    return text;
  }
}
