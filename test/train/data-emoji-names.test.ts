import test from 'ava';
import { WordTokenizer } from '../../lib/io/tokenizer/word.js';
import { artists, emojiCorpus, emojiTokens, selectEmoji } from '../../lib/train/data/emoji/index.js';

const selection = selectEmoji();

test('1,168 names, drawn 5,703 times by the five artists of the training set', (t) => {
  t.is(selection.heldOut, 'fluent-emoji-flat');
  t.is(selection.names.length, 1168);
  const drawings = selection.names.reduce((sum, { artists }) => sum + artists.length, 0);
  t.is(drawings - 1168, 5703);
});

test('the selection is sorted, free of doubles and the same every time', (t) => {
  const icons = selection.names.map(({ icon }) => icon);
  t.deepEqual(icons, [...new Set(icons)].sort());
  t.is(new Set(selection.names.map(({ hexcode }) => hexcode)).size, 1168);
  t.deepEqual(selectEmoji(), selection);
});

test('no flags of countries, no skin tones, every name drawn by the held-out artist', (t) => {
  for (const { icon, artists } of selection.names) {
    t.notRegex(icon, /^flag|skin-tone/);
    t.true(artists.includes('fluent-emoji-flat') && artists.length >= 5, icon);
  }
});

test('names carry words, group, keywords and twins', (t) => {
  const find = (icon: string) => selection.names.find((name) => name.icon === icon)!;
  const apple = find('red-apple');
  t.deepEqual(apple.words, ['red', 'apple']);
  t.is(apple.hexcode, '1F34E');
  t.deepEqual(selection.groups[apple.group], ['food', 'drink']);
  t.is(apple.subgroup, 'food-fruit');
  t.true(apple.keywords.includes('fruit'));
  // These two do not match by label.
  t.is(find('hugging-face').hexcode, '1F917');
  t.is(find('keycap-asterisk').hexcode.replace('-FE0F', ''), '002A-20E3');
  t.deepEqual(
    find('man-biking').twins.map((twin) => selection.names[twin].icon),
    ['person-biking'],
  );
});

test('names that tell left from right, signs and clocks are not mirrored', (t) => {
  const mirrors = (icon: string) => selection.names.find((name) => name.icon === icon)!.mirrors;
  for (const icon of ['backhand-index-pointing-left', 'left-facing-fist', 'one-oclock', 'input-numbers']) {
    if (selection.names.some((name) => name.icon === icon)) t.false(mirrors(icon), icon);
  }
  t.true(mirrors('red-apple'));
});

for (const heldOut of artists) {
  test(`every name finds its emoji with ${heldOut} held out`, (t) => {
    const other = selectEmoji({ heldOut });
    t.true(other.names.length > 1000);
    t.deepEqual(other.unmatched, []);
    t.true(other.names.every(({ artists }) => artists.includes(heldOut)));
    t.false(other.groups.some((words) => words.includes('component')));
  });
}

test("an artist's extras that are no emoji are left out and listed", (t) => {
  const all = selectEmoji({ heldOut: 'openmoji', minArtists: 1 });
  t.true(all.unmatched.length > 0);
  t.false(all.names.some(({ icon }) => all.unmatched.includes(icon)));
});

test('unknown artist', (t) => {
  t.throws(() => selectEmoji({ heldOut: 'nobody' as never }), { code: 'ERR_ARGUMENT', message: /"nobody"/ });
});

test('the corpus gives a vocabulary of whole words', (t) => {
  const tokenizer = WordTokenizer.build(emojiCorpus(selection));
  const tokens = emojiTokens(selection, tokenizer);
  const special = tokenizer.vocabSize - tokens.words.size;
  t.is(special, tokenizer.specialTokens.size);
  for (const { words } of selection.names) t.deepEqual(tokenizer.encode(words.join(' ')), words.map((word) => tokens.words.get(word)));
  t.log(`${tokens.words.size} words and ${special} special tokens`);
});

test('a tokenizer that lacks a word is refused by name', (t) => {
  t.throws(() => emojiTokens(selection, WordTokenizer.build(['red apple'])), {
    code: 'ERR_CONFIG',
    message: /the word "what"/,
  });
});
