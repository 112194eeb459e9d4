import test, { type ExecutionContext } from 'ava';
import { execFile, fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { recoverFolder, writeFileAtomic, writeFolderAtomic, type Chunks } from '../../lib/io/atomic.js';
import { compiled, fails, temporaryFolder } from './_helpers.js';

const run = promisify(execFile);

test('writes text, bytes, pieces and asynchronous pieces; nothing else stays in the folder', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'f');
  async function* later(): AsyncGenerator<string | Uint8Array> {
    yield 'a';
    yield Uint8Array.of(0x62);
  }
  const contents: [Chunks, string][] = [['äb', 'äb'], [Buffer.from('x'), 'x'], [['1', Buffer.from('2'), ''], '12'], [later(), 'ab'], [[], '']];
  for (const [chunks, expected] of contents) {
    await writeFileAtomic(path, chunks);
    t.is(await readFile(path, 'utf8'), expected);
  }
  t.deepEqual(await readdir(folder), ['f']);
});

test('an error while the content is produced leaves the old file and no temporary', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'f');
  await writeFileAtomic(path, 'old');
  function* broken(): Generator<string> {
    yield 'new';
    throw new Error('the source broke');
  }
  await fails(t, writeFileAtomic(path, broken()), 'ERR_FILE_IO', /cannot write .*f: the source broke/);
  t.is(await readFile(path, 'utf8'), 'old');
  t.deepEqual(await readdir(folder), ['f']);
});

test('errors name the path and the cause', async (t) => {
  const folder = await temporaryFolder(t);
  await fails(t, writeFileAtomic(join(folder, 'no', 'f'), 'x'), 'ERR_FILE_IO', /no\/f.*ENOENT/);
  await mkdir(join(folder, 'taken', 'sub'), { recursive: true });
  await fails(t, writeFileAtomic(join(folder, 'taken'), 'x'), 'ERR_FILE_IO', /taken/);
  t.deepEqual(await readdir(folder), ['taken']);
});

test('many writers of one file: the last rename wins, always whole', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'f');
  await Promise.all(Array.from({ length: 20 }, (_, i) => writeFileAtomic(path, `${i}`.repeat(1000))));
  t.regex(await readFile(path, 'utf8'), /^(\d|1\d)\1{999}$/);
  t.deepEqual(await readdir(folder), ['f']);
});

/** A disk that is full after 1 MiB, by the limit on file size, which needs no privileges. */
async function underLimit(kind: string, path: string): Promise<string[]> {
  const script = `ulimit -f 1024; exec "$0" "$1" "$2" "$3"`;
  const { stdout } = await run('bash', ['-c', script, process.execPath, compiled('_limited_writer.js'), kind, path]);
  return stdout.split('\n');
}

test('a full disk: the old file stays, the temporary goes, the error names path and cause', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'weights');
  await writeFileAtomic(path, 'old');
  const [result] = await underLimit('file', path);
  t.regex(result, /^ERR_FILE_IO cannot write .*weights: EFBIG/);
  t.is(await readFile(path, 'utf8'), 'old');
  t.deepEqual(await readdir(folder), ['weights']);
});

test('a full disk: the old folder stays, no temporary stays', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'checkpoint');
  await writeFolderAtomic(path, [['small', 'old']]);
  const [result] = await underLimit('folder', path);
  t.regex(result, /^ERR_FILE_IO cannot write the folder .*checkpoint: EFBIG/);
  t.deepEqual(await readdir(folder), ['checkpoint']);
  t.is(await readFile(join(path, 'small'), 'utf8'), 'old');
});

test('a full disk: a line of metrics that does not fit is taken back, the next one fits', async (t) => {
  const path = join(await temporaryFolder(t), 'metrics.jsonl');
  await writeFile(path, '{"step":0}\n');
  const results = await underLimit('jsonl', path);
  t.regex(results[0], /^ERR_FILE_IO cannot append to .*metrics\.jsonl: EFBIG/);
  t.is(results[1], 'written');
  t.is(await readFile(path, 'utf8'), '{"step":0}\n{"small":1}\n');
});

async function contentOf(folder: string): Promise<Record<string, string>> {
  const names = await readdir(folder);
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name), 'utf8')])));
}

test('a folder is replaced whole; parents are made', async (t) => {
  const root = await temporaryFolder(t);
  const path = join(root, 'runs', 'a', 'checkpoint');
  await writeFolderAtomic(path, [['x', '1'], ['y', '2']]);
  await writeFolderAtomic(path, new Map([['z', ['3', '4']]]));
  t.deepEqual(await contentOf(path), { z: '34' });
  t.deepEqual(await readdir(join(root, 'runs', 'a')), ['checkpoint']);
  t.is(await recoverFolder(path), 'whole');
});

test('writes of one folder queue up', async (t) => {
  const root = await temporaryFolder(t);
  const path = join(root, 'c');
  await Promise.all(Array.from({ length: 8 }, (_, i) => writeFolderAtomic(path, [['a', `${i}`], ['b', `${i}`]])));
  t.deepEqual(await contentOf(path), { a: '7', b: '7' });
  t.deepEqual(await readdir(root), ['c']);
});

test('a failed write of a folder leaves the old one, and the next write goes through', async (t) => {
  const root = await temporaryFolder(t);
  const path = join(root, 'c');
  await writeFolderAtomic(path, [['a', 'old']]);
  for (const name of ['../escape', 'sub/a', '/abs', '..', '', 'a\0']) {
    await fails(t, writeFolderAtomic(path, [['a', 'new'], [name, 'x']]), 'ERR_ARGUMENT', /not a plain file name/);
  }
  await fails(t, writeFolderAtomic(path, [['a', 'new'], ['a', 'again']]), 'ERR_FILE_IO', /EEXIST/);
  t.deepEqual(await contentOf(path), { a: 'old' });
  t.deepEqual(await readdir(root), ['c']);
  await writeFolderAtomic(path, [['a', 'new']]);
  t.deepEqual(await contentOf(path), { a: 'new' });
});

test('a file or a link in the folder’s place is not replaced', async (t) => {
  const root = await temporaryFolder(t);
  await writeFile(join(root, 'c'), 'precious');
  await fails(t, writeFolderAtomic(join(root, 'c'), [['a', '1']]), 'ERR_FILE_IO', /exists and is not a folder/);
  await symlink(root, join(root, 'link'));
  await fails(t, writeFolderAtomic(join(root, 'link'), [['a', '1']]), 'ERR_FILE_IO', /exists and is not a folder/);
  t.is(await readFile(join(root, 'c'), 'utf8'), 'precious');
});

/** What a kill leaves at each instant of the swap: which of target, .new and .old are there, and what recovery makes of it. */
const instants: [string, { target?: string; next?: string; old?: string }, 'whole' | 'recovered' | 'absent', string | undefined][] = [
  ['before the swap', { target: 'old', next: 'new' }, 'whole', 'old'],
  ['between the two renames', { next: 'new', old: 'old' }, 'recovered', 'new'],
  ['after the swap', { target: 'new', old: 'old' }, 'whole', 'new'],
  ['during the very first write', { next: 'new' }, 'recovered', 'new'],
  ['with only the old one left', { old: 'old' }, 'recovered', 'old'],
  ['before anything', {}, 'absent', undefined],
];
for (const [name, { target, next, old }, verdict, content] of instants) {
  test(`recovery after a kill ${name}`, async (t) => {
    const root = await temporaryFolder(t);
    const path = join(root, 'c');
    const make = async (folder: string, text: string): Promise<void> => {
      await mkdir(folder);
      await writeFile(join(folder, 'a'), text);
    };
    if (target !== undefined) await make(path, target);
    if (next !== undefined) await make(join(root, '.c.new'), next);
    if (old !== undefined) await make(join(root, '.c.old'), old);
    t.is(await recoverFolder(path), verdict);
    if (content !== undefined) t.deepEqual(await contentOf(path), { a: content });
    await writeFolderAtomic(path, [['a', 'later']]);
    t.deepEqual(await contentOf(path), { a: 'later' });
    t.deepEqual(await readdir(root), ['c'], 'the next write leaves nothing lying about');
  });
}

test('leftovers of dead writers are removed, those of living and foreign ones stay', async (t) => {
  const root = await temporaryFolder(t);
  const host = hostname().replaceAll(/[^A-Za-z0-9_]/g, '_');
  const child = run(process.execPath, ['-e', '']);
  const dead = child.child.pid;
  await child;
  const stale = [`.c.tmp-${host}-${dead}.0-aa`, `.f.tmp-${host}-${dead}.0-bb`];
  const kept = [`.c.tmp-${host}-${process.ppid}.0-cc`, `.c.tmp-elsewhere-${dead}.0-dd`, `.c.tmp-${host}-notapid`, `.other.tmp-${host}-${dead}.0-ee`];
  for (const name of [...stale, ...kept]) await mkdir(join(root, name, 'inside'), { recursive: true });
  await writeFolderAtomic(join(root, 'c'), [['a', '1']]);
  await writeFileAtomic(join(root, 'f'), '1');
  t.deepEqual((await readdir(root)).sort(), [...kept, 'c', 'f'].sort());
});

test('a reader that recovers in the middle of a swap does not fail the writer', async (t) => {
  const root = await temporaryFolder(t);
  const path = join(root, 'c');
  await writeFolderAtomic(path, [['a', '0']]);
  let done = false;
  const reader = (async () => {
    while (!done) {
      t.not(await recoverFolder(path), 'absent');
      await sleep(0);
    }
  })();
  for (let i = 1; i <= 30; i++) await writeFolderAtomic(path, [['a', `${i}`]]);
  done = true;
  await reader;
  t.deepEqual(await contentOf(path), { a: '30' });
});

/** Kills a writer so long after its first checkpoint. @returns the last round that it reported as written */
async function killAfter(child: ChildProcess, milliseconds: number): Promise<number> {
  let reported = -1;
  child.on('message', (round: number) => (reported = round));
  await once(child, 'message');
  await sleep(milliseconds);
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
  return reported;
}

/** The one number that all files of a checkpoint bear, each being complete. */
async function wholeRound(t: ExecutionContext, path: string): Promise<number> {
  t.not(await recoverFolder(path), 'absent');
  const content = await contentOf(path);
  t.deepEqual(Object.keys(content).sort(), ['a', 'b', 'c']);
  const round = Number.parseInt(content.a, 10);
  for (const text of Object.values(content)) t.true(text === `${round}\n`.repeat(20_000), `a part of round ${round}`);
  return round;
}

test('kill -9 of a writer at any instant leaves a whole checkpoint', async (t) => {
  t.timeout(60_000);
  const root = await temporaryFolder(t);
  const path = join(root, 'checkpoint');
  let round = -1;
  for (let kill = 0; kill < 8; kill++) {
    const child = fork(compiled('_checkpoint_writer.js'), [path, String(round + 1)], { execArgv: [] });
    const reported = await killAfter(child, 5 + kill * 7);
    round = await wholeRound(t, path);
    t.true(round >= reported, `round ${reported} was reported as written, round ${round} is there`);
  }
  await writeFolderAtomic(path, [['a', 'end']]);
  t.deepEqual(await readdir(root), ['checkpoint']);
});
