import test from 'ava';
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { JsonlWriter, readJsonl, readJsonlAll, type JsonlRecord } from '../../lib/io/jsonl.js';
import { compiled, fails, temporaryFolder } from './_helpers.js';

test('appends whole lines that are there at once', async (t) => {
  const path = join(await temporaryFolder(t), 'm.jsonl');
  {
    using writer = new JsonlWriter(path);
    writer.write({ step: 1, loss: 0.5 });
    t.is(await readFile(path, 'utf8'), '{"step":1,"loss":0.5}\n');
    writer.write({ text: 'two\nlines 日本' });
  }
  const again = new JsonlWriter(path);
  again.write({ step: 3 });
  again.close();
  again.close();
  await fails(t, () => again.write({}), 'ERR_DISPOSED', /m\.jsonl was closed/);
  t.deepEqual((await readJsonlAll(path)).values, [{ step: 1, loss: 0.5 }, { text: 'two\nlines 日本' }, { step: 3 }]);
});

test('numbers that JSON lacks stay visible', async (t) => {
  const path = join(await temporaryFolder(t), 'm.jsonl');
  using writer = new JsonlWriter(path);
  writer.write({ loss: NaN, max: Infinity, nested: [-Infinity, 1] });
  t.is(await readFile(path, 'utf8'), '{"loss":"NaN","max":"Infinity","nested":["-Infinity",1]}\n');
  await fails(t, () => writer.write({ big: 1n }), 'ERR_ARGUMENT', /m\.jsonl is not JSON/);
});

test('what a killed writer left of a line is mended when the file is opened again', async (t) => {
  const path = join(await temporaryFolder(t), 'm.jsonl');
  const cases: [string, string][] = [
    ['{"a":1}\n{"b":', '{"a":1}\n'],
    ['{"a":1}\n{"b":2}', '{"a":1}\n{"b":2}\n'],
    ['{"a":', ''],
    ['', ''],
    ['{"a":1}\n', '{"a":1}\n'],
    [`{"a":1}\n{"long":"${'x'.repeat(200_000)}`, '{"a":1}\n'],
  ];
  for (const [before, after] of cases) {
    await writeFile(path, before);
    new JsonlWriter(path).close();
    t.is(await readFile(path, 'utf8'), after);
  }
});

test('a place that cannot be written', async (t) => {
  const folder = await temporaryFolder(t);
  await fails(t, () => new JsonlWriter(join(folder, 'no', 'm.jsonl')), 'ERR_FILE_IO', /no\/m\.jsonl.*ENOENT/);
  await fails(t, () => new JsonlWriter(folder), 'ERR_FILE_IO', /EISDIR/);
});

const MIXED = '{"a":1}\r\n\n  \n{broken\n{"b":2}\n"torn';

test('a broken line is named by file and line, or skipped', async (t) => {
  const path = join(await temporaryFolder(t), 'd.jsonl');
  await writeFile(path, MIXED);
  const seen: JsonlRecord[] = [];
  await fails(t, async () => {
    for await (const record of readJsonl(path)) seen.push(record);
  }, 'ERR_FILE_FORMAT', /d\.jsonl:4: a broken line: /);
  t.deepEqual(seen, [{ line: 1, value: { a: 1 } }]);

  const { values, broken } = await readJsonlAll(path, { broken: 'skip' });
  t.deepEqual(values, [{ a: 1 }, { b: 2 }]);
  t.deepEqual(broken.map(({ line }) => line), [4, 6]);
});

test('lines across read blocks, without a last newline, with a mark of byte order, not UTF-8, too long', async (t) => {
  const path = join(await temporaryFolder(t), 'd.jsonl');
  const long = { text: 'é'.repeat(1_500_000) };
  await writeFile(path, `\ufeff{"a":1}\n${JSON.stringify(long)}\n{"z":2}`);
  t.deepEqual((await readJsonlAll(path)).values, [{ a: 1 }, long, { z: 2 }]);
  const { values, broken } = await readJsonlAll(path, { broken: 'skip', maxLineBytes: 1000 });
  t.deepEqual(values, [{ a: 1 }, { z: 2 }]);
  t.deepEqual(broken, [{ line: 2, reason: 'longer than 1000 bytes' }]);
  await writeFile(path, Buffer.from([0x22, 0xff, 0x22, 0x0a]));
  await fails(t, readJsonlAll(path), 'ERR_FILE_FORMAT', /d\.jsonl:1:/);
});

test('a missing file, an empty file, a reader that stops early', async (t) => {
  const path = join(await temporaryFolder(t), 'd.jsonl');
  await fails(t, readJsonlAll(path), 'ERR_FILE_IO', /d\.jsonl.*ENOENT/);
  await writeFile(path, '');
  t.deepEqual(await readJsonlAll(path), { values: [], broken: [] });
  await writeFile(path, '1\n2\n3\n');
  for await (const { value } of readJsonl(path)) {
    t.is(value, 1);
    break;
  }
});

test('/dev/full refuses a line', async (t) => {
  if (process.platform !== 'linux') return t.pass();
  const source = `import { JsonlWriter } from ${JSON.stringify(compiled('../../lib/io/jsonl.js'))};
    try { new JsonlWriter('/dev/full').write({ a: 1 }); } catch (e) { console.log(e.code, e.message); }`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', source]);
  t.regex(stdout, /^ERR_FILE_IO cannot append to \/dev\/full: ENOSPC/);
});
