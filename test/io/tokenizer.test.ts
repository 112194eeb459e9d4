import test from 'ava';
import fc from 'fast-check';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { encodeChat, expandImages, INTERNVL_SYSTEM_MESSAGE, renderChat, stopIds } from '../../lib/io/tokenizer/chat.js';
import { HfTokenizer } from '../../lib/io/tokenizer/hf.js';
import { loadTokenizer } from '../../lib/io/tokenizer/load.js';
import { SentencePieceTokenizer } from '../../lib/io/tokenizer/sentencepiece.js';
import { WORD_VOCAB_FILE, WordTokenizer } from '../../lib/io/tokenizer/word.js';
import { fails, fixture, temporaryFolder } from './_helpers.js';

interface Case {
  text: string;
  ids: number[];
  idsWithSpecial?: number[];
  decoded: string;
}
const cases = async (kind: string): Promise<Case[]> => JSON.parse(await readFile(fixture(kind, 'cases.json'), 'utf8')) as Case[];

const CORPUS = ["Rolling on the Floor Laughing", 'man’s shoe', "woman's hat", 'the cat, the dog', 'ÉCLAIR', 'flag: 1st place'];

test('word: special tokens first, then words by count and code point', (t) => {
  const tokenizer = WordTokenizer.build(CORPUS);
  t.deepEqual([...tokenizer.specialTokens], [['<pad>', 0], ['<bos>', 1], ['<eos>', 2], ['<unk>', 3], ['<img>', 4], ['</img>', 5], ['<IMG_CONTEXT>', 6]]);
  t.deepEqual([tokenizer.padId, tokenizer.bosId, tokenizer.eosId, tokenizer.unkId], [0, 1, 2, 3]);
  t.is(tokenizer.tokenId('the'), 7);
  t.is(tokenizer.tokenId(','), 8);
  t.is(tokenizer.vocabSize, 7 + 17);
  t.deepEqual(WordTokenizer.build(CORPUS).encode('The cat'), tokenizer.encode('the   CAT'));
});

test('word: encodes and decodes', async (t) => {
  const tokenizer = WordTokenizer.build(CORPUS);
  const text = "The Dog,\tthe\nman’s  shoe woman's e\u0301clair";
  t.is(tokenizer.normalize(text), "the dog , the man’s shoe woman's éclair");
  t.is(tokenizer.decode(tokenizer.encode(text)), tokenizer.normalize(text));
  const ids = tokenizer.encode('<img><IMG_CONTEXT><IMG_CONTEXT></img>the zebra', { addSpecialTokens: true });
  t.deepEqual(ids, [1, 4, 6, 6, 5, 7, 3]);
  t.is(tokenizer.decode(ids), '<bos> <img> <IMG_CONTEXT> <IMG_CONTEXT> </img> the <unk>');
  t.is(tokenizer.decode(ids, { skipSpecialTokens: true }), 'the');
  t.true(tokenizer.encode('<img_context>').every((id) => id === tokenizer.unkId), 'special tokens keep their case');
  t.deepEqual(tokenizer.encode(''), []);
  t.is(tokenizer.decode([]), '');
  for (const id of [-1, tokenizer.vocabSize, 1.5, NaN]) await fails(t, () => tokenizer.decode([1, id]), 'ERR_ARGUMENT', /token 1 has the id .*; the vocabulary has ids 0 to 23/);
});

test('word: limits and extra tokens', async (t) => {
  t.is(WordTokenizer.build(CORPUS, { maxWords: 2 }).vocabSize, 9);
  t.is(WordTokenizer.build(CORPUS, { minCount: 2 }).vocabSize, 8);
  const chat = WordTokenizer.build(['<|im_start|>hi'], { extraSpecialTokens: ['<|im_start|>', '<|im_end|>'] });
  t.deepEqual(chat.encode('<|im_start|>Hi<|im_end|>'), [7, 9, 8]);
  await fails(t, () => WordTokenizer.build([], { extraSpecialTokens: ['<img>'] }), 'ERR_ARGUMENT', /"<img>" appears twice/);
  await fails(t, () => WordTokenizer.build([], { extraSpecialTokens: [''] }), 'ERR_ARGUMENT', /a token is empty/);
});

test('word: words named like inherited properties are words', (t) => {
  const tokenizer = WordTokenizer.build(['constructor toString hasOwnProperty']);
  t.is(tokenizer.decode(tokenizer.encode('constructor tostring')), 'constructor tostring');
  t.deepEqual(tokenizer.encode('valueOf'), [3]);
});

test('word: saves and loads', async (t) => {
  const path = join(await temporaryFolder(t), WORD_VOCAB_FILE);
  const tokenizer = WordTokenizer.build(CORPUS, { extraSpecialTokens: ['<sep>'] });
  await tokenizer.save(path);
  const back = await WordTokenizer.load(path);
  t.deepEqual(back.encode(CORPUS.join('<sep>')), tokenizer.encode(CORPUS.join('<sep>')));
  t.is(back.toJson(), tokenizer.toJson());
});

test('word: whatever was built can be loaded, and knows every word of its corpus', async (t) => {
  const path = join(await temporaryFolder(t), WORD_VOCAB_FILE);
  const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), fc.constantFrom('ΟΔΟΣ Σ', 'İ\u0323', "it's o''clock", '<img>x<pad>'));
  await fc.assert(
    fc.asyncProperty(fc.array(text, { maxLength: 5 }), async (corpus) => {
      const tokenizer = WordTokenizer.build(corpus);
      await writeFile(path, tokenizer.toJson());
      const back = await WordTokenizer.load(path);
      for (const line of corpus) t.is(back.decode(back.encode(line)), tokenizer.normalize(line));
    }),
    { numRuns: 300 },
  );
});

test('word: broken vocabularies', async (t) => {
  const path = join(await temporaryFolder(t), 'v.json');
  const good = JSON.parse(WordTokenizer.build(['a b']).toJson()) as Record<string, unknown>;
  const special = good.special as string[];
  const broken: [unknown, RegExp][] = [
    ['{"format": ', /v\.json is not JSON: line 1/],
    [[], /not a JSON object/],
    [{}, /"format" is undefined, "mmmamba-word-vocab" is needed/],
    [{ ...good, version: 2 }, /"version" is 2, this release reads 1/],
    [{ ...good, words: 'a' }, /must be lists of strings/],
    [{ ...good, words: [1] }, /must be lists of strings/],
    [{ ...good, words: ['a', 'a'] }, /"a" appears twice/],
    [{ ...good, words: [''] }, /a token is empty/],
    [{ ...good, words: ['Two'] }, /"Two" is not one lower-case word/],
    [{ ...good, words: ['two words'] }, /"two words" is not one/],
    [{ ...good, special: [...special].reverse() }, /the first special token is "<IMG_CONTEXT>", <pad> is needed/],
    [{ ...good, special: special.slice(0, -1) }, /special token <IMG_CONTEXT> is missing/],
    [{ ...good, special: [] }, /the first special token is undefined/],
  ];
  for (const [content, message] of broken) {
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
    await fails(t, WordTokenizer.load(path), 'ERR_FILE_FORMAT', message);
  }
  await fails(t, WordTokenizer.load(`${path}x`), 'ERR_FILE_IO', /ENOENT/);
});

test('sentencepiece: as the reference implementation', async (t) => {
  const tokenizer = await SentencePieceTokenizer.load(fixture('internlm2'));
  for (const { text, ids, decoded } of await cases('internlm2')) {
    t.deepEqual(tokenizer.encode(text), ids, text);
    t.is(tokenizer.decode(ids), decoded);
    t.deepEqual(tokenizer.encode(text, { addSpecialTokens: true }), [1, ...ids]);
  }
});

test('sentencepiece: added tokens', async (t) => {
  const tokenizer = await SentencePieceTokenizer.load(fixture('internlm2'));
  t.is(tokenizer.vocabSize, 483);
  t.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.unkId], [1, 2, 2, 0]);
  t.deepEqual(['<|im_end|>', '<|im_start|>', '<img>', '</img>', '<IMG_CONTEXT>'].map((token) => tokenizer.tokenId(token)), [478, 479, 480, 481, 482]);
  const text = '<|im_start|>user\nHello world!<img><IMG_CONTEXT></img><|im_end|></s>';
  const ids = tokenizer.encode(text);
  t.deepEqual(ids.filter((id) => id >= 478), [479, 480, 482, 481, 478]);
  t.is(ids.at(-1), 2);
  t.is(tokenizer.decode(ids), text);
  t.is(tokenizer.decode(ids, { skipSpecialTokens: true }), 'user\nHello world!');
  await fails(t, () => tokenizer.decode([483]), 'ERR_ARGUMENT', /id 483; the vocabulary has ids 0 to 482/);
  await fails(t, () => tokenizer.decode([-1]), 'ERR_ARGUMENT', /id -1/);
});

test('sentencepiece: awkward text', async (t) => {
  const tokenizer = await SentencePieceTokenizer.load(fixture('internlm2'));
  t.is(tokenizer.decode(tokenizer.encode('a\0b')), 'a\0b');
  t.is(tokenizer.decode(tokenizer.encode('x\ud800y')), 'x\ufffdy');
  const long = 'hello world '.repeat(5000);
  t.is(tokenizer.decode(tokenizer.encode(long)), long);
});

test('sentencepiece: added tokens of the older file, and none at all', async (t) => {
  const folder = await temporaryFolder(t);
  await copyFile(fixture('internlm2/tokenizer.model'), join(folder, 'tokenizer.model'));
  const bare = await loadTokenizer(folder);
  t.is(bare.vocabSize, 480);
  t.deepEqual([...bare.specialTokens.keys()], ['<unk>', '<s>', '</s>']);
  await writeFile(join(folder, 'added_tokens.json'), '{"<img>": 480, "<IMG_CONTEXT>": 481}');
  const added = await loadTokenizer(folder);
  t.is(added.vocabSize, 482);
  t.deepEqual(added.encode('<img>'), [480]);
});

test('sentencepiece: broken files', async (t) => {
  const folder = await temporaryFolder(t);
  const model = await readFile(fixture('internlm2/tokenizer.model'));
  const withModel = (content: Uint8Array) => writeFile(join(folder, 'tokenizer.model'), content);
  for (const content of [Buffer.alloc(0), Buffer.from('garbage'), model.subarray(0, model.length >> 1), Buffer.alloc(100, 0xff)]) {
    await withModel(content);
    await fails(t, SentencePieceTokenizer.load(folder), 'ERR_FILE_FORMAT', /tokenizer\.model is not a SentencePiece model: /);
  }
  await withModel(model);
  const broken: [string, RegExp][] = [
    ['{"a": -1}', /added_tokens\.json: the added token "a" has the id -1/],
    ['{"a": "many"}', /has the id NaN/],
    ['{"a": 1e9}', /has the id 1000000000/],
    ['{"": 5}', /"" with id 5 is empty/],
    ['{"a": 5, "b": 5}', /"b" has the id 5, as has "a"/],
    ['{"a": 5', /added_tokens\.json is not JSON/],
  ];
  for (const [content, message] of broken) {
    await writeFile(join(folder, 'added_tokens.json'), content);
    await fails(t, SentencePieceTokenizer.load(folder), 'ERR_FILE_FORMAT', message);
  }
  await writeFile(join(folder, 'added_tokens.json'), '{}');
  await writeFile(join(folder, 'tokenizer_config.json'), '{"added_tokens_decoder": {"7": {}}}');
  await fails(t, SentencePieceTokenizer.load(folder), 'ERR_FILE_FORMAT', /tokenizer_config\.json: added_tokens_decoder 7 has no "content"/);
});

test('hf: as the reference implementation', async (t) => {
  const tokenizer = await HfTokenizer.load(fixture('hf'));
  t.is(tokenizer.vocabSize, 420);
  t.deepEqual([tokenizer.padId, tokenizer.bosId, tokenizer.eosId, tokenizer.unkId], [0, 1, 2, undefined]);
  t.is(tokenizer.specialTokens.get('<IMG_CONTEXT>'), 5);
  t.is(tokenizer.tokenId('<img>'), 3);
  for (const { text, ids, idsWithSpecial, decoded } of await cases('hf')) {
    t.deepEqual(tokenizer.encode(text), ids, text);
    t.deepEqual(tokenizer.encode(text, { addSpecialTokens: true }), idsWithSpecial);
    t.is(tokenizer.decode(idsWithSpecial!, { skipSpecialTokens: true }), decoded);
  }
  await fails(t, () => tokenizer.decode([420]), 'ERR_ARGUMENT', /id 420/);
});

test('load: picks by the files that are there', async (t) => {
  t.is((await loadTokenizer(fixture('internlm2'))).kind, 'sentencepiece');
  t.is((await loadTokenizer(fixture('hf'))).kind, 'hf');
  const folder = await temporaryFolder(t);
  await fails(t, loadTokenizer(folder), 'ERR_FILE_IO', /holds no tokenizer: looked for word_vocab\.json, tokenizer\.json, tokenizer\.model; found an empty folder/);
  await mkdir(join(folder, 'sub'));
  await fails(t, loadTokenizer(folder), 'ERR_FILE_IO', /found sub$/);
  await fails(t, loadTokenizer(join(folder, 'none')), 'ERR_FILE_IO', /none.*ENOENT/);
  await writeFile(join(folder, 'tokenizer.json'), '{"version": "1.0"');
  await fails(t, loadTokenizer(folder), 'ERR_FILE_FORMAT', /tokenizer\.json is not JSON/);
  await writeFile(join(folder, 'tokenizer.json'), '{"version": "1.0"}');
  await fails(t, loadTokenizer(folder), 'ERR_FILE_FORMAT', /tokenizer\.json is not a tokenizer/);
  await WordTokenizer.build(['a']).save(join(folder, WORD_VOCAB_FILE));
  t.is((await loadTokenizer(folder)).kind, 'word');
});

test('chat: internlm2-chat', async (t) => {
  const turns = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello' },
    { role: 'user', content: 'Bye {{ not a template }}' },
  ] as const;
  t.is(
    renderChat(turns),
    `<|im_start|>system\n${INTERNVL_SYSTEM_MESSAGE}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\nHello<|im_end|>` +
      '<|im_start|>user\nBye {{ not a template }}<|im_end|><|im_start|>assistant\n',
  );
  t.is(renderChat([{ role: 'system', content: 'S' }, turns[0]], { addGenerationPrompt: false }), '<|im_start|>system\nS<|im_end|><|im_start|>user\nHi<|im_end|>');
  t.is(renderChat([turns[0]], { systemMessage: 'T' }).split('<|im_end|>')[0], '<|im_start|>system\nT');
  t.is(renderChat([turns[0]], { template: '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}' }), '<s>Hi</s>');
  await fails(t, () => renderChat([]), 'ERR_ARGUMENT', /at least one message/);
  await fails(t, () => renderChat([turns[0]], { template: '{% if %}' }), 'ERR_ARGUMENT', /template cannot be rendered/);
});

test('chat: images', async (t) => {
  t.is(expandImages('a <image> b <image>', [1, 2]), 'a <img><IMG_CONTEXT></img> b <img><IMG_CONTEXT><IMG_CONTEXT></img>');
  await fails(t, () => expandImages('a', [1]), 'ERR_ARGUMENT', /0 <image> for 1 images/);
  await fails(t, () => expandImages('<image><image>', [1]), 'ERR_ARGUMENT', /2 <image> for 1 images/);

  const tokenizer = await SentencePieceTokenizer.load(fixture('internlm2'));
  const ids = encodeChat(tokenizer, [{ role: 'user', content: 'What is shown?' }], { systemMessage: 'x', tokensPerImage: [3] });
  t.true(ids[0] === tokenizer.bosId);
  t.is(
    tokenizer.decode(ids.slice(1)),
    '<|im_start|>system\nx<|im_end|><|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat is shown?<|im_end|><|im_start|>assistant\n',
  );
  t.is(ids.filter((id) => id === tokenizer.tokenId('<IMG_CONTEXT>')).length, 3);
  t.deepEqual(stopIds(tokenizer), [2, 478, 479]);
  t.deepEqual(stopIds(WordTokenizer.build([])), [2]);

  const own = encodeChat(tokenizer, [{ role: 'user', content: 'x' }], { template: '{{ bos_token }}{{ messages[0].content }}' });
  t.is(own.filter((id) => id === tokenizer.bosId).length, 1, 'a template that writes the first token gets no second');
  for (const content of ['<IMG_CONTEXT>', 'x<|im_end|>', '</s>']) {
    await fails(t, () => encodeChat(tokenizer, [{ role: 'user', content }]), 'ERR_ARGUMENT', /message 0 contains the special token/);
  }
  await fails(t, () => encodeChat(tokenizer, [{ role: 'system', content: 'x' }], { tokensPerImage: [1] }), 'ERR_ARGUMENT', /needs a user message/);
});
