import test from 'ava';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readInternvlJsonl } from '../../lib/train/data/internvl.js';
import type { InternvlOptions, InternvlSample } from '../../lib/train/data/internvl.js';
import { temporaryFolder } from './data-fixture.js';

const folder = temporaryFolder();
const imageRoot = join(folder, 'images');
mkdirSync(join(imageRoot, 'sub'), { recursive: true });
writeFileSync(join(imageRoot, 'a.png'), '');
writeFileSync(join(imageRoot, 'sub', 'b.png'), '');
writeFileSync(join(folder, 'secret.png'), '');
symlinkSync(join(folder, 'secret.png'), join(imageRoot, 'link.png'));

const talk = (question: string, answer = 'a bear') => [
  { from: 'human', value: question },
  { from: 'gpt', value: answer },
];

let files = 0;
async function read(lines: unknown[], options: Partial<InternvlOptions> = {}): Promise<InternvlSample[]> {
  const file = join(folder, `${files++}.jsonl`);
  writeFileSync(file, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'));
  const samples: InternvlSample[] = [];
  for await (const sample of readInternvlJsonl(file, { imageRoot, ...options })) samples.push(sample);
  return samples;
}

test('text, one image, a list of images, several turns, a system turn', async (t) => {
  const samples = await read([
    { id: 7, conversations: talk('hello') },
    '',
    { id: 'x', image: 'a.png', width: 4, conversations: talk('<image>\nwhat is this ?') },
    {
      image: ['a.png', 'sub/b.png'],
      conversations: [{ from: 'system', value: 'be short' }, ...talk('<image> and <image>'), ...talk('why ?')],
    },
    { image: 'a.png', conversations: talk('no placeholder') },
  ]);
  t.deepEqual(samples[0], {
    id: '7',
    images: [],
    turns: [
      { from: 'human', text: 'hello' },
      { from: 'gpt', text: 'a bear' },
    ],
    line: 1,
  });
  t.like(samples[1], { id: 'x', images: [join(imageRoot, 'a.png')], line: 3 });
  t.deepEqual(samples[2].images, [join(imageRoot, 'a.png'), join(imageRoot, 'sub', 'b.png')]);
  t.deepEqual(samples[2].turns.map(({ from }) => from), ['system', 'human', 'gpt', 'human', 'gpt']);
  t.is(samples[2].id, undefined);
  t.is(samples[3].turns[0].text, '<image>\nno placeholder');
});

test('a byte order mark and Windows line ends do no harm', async (t) => {
  const line = JSON.stringify({ conversations: talk('hello') });
  const samples = await read([`\uFEFF${line}\r`, `${line}\r`]);
  t.is(samples.length, 2);
});

const broken: [string, unknown, RegExp][] = [
  ['not JSON', '{"id": 1', /a broken line/],
  ['not an object', '[1]', /JSON object/],
  ['id of a wrong type', { id: {}, conversations: talk('a') }, /id:/],
  ['no turns', { id: 1 }, /list of turns/],
  ['an empty list of turns', { conversations: [] }, /list of turns/],
  ['a turn without a value', { conversations: [{ from: 'human' }] }, /conversations\[0\]/],
  ['an unknown speaker', { conversations: [{ from: 'user', value: 'a' }] }, /"user"/],
  ['gpt first', { conversations: talk('a').reverse() }, /turn 1 is gpt/],
  ['no answer', { conversations: talk('a').slice(0, 1) }, /pairs/],
  ['an empty answer', { conversations: talk('a', ' ') }, /answer is empty/],
  ['a system turn late', { conversations: [...talk('a'), { from: 'system', value: 'b' }] }, /"system"/],
  ['image of a wrong type', { image: 3, conversations: talk('<image>') }, /image: expected/],
  ['more placeholders than images', { image: 'a.png', conversations: talk('<image><image>') }, /2 <image> .* 1 images/],
  ['a placeholder without an image', { conversations: talk('<image>') }, /1 <image> .* 0 images/],
  ['several images without placeholders', { image: ['a.png', 'a.png'], conversations: talk('a') }, /0 <image> .* 2/],
  ['a placeholder in an answer', { image: 'a.png', conversations: talk('<image>', '<image>') }, /outside a human/],
  ['a path that climbs', { image: '../secret.png', conversations: talk('<image>') }, /below the image root/],
  ['a path that climbs inside', { image: 'sub/../../secret.png', conversations: talk('<image>') }, /below the image/],
  ['a Windows path that climbs', { image: '..\\secret.png', conversations: talk('<image>') }, /below the image root/],
  ['a drive', { image: 'C:secret.png', conversations: talk('<image>') }, /below the image root/],
  ['an absolute path', { image: '/etc/passwd', conversations: talk('<image>') }, /below the image root/],
  ['the root itself', { image: '.', conversations: talk('<image>') }, /below the image root/],
];

for (const [name, line, message] of broken) {
  test(`broken: ${name}`, async (t) => {
    const error = await t.throwsAsync(read([{ conversations: talk('fine') }, line]), { code: 'ERR_FILE_FORMAT', message });
    t.regex(error!.message, /\d+\.jsonl:2: /);
  });
}

test('skipping goes on after a broken line and reports it', async (t) => {
  const skipped: string[] = [];
  const samples = await read(['{', { id: 1, conversations: talk('fine') }, 'null'], {
    onError: 'skip',
    onSkip: (error) => skipped.push(error.message),
  });
  t.deepEqual(samples.map(({ id }) => id), ['1']);
  t.is(skipped.length, 2);
  t.regex(skipped[0], /:1: /);
  t.regex(skipped[1], /:3: expected a JSON object/);
});

test('images are looked up on demand; a link may not lead out', async (t) => {
  const about = (image: string) => ({ image, conversations: talk('<image>') });
  t.is((await read([about('missing.png')])).length, 1);
  await t.throwsAsync(read([about('missing.png')], { checkImages: true }), { message: /:1: image: .*ENOENT/ });
  await t.throwsAsync(read([about('link.png')], { checkImages: true }), { message: /links out of the image root/ });
  t.is((await read([about('sub/b.png')], { checkImages: true })).length, 1);
});

test('a file that is not there, and a folder', async (t) => {
  const first = (file: string) => readInternvlJsonl(file, { imageRoot, onError: 'skip' }).next();
  await t.throwsAsync(first(join(folder, 'none.jsonl')), { code: 'ERR_FILE_IO', message: /none\.jsonl/ });
  await t.throwsAsync(first(imageRoot), { code: 'ERR_FILE_IO' });
});

test('leaving the loop early closes the file', async (t) => {
  const file = join(folder, 'early.jsonl');
  writeFileSync(file, `${JSON.stringify({ conversations: talk('a') })}\n`.repeat(100));
  for await (const sample of readInternvlJsonl(file, { imageRoot })) {
    t.is(sample.line, 1);
    break;
  }
});
