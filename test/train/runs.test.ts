import { cpSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import sharp from 'sharp';
import { loadModel } from '../../lib/models/load.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import type { DistillConfig } from '../../lib/train/config.js';
import { distill } from '../../lib/train/distill.js';
import { silentProgress } from '../../lib/train/progress.js';
import { readTrainingState } from '../../lib/train/checkpoint.js';
import { trainTeacher } from '../../lib/train/teacher.js';
import { ended, type Ended } from '../core/support.js';
import { temporaryFolder } from './data-fixture.js';
import { loadTiny, tinyDistill, tinyTask, tinyTeacher } from './tiny.js';

const scratch = temporaryFolder();
let folders = 0;
/** A folder that is not there yet. */
const newFolder = (): string => join(scratch, `run-${folders++}`);

/** Runs a script with arguments. @param blocks limit on the size of files, in 1 KiB blocks: a disk that is full after that */
function child(args: string[], blocks?: number, script = fileURLToPath(new URL('./_run_child.js', import.meta.url))): Promise<Ended> {
  const [command, list]: [string, string[]] =
    blocks === undefined
      ? [process.execPath, [script, ...args]]
      : ['bash', ['-c', `ulimit -f ${blocks}; exec "$0" "$@"`, process.execPath, script, ...args]];
  return ended(command, list);
}

/** All that a run leaves, times taken out. */
function left(out: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const name of readdirSync(out, { recursive: true }) as string[]) {
    const path = join(out, name);
    if (!statSync(path).isFile()) continue;
    const text = readFileSync(path, 'latin1');
    files[name] = name.endsWith('.jsonl')
      ? text.replaceAll(/,"tokensPerSecond":[^,]+,"ms":[^}]+/g, '')
      : name.endsWith('training.json')
        ? text.replace(/"metricsBytes": \d+/, '')
        : text;
  }
  return files;
}

/** Names of what differs, rather than megabytes of it. */
function differences(a: Record<string, string>, b: Record<string, string>): string[] {
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((name) => a[name] !== b[name]);
}

let teacher = '';
let whole = '';

test.before(async (t) => {
  t.timeout(300_000);
  await loadTiny(); // draws the emoji before several processes want to
  teacher = newFolder();
  whole = newFolder();
  const ended = await child(['teacher', teacher, '-']);
  if (ended.code !== 0) throw new Error(ended.stderr);
});

test.serial('a teacher that is killed and resumed equals one that was not, bit for bit', async (t) => {
  t.timeout(300_000);
  const out = newFolder();
  // Killed before the first checkpoint, then between two, then stopped by Ctrl-C between two.
  t.is((await child(['teacher', out, '-', '--kill', '1'])).signal, 'SIGKILL');
  t.is((await child(['teacher', out, '-', '--resume', '--kill', '5'])).signal, 'SIGKILL');
  const state = await readTrainingState(join(out, 'last'));
  t.is(state?.step, 4);
  const stopped = await child(['teacher', out, '-', '--resume', '--interrupt', '1']);
  t.is(stopped.code, 130, stopped.stderr);
  t.regex(stopped.stderr, /stopped after update \d of 7/);
  const done = await child(['teacher', out, '-', '--resume']);
  t.is(done.code, 0, done.stderr);
  t.deepEqual(differences(left(out), left(teacher)), []);
});

test.serial('a distillation that is killed in every stage equals one that was not', async (t) => {
  t.timeout(300_000);
  const folder = join(teacher, 'model');
  const plain = await child(['distill', whole, folder]);
  t.is(plain.code, 0, plain.stderr);
  const out = newFolder();
  t.is((await child(['distill', out, folder, '--kill', '3'])).signal, 'SIGKILL');
  t.is((await child(['distill', out, folder, '--resume', '--kill', '4'])).signal, 'SIGKILL');
  t.is((await child(['distill', out, folder, '--resume', '--kill', '3'])).signal, 'SIGKILL');
  const done = await child(['distill', out, folder, '--resume']);
  t.is(done.code, 0, done.stderr);
  t.deepEqual(differences(left(out), left(whole)), []);
});

test.serial('stage 3 from the folder of a run equals that stage of the run', async (t) => {
  t.timeout(120_000);
  const folder = join(teacher, 'model');
  const run = { out: newFolder(), device: 'cpu', progress: silentProgress };
  const given = JSON.parse(readFileSync(join(whole, 'model', 'training.json'), 'utf8')) as { config: DistillConfig };
  const from = join(whole, 'stage2');
  await distill({ ...given.config, run: [3], from }, folder, run, tinyTask);
  t.deepEqual(differences(left(join(run.out, 'stage3')), left(join(whole, 'stage3'))), []);
  // Nothing is rounded to bf16 on the way into the finished model.
  t.deepEqual(readFileSync(join(whole, 'model', 'model.safetensors')), readFileSync(join(whole, 'stage3', 'model.safetensors')));
  const refused = (settings: Partial<DistillConfig>): Promise<unknown> =>
    distill({ ...given.config, ...settings }, folder, { ...run, out: newFolder() }, tinyTask);
  const { tensors } = memoryStats();
  await t.throwsAsync(refused({ from: folder }), { code: 'ERR_ARGUMENT', message: /has no Mamba-2 layer; a run begins with a student/ });
  await t.throwsAsync(refused({ from: join(whole, 'model') }), { code: 'ERR_ARGUMENT', message: /layer 1 of .* is softmax attention; stage 1 trains/ });
  t.is(memoryStats().tensors, tensors);
});

test.serial('a distillation goes on with the weights of its teacher alone, wherever they lie', async (t) => {
  t.timeout(120_000);
  const { config } = JSON.parse(readFileSync(join(whole, 'model', 'training.json'), 'utf8')) as { config: DistillConfig };
  const [moved, other, out, older] = [newFolder(), newFolder(), newFolder(), newFolder()];
  for (const folder of [moved, other]) cpSync(join(teacher, 'model'), folder, { recursive: true });
  const weights = readFileSync(join(other, 'model.safetensors'));
  writeFileSync(join(other, 'model.safetensors'), weights.fill(0, weights.length - 2));
  for (const folder of [out, older]) cpSync(whole, folder, { recursive: true });
  const resume = (from: string, folder: string): Promise<unknown> =>
    distill(config, from, { out: folder, device: 'cpu', resume: true, progress: silentProgress }, tinyTask);
  await t.throwsAsync(resume(other, out), { code: 'ERR_CONFIG', message: /begun with other settings.*: the digest of the teacher was "\w+" and is now "\w+"$/ });
  t.deepEqual(differences(left(out), left(whole)), []);
  await resume(moved, out);
  t.deepEqual(differences(left(out), left(whole)), []);
  // What earlier versions began says nothing of its teacher.
  const state = join(older, 'last', 'training.json');
  const { teacher: digest, ...rest } = JSON.parse(readFileSync(state, 'utf8')) as Record<string, unknown>;
  t.is(typeof digest, 'string');
  writeFileSync(state, JSON.stringify(rest));
  await t.notThrowsAsync(resume(moved, older));
});

test.serial('Ctrl-C leaves a valid checkpoint and the exit code 130', async (t) => {
  t.timeout(120_000);
  const out = newFolder();
  const ended = await child(['distill', out, join(teacher, 'model'), '--interrupt', '1']);
  t.is(ended.code, 130);
  t.regex(ended.stderr, /stopping after the step at hand/);
  const state = await readTrainingState(join(out, 'last'));
  t.is(state?.stage, 'stage 1');
  t.true(state!.step >= 1);
  const model = await loadModel(join(out, 'last'));
  t.is(model.blocks.length, 3);
  model.dispose();
});

test.serial('a full disk during a checkpoint leaves the one before, and the run can go on', async (t) => {
  t.timeout(300_000);
  const out = newFolder();
  t.is((await child(['teacher', out, '-', '--kill', '3'])).signal, 'SIGKILL');
  const before = left(join(out, 'last'));
  const full = await child(['teacher', out, '-', '--resume'], 64);
  t.is(full.code, 1, full.stderr);
  t.regex(full.stderr, /cannot write the folder .*EFBIG/);
  t.deepEqual(differences(left(join(out, 'last')), before), []);
  t.deepEqual(
    readdirSync(out).filter((name) => name.startsWith('.')),
    [],
  );
  const done = await child(['teacher', out, '-', '--resume']);
  t.is(done.code, 0, done.stderr);
  t.deepEqual(differences(left(out), left(teacher)), []);
});

test.serial('a kill while a checkpoint is written leaves a whole one, and the run can go on', async (t) => {
  t.timeout(300_000);
  // Before the new one is complete the old one counts; between the two renames of the swap, the new one.
  for (const [name, step] of [['.last.new', 2], ['last', 4]] as const) {
    const out = newFolder();
    t.is((await child(['teacher', out, '-', '--kill-renaming', name])).signal, 'SIGKILL');
    t.is(existsSync(join(out, 'last')), name === '.last.new');
    t.is((await readTrainingState(join(out, 'last')))?.step, step);
    const done = await child(['teacher', out, '-', '--resume']);
    t.is(done.code, 0, done.stderr);
    t.deepEqual(differences(left(out), left(teacher)), []);
  }
});

test.serial('a damaged checkpoint is named and left as it is', async (t) => {
  t.timeout(120_000);
  const cases: [string, number, RegExp][] = [
    ['model.safetensors', 1, /^mmmamba: \S*model\.safetensors\S* .*truncated: tensor [^\n]*\n$/m],
    ['training.safetensors', 1, /^mmmamba: \S*training\.safetensors\S* .*truncated: tensor [^\n]*\n$/m],
    ['training.json', 2, /^mmmamba: \S*training\.json:\d+:\d+: not JSON: [^\n]*\n$/m],
  ];
  for (const [name, exit, message] of cases) {
    const out = newFolder();
    cpSync(teacher, out, { recursive: true });
    writeFileSync(join(out, 'last', name), readFileSync(join(out, 'last', name)).subarray(0, -9));
    const before = left(out);
    const { code, stderr } = await child(['teacher', out, '-', '--resume']);
    t.is(code, exit, stderr);
    t.regex(stderr, message);
    t.deepEqual(differences(left(out), before), []);
  }
});

test.serial('no tensor is left behind; folders of a run are not mixed up', async (t) => {
  t.timeout(120_000);
  const { tensors } = memoryStats();
  const out = newFolder();
  const run = { out, device: 'cpu', progress: silentProgress };
  await trainTeacher(tinyTeacher({ steps: 2 }), run, tinyTask);
  t.is(memoryStats().tensors, tensors);
  const finished = left(out);
  await t.throwsAsync(trainTeacher(tinyTeacher({ steps: 2 }), run, tinyTask), { code: 'ERR_ARGUMENT', message: /not empty: give --resume/ });
  await t.throwsAsync(trainTeacher(tinyTeacher({ steps: 3 }), { ...run, resume: true }, tinyTask), {
    code: 'ERR_CONFIG',
    message: /optim\.steps was 2 and is now 3/,
  });
  await t.throwsAsync(distill(tinyDistill(), join(out, 'model'), { ...run, resume: true }, tinyTask), {
    code: 'ERR_ARGUMENT',
    message: /of kind teacher, not distill/,
  });
  t.deepEqual(differences(left(out), finished), []);
  const student = newFolder();
  await distill(tinyDistill({ steps: 1 }, { run: [1, 3], student: 'hybrid' }), join(out, 'model'), { ...run, out: student }, tinyTask);
  t.is(memoryStats().tensors, tensors);
  t.deepEqual(readdirSync(student).sort(), ['best', 'last', 'metrics.jsonl', 'model', 'stage1', 'stage3']);
  await t.throwsAsync(distill(tinyDistill(), join(student, 'model'), { ...run, out: newFolder() }, tinyTask), { message: /is a student itself/ });
  await t.throwsAsync(distill(tinyDistill({}, { student: [7] }), join(out, 'model'), { ...run, out: newFolder() }, tinyTask), {
    message: /layer 7 does not exist/,
  });
  t.is(memoryStats().tensors, tensors);
  const ended = await child(['distill', newFolder(), '/nowhere']);
  t.is(ended.code, 1);
  t.regex(ended.stderr, /cannot read \/nowhere\/config\.json/);
  t.true(existsSync(join(out, 'model', 'training-log.jsonl')));
});

test.serial('a trained model answers about a picture file', async (t) => {
  t.timeout(60_000);
  const picture = join(scratch, 'picture.png');
  await sharp({ create: { width: 50, height: 30, channels: 4, background: { r: 200, g: 30, b: 30, alpha: 0.5 } } })
    .png()
    .toFile(picture);
  const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
  const model = join(teacher, 'model');
  const ask = (prompt: string, image: string): Promise<Ended> =>
    child(['generate', '--model', model, '--image', image, '--prompt', prompt, '--max-tokens', '4', '--json'], undefined, main);
  const answered = await ask('what is this ?', picture);
  t.is(answered.code, 0, answered.stderr);
  const { text, ids, promptTokens } = JSON.parse(answered.stdout) as { text: string; ids: number[]; promptTokens: number };
  t.is(promptTokens, 1 + 1 + 4 + 1 + 4);
  t.true(ids.length <= 4 && (ids.length === 0 || text !== ''));
  const unknown = await ask('what is zebra ?', picture);
  t.is(unknown.code, 1);
  t.regex(unknown.stderr, /vocabulary lacks zebra/);
  const pixel = join(scratch, 'pixel.png');
  await sharp({ create: { width: 1, height: 1, channels: 3, background: 'red' } }).png().toFile(pixel);
  const fixture = (name: string): string => resolve('test/io/fixtures/images', name);
  const stray = join(scratch, 'stray.jpg'); // bytes between two segments, which a decoder passes over
  const jpeg = readFileSync(fixture('rgb_444.jpg'));
  writeFileSync(stray, Buffer.concat([jpeg.subarray(0, 20), Buffer.alloc(3), jpeg.subarray(20)]));
  for (const unusual of [pixel, stray, ...['rgb16.png', 'cmyk.jpg', 'animated.gif'].map(fixture)]) {
    const { code, stderr } = await ask('what is this ?', unusual);
    t.is(code, 0, `${unusual}: ${stderr}`);
  }
  const line = join(scratch, 'line.png');
  await sharp({ create: { width: 10_000, height: 1, channels: 3, background: 'red' } }).png().toFile(line);
  const refused: [string, RegExp][] = [
    [line, /^mmmamba: \S*line\.png cannot be put on a white square: 10000 x 1 pixels take [^\n]* = 100000000 pixels, more than the limit of [^\n]*\n$/],
    [join(model, 'config.json'), /^mmmamba: \S*config\.json cannot be decoded: [^\n]*\n$/],
    [fixture('bomb.png'), /^mmmamba: \S*bomb\.png cannot be decoded: 50000 x 50000 = 2500000000 pixels, more than the limit of [^\n]*\n$/],
  ];
  for (const [image, message] of refused) {
    const { code, stderr } = await ask('what is this ?', image);
    t.is(code, 1);
    t.regex(stderr, message);
  }
});
