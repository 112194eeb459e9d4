import test from 'ava';
import { WordTokenizer } from '../../lib/io/tokenizer/word.js';
import {
  EmojiBatches,
  EmojiLoader,
  EmojiQuestions,
  emojiCorpus,
  emojiTokens,
  evaluationSet,
  loadEmojiImages,
  promptBatches,
  selectEmoji,
} from '../../lib/train/data/emoji/index.js';
import type { Batch, BatchOptions, EmojiImages } from '../../lib/train/data/emoji/index.js';
import { Rng } from '../../lib/train/data/rng.js';
import { smallSelection, temporaryFolder } from './data-fixture.js';

const full = selectEmoji();
const selection = smallSelection(full);
const tokenizer = WordTokenizer.build(emojiCorpus(selection));
const tokens = emojiTokens(selection, tokenizer);
let images: EmojiImages;

test.before(async () => {
  images = await loadEmojiImages(selection, { cacheDir: temporaryFolder() });
});

const options = (more: Partial<BatchOptions> = {}): BatchOptions => ({
  selection,
  images,
  tokens,
  batchSize: 16,
  seed: 5,
  ...more,
});

const row = (batch: Batch, array: ArrayLike<number>, index: number) =>
  Array.from(array).slice(index * batch.length, (index + 1) * batch.length);

test('questions as words', (t) => {
  const questions = new EmojiQuestions(full);
  const apple = full.names.findIndex(({ icon }) => icon === 'red-apple');
  const rng = new Rng(1);
  const name = questions.buildSample(apple, 'name', rng);
  t.is(`${name.promptWords.join(' ')} ${name.answerWords.join(' ')}`, 'what is this ? red apple');
  const group = questions.buildSample(apple, 'group', rng);
  t.is(`${group.promptWords.join(' ')} ${group.answerWords.join(' ')}`, 'what group ? food drink');
  const yes = questions.yesNo(apple, apple);
  t.is(`${yes.promptWords.join(' ')} ${yes.answerWords.join(' ')}`, 'is there a red apple ? yes');
  t.throws(() => questions.name(1168), { code: 'ERR_ARGUMENT' });
});

test('negatives share the group, differ in name and are no twins; half of all are positive', (t) => {
  const questions = new EmojiQuestions(full);
  let yes = 0;
  full.names.forEach((name, index) => {
    for (let draw = 0; draw < 3; draw++) {
      const { asked, answerWords } = questions.buildSample(index, 'yesno', new Rng(9, index, draw));
      if (answerWords[0] === 'yes') {
        yes++;
        t.is(asked, index);
      } else {
        t.not(asked, index);
        t.is(full.names[asked].group, name.group);
        t.false(name.twins.includes(asked));
      }
    }
  });
  t.true(Math.abs(yes / (3 * 1168) - 0.5) < 0.03, String(yes));
});

test('a group of one has no negative', (t) => {
  const alone = { ...selection, names: [selection.names[0]] };
  t.throws(() => new EmojiQuestions(alone).negative(0, new Rng(1)), { code: 'ERR_CONFIG', message: /no negative/ });
});

test('layout of a batch', (t) => {
  const batches = new EmojiBatches(options());
  const batch = batches.batch(0);
  const items = batches.items(0);
  t.is(batch.size, 16);
  t.is(batch.length % 8, 0);
  t.is(batch.pixelValues.length, 16 * 3 * 64 * 64);
  t.deepEqual([...batch.imageFlags], new Array(16).fill(1));
  items.forEach((item, index) => {
    const words = ['<bos>', '<img>', ...new Array<string>(16).fill('<IMG_CONTEXT>'), '</img>', ...item.promptWords];
    const answer = [...item.answerWords, '<eos>'];
    const used = words.length + answer.length;
    const pads = (value: number) => new Array<number>(batch.length - used).fill(value);
    const ids = row(batch, batch.inputIds, index);
    t.is(tokenizer.decode(ids.slice(0, used)), [...words, ...answer].join(' '));
    t.deepEqual(ids.slice(used), pads(0));
    t.deepEqual(row(batch, batch.attentionMask, index), [...new Array<number>(used).fill(1), ...pads(0)]);
    t.deepEqual(row(batch, batch.positionIds, index), [...Array(used).keys(), ...pads(0)]);
    const labels = row(batch, batch.labels, index);
    t.deepEqual(labels, [
      ...new Array<number>(words.length).fill(-100),
      ...answer.map((word) => tokenizer.tokenId(word)!),
      ...pads(-100),
    ]);
    t.deepEqual(row(batch, batch.answerMask, index), labels.map((label) => (label === -100 ? 0 : 1)));
    t.is(item.name, images.name[item.image]);
  });
});

test('an epoch shows every training image once and no other; epochs differ in order', (t) => {
  const batches = new EmojiBatches(options({ batchSize: 7 }));
  const count = images.train.length;
  const seen: number[] = [];
  for (let step = 0; seen.length < 2 * count; step++) seen.push(...batches.items(step).map(({ image }) => image));
  const sorted = (list: number[]) => [...list].sort((a, b) => a - b);
  t.deepEqual(sorted(seen.slice(0, count)), sorted([...images.train]));
  t.deepEqual(sorted(seen.slice(count, 2 * count)), sorted([...images.train]));
  t.notDeepEqual(seen.slice(0, count), seen.slice(count, 2 * count));
  t.is(batches.stepsPerEpoch, count / 7);
});

test('a batch depends on options and step alone', (t) => {
  const batches = new EmojiBatches(options());
  const later = batches.batch(40);
  const first = batches.batch(0);
  t.deepEqual(new EmojiBatches(options()).batch(40), later);
  t.deepEqual(batches.batch(0), first);
  t.notDeepEqual(new EmojiBatches(options({ seed: 6 })).batch(0).pixelValues, first.pixelValues);
});

test('shares of kinds, un-augmented batches, sizes', (t) => {
  const only = new EmojiBatches(options({ kinds: { group: 2 } }));
  t.true(only.items(3).every(({ kind }) => kind === 'group'));
  const plain = new EmojiBatches(options({ augment: false }));
  t.deepEqual(plain.batch(2).pixelValues, plain.plain(plain.items(2)).pixelValues);
  const small = new EmojiBatches(options({ imageSize: 32, imageTokens: 4, lengthMultiple: 1 })).batch(0);
  t.is(small.pixelValues.length, 16 * 3 * 32 * 32);
  const longest = Math.max(...Array.from({ length: 16 }, (_, i) => row(small, small.attentionMask, i).indexOf(0)));
  t.true(longest < small.length);
});

test('wrong options are named', (t) => {
  const wrong = (more: Partial<BatchOptions>, message: RegExp) =>
    t.throws(() => new EmojiBatches(options(more)), { code: 'ERR_ARGUMENT', message });
  wrong({ batchSize: 0 }, /batchSize/);
  wrong({ seed: -1 }, /seed/);
  wrong({ kinds: {} }, /kinds/);
  wrong({ augment: { flip: 2 } }, /augment\.flip/);
  t.throws(() => new EmojiBatches(options()).batch(-1), { code: 'ERR_ARGUMENT', message: /step/ });
  const wordless = { ...tokens, words: new Map<string, number>() };
  t.throws(() => new EmojiBatches(options({ tokens: wordless })).batch(0), { message: /no id for the word/ });
});

test('evaluation: every held-out image, balanced yes and no, the same every time', (t) => {
  const set = evaluationSet(selection, images);
  t.deepEqual(evaluationSet(selection, images), set);
  t.deepEqual(set.name.map(({ image }) => image), [...images.test]);
  t.is(set.group.length, images.test.length);
  t.is(set.yesno.length, 2 * images.test.length);
  const yes = set.yesno.filter(({ answerWords }) => answerWords[0] === 'yes');
  const no = set.yesno.filter(({ answerWords }) => answerWords[0] === 'no');
  t.deepEqual(yes.map(({ image }) => image), [...images.test]);
  t.deepEqual(no.map(({ image }) => image), [...images.test]);
  t.true(no.every(({ asked, name }) => asked !== name && selection.names[asked].group === selection.names[name].group));
});

test('prompt batches hold one length each, without padding, labels or answers', (t) => {
  const { yesno } = evaluationSet(selection, images);
  const groups = promptBatches(yesno, 10);
  t.is(groups.flat().length, yesno.length);
  t.is(new Set(groups.flat()).size, yesno.length);
  const batches = new EmojiBatches(options());
  for (const group of groups) {
    t.true(group.length <= 10);
    const batch = batches.prompts(group);
    t.true(batch.attentionMask.every((value) => value === 1));
    t.true(batch.labels.every((value) => value === -100));
    t.is(tokenizer.decode([batch.inputIds[batch.length - 1]]), '?');
  }
  t.throws(() => promptBatches(yesno, 0), { code: 'ERR_ARGUMENT' });
});

test('the loader gives the batches of the same steps in order, and resumes exactly', async (t) => {
  const direct = new EmojiBatches(options());
  const loader = new EmojiLoader(options(), { ahead: 2 });
  // Several at once must not change the order.
  const first = await Promise.all([loader.next(), loader.next(), loader.next(), loader.next(), loader.next()]);
  await loader.close();
  first.forEach(({ step, batch }, i) => {
    t.is(step, i);
    t.deepEqual(batch, direct.batch(i));
  });
  await using several = new EmojiLoader(options(), { workers: 3, ahead: 1 });
  for (const one of first) t.deepEqual(await several.next(), one);
  await using resumed = new EmojiLoader(options(), { firstStep: 3 });
  t.deepEqual(await resumed.next(), first[3]);
  t.deepEqual(await resumed.next(), first[4]);
});

test('a closed loader rejects what waits and what comes', async (t) => {
  const loader = new EmojiLoader(options({ batchSize: 512 }));
  const waiting = t.throwsAsync(loader.next(), { code: 'ERR_ABORTED', message: /closed/ });
  await loader.close();
  await waiting;
  await t.throwsAsync(loader.next(), { code: 'ERR_ABORTED', message: /closed/ });
  await t.notThrowsAsync(loader.close());
});

test("the worker's error reaches the caller", async (t) => {
  const broken = { ...images, name: images.name.map(() => 9999) };
  await using loader = new EmojiLoader(options({ images: broken, augment: false }));
  await t.throwsAsync(loader.next(), { code: 'ERR_ARGUMENT', message: /loader failed: name index 9999/ });
  await t.throwsAsync(loader.next(), { code: 'ERR_ARGUMENT' });
});

test('wrong loader options throw at once', (t) => {
  t.throws(() => new EmojiLoader(options({ batchSize: 0 })), { code: 'ERR_ARGUMENT' });
  t.throws(() => new EmojiLoader(options(), { firstStep: 0.5 }), { code: 'ERR_ARGUMENT' });
  t.throws(() => new EmojiLoader(options(), { ahead: 0 }), { code: 'ERR_ARGUMENT' });
  t.throws(() => new EmojiLoader(options(), { workers: 0 }), { code: 'ERR_ARGUMENT' });
});
