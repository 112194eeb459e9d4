import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { MmError } from '../../native/errors.js';
import { fileError } from '../fail.js';
import { HF_TOKENIZER_FILE, HfTokenizer } from './hf.js';
import { SENTENCEPIECE_FILE, SentencePieceTokenizer } from './sentencepiece.js';
import type { Tokenizer } from './tokenizer.js';
import { WORD_VOCAB_FILE, WordTokenizer } from './word.js';

/** In this order. A folder with both of the latter two holds the same tokenizer twice; tokenizer.json needs no WebAssembly. */
const KINDS: readonly (readonly [string, (folder: string) => Promise<Tokenizer>])[] = [
  [WORD_VOCAB_FILE, (folder) => WordTokenizer.load(join(folder, WORD_VOCAB_FILE))],
  [HF_TOKENIZER_FILE, (folder) => HfTokenizer.load(folder)],
  [SENTENCEPIECE_FILE, (folder) => SentencePieceTokenizer.load(folder)],
];

/**
 * The tokenizer of a model folder, by the files that are there: `word_vocab.json`, `tokenizer.json` or `tokenizer.model`.
 * @throws MmError ERR_FILE_IO where the folder holds none of them or cannot be read; ERR_FILE_FORMAT for a broken file
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  let present: string[];
  try {
    present = await readdir(folder);
  } catch (cause) {
    throw fileError('read the tokenizer folder', folder, cause);
  }
  for (const [file, load] of KINDS) if (present.includes(file)) return load(folder);
  const sought = KINDS.map(([file]) => file).join(', ');
  const shown = present.slice(0, 10).join(', ') + (present.length > 10 ? ', ...' : '');
  throw new MmError('ERR_FILE_IO', `${folder} holds no tokenizer: looked for ${sought}; found ${shown || 'an empty folder'}`);
}
