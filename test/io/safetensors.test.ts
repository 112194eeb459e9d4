import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  openSafetensors,
  openSharded,
  readSafetensors,
  readSharded,
  writeSafetensors,
  type RawTensor,
} from '../../lib/io/safetensors.js';
import { MmError } from '../../lib/native/errors.js';
import { fails, golden, temporaryFolder } from './_helpers.js';

const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);
const u8 = (...values: number[]): RawTensor => ({ dtype: 'U8', shape: [values.length], data: bytes(...values) });

/** A file of a header, given as text or value, and so many bytes of data. */
function fileOf(header: unknown, dataBytes = 0, headerBytes?: number | bigint): Buffer {
  const text = Buffer.isBuffer(header) ? header : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(headerBytes ?? text.byteLength));
  return Buffer.concat([length, text, Buffer.alloc(dataBytes)]);
}

const entry = (begin: number, end: number, shape: unknown = [end - begin], dtype: unknown = 'U8') => ({ dtype, shape, data_offsets: [begin, end] });

async function refused(t: ExecutionContext, content: Uint8Array, message: RegExp): Promise<void> {
  const path = join(await temporaryFolder(t), 'hostile.safetensors');
  await writeFile(path, content);
  await fails(t, openSafetensors(path), 'ERR_FILE_FORMAT', message);
  await fails(t, readSafetensors(path), 'ERR_FILE_FORMAT', /hostile\.safetensors/);
}

const hostile: [string, Uint8Array, RegExp][] = [
  ['an empty file', bytes(), /truncated: 0 bytes/],
  ['less than the header length', bytes(1, 2, 3), /truncated: 3 bytes/],
  ['a header longer than the file', fileOf('{}', 0, 500), /header claims 500 bytes, but only 2 follow/],
  ['a header beyond 100 MB', fileOf('{}', 0, 100_000_001), /claims 100000001 bytes; the limit is 100000000/],
  ['a header length of 2^64 - 1', fileOf('{}', 0, 2n ** 64n - 1n), /claims 18446744073709551615 bytes/],
  ['an empty header', fileOf(''), /not JSON/],
  ['a header that is not JSON', fileOf('{"a": nope}'), /not JSON: line 1, column 7/],
  ['a header that is not UTF-8', fileOf(Buffer.from([0x7b, 0xff, 0x7d])), /not JSON/],
  ['a header that is cut off', fileOf('{"a":{"dtype":"U8"'), /not JSON/],
  ['a header nested without end', fileOf('['.repeat(100_000)), /nested deeper/],
  ['an array as header', fileOf('[]'), /not a JSON object/],
  ['null as header', fileOf('null'), /not a JSON object/],
  ['the same tensor twice', fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1), /"a" appears twice/],
  ['the dtype twice', fileOf('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', 1), /"dtype" appears twice/],
  ['an unknown dtype', fileOf({ a: entry(0, 1, [1], 'F7') }, 1), /"a" has the unknown dtype "F7"; known are BOOL, U8/],
  ['a dtype named like an inherited property', fileOf({ a: entry(0, 1, [1], 'toString') }, 1), /unknown dtype "toString"/],
  ['a dtype that is no string', fileOf({ a: entry(0, 1, [1], 8) }, 1), /unknown dtype 8/],
  ['an entry that is no object', fileOf({ a: [1] }), /"a" has no \{dtype, shape, data_offsets\}/],
  ['an entry without anything', fileOf({ a: {} }), /unknown dtype undefined/],
  ['a negative dimension', fileOf({ a: entry(0, 1, [-1, -1]) }, 1), /shape \[-1,-1\]; a list of non-negative integers/],
  ['a broken dimension', fileOf({ a: entry(0, 1, [1.5]) }, 1), /shape \[1.5\]/],
  ['a dimension as text', fileOf({ a: entry(0, 1, ['1']) }, 1), /shape \["1"\]/],
  ['a shape that is no list', fileOf({ a: entry(0, 1, 1) }, 1), /shape 1;/],
  ['a shape beyond 2^53', fileOf({ a: entry(0, 1, [2 ** 30, 2 ** 30, 2 ** 30]) }, 1), /more than 2\^53 bytes/],
  ['offsets the wrong way round', fileOf({ a: { dtype: 'U8', shape: [1], data_offsets: [1, 0] } }, 1), /data_offsets \[1,0\]/],
  ['negative offsets', fileOf({ a: entry(-1, 0, [1]) }, 1), /data_offsets \[-1,0\]/],
  ['offsets that are no pair', fileOf({ a: { dtype: 'U8', shape: [1], data_offsets: [0, 1, 2] } }, 1), /data_offsets \[0,1,2\]/],
  ['offsets beyond 2^53', fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1e300,1e300]}}', 1), /data_offsets/],
  ['a size that does not fit the shape', fileOf({ a: entry(0, 9, [2], 'F32') }, 9), /F32 \[2\] and needs 8 bytes, but its data_offsets span 9/],
  ['overlapping tensors', fileOf({ a: entry(0, 4), b: entry(2, 6) }, 6), /tensors "a" and "b" overlap at data byte 2/],
  ['two tensors over the same bytes', fileOf({ a: entry(0, 4), b: entry(0, 4) }, 4), /overlap/],
  ['a gap', fileOf({ a: entry(0, 4), b: entry(6, 8) }, 8), /a gap of 2 bytes lies between "a" and tensor "b"/],
  ['a gap before the first tensor', fileOf({ a: entry(4, 8) }, 8), /a gap of 4 bytes lies between the header and tensor "a"/],
  ['offsets beyond the file', fileOf({ a: entry(0, 10) }, 4), /truncated: tensor "a" ends at data byte 10, but the file has only 4/],
  ['trailing bytes', fileOf({ a: entry(0, 4) }, 7), /3 trailing bytes/],
  ['metadata that is no object', fileOf({ __metadata__: 3 }), /__metadata__ is not an object/],
  ['metadata that is not text', fileOf({ __metadata__: { a: 1 } }), /__metadata__ key "a" is not a string/],
];

for (const [name, content, message] of hostile) test(`refuses ${name}`, (t) => refused(t, content, message));

test('every truncation of a good file is refused', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'good.safetensors');
  await writeSafetensors(path, new Map([['a', u8(1, 2, 3)], ['b', { dtype: 'F32', shape: [2], data: new Uint8Array(8) }]]), { k: 'v' });
  const whole = await readFile(path);
  for (let length = 0; length < whole.byteLength; length++) {
    await writeFile(path, whole.subarray(0, length));
    await fails(t, readSafetensors(path), 'ERR_FILE_FORMAT', /truncated|not JSON/);
  }
});

test('damaged bytes give an MmError or tensors that fit the file, nothing else', async (t) => {
  const path = join(await temporaryFolder(t), 'x.safetensors');
  await writeSafetensors(path, new Map([['a', u8(1, 2, 3)], ['b', { dtype: 'F32', shape: [2], data: new Uint8Array(8) }]]), { k: 'v' });
  const good = await readFile(path);
  const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(damage, async (changes) => {
      const content = Buffer.from(good);
      for (const [at, value] of changes) content[at] = value;
      await writeFile(path, content);
      try {
        const { tensors } = await readSafetensors(path);
        const sum = [...tensors.values()].reduce((total, { data }) => total + data.byteLength, 0);
        return sum <= good.length;
      } catch (cause) {
        return cause instanceof MmError && cause.code === 'ERR_FILE_FORMAT';
      }
    }),
    { numRuns: 500 },
  );
  t.pass();
});

test('a missing file, a folder', async (t) => {
  const folder = await temporaryFolder(t);
  await fails(t, readSafetensors(join(folder, 'none.safetensors')), 'ERR_FILE_IO', /none\.safetensors.*ENOENT/);
  await fails(t, readSafetensors(folder), 'ERR_FILE_FORMAT', /not a regular file/);
});

test('a file that shrinks while it is open', async (t) => {
  const path = join(await temporaryFolder(t), 'x.safetensors');
  await writeFile(path, fileOf({ a: entry(0, 100) }, 100));
  await using reader = await openSafetensors(path);
  await writeFile(path, fileOf({ a: entry(0, 100) }, 10));
  await fails(t, reader.read('a'), 'ERR_FILE_FORMAT', /ended at byte/);
});

test('writes and reads back: values, order, metadata, alignment, awkward names', async (t) => {
  const path = join(await temporaryFolder(t), 'x.safetensors');
  const tensors = new Map<string, RawTensor>([
    ['b.u8', u8(1, 2, 3)],
    ['__proto__', u8(7)],
    ['constructor', u8(8)],
    ['12', u8(9)],
    ['scalar', { dtype: 'F32', shape: [], data: new Uint8Array(new Float32Array([1.5]).buffer) }],
    ['empty', { dtype: 'BF16', shape: [0, 4], data: new Uint8Array(0) }],
    ['wide', { dtype: 'I64', shape: [2], data: new Uint8Array(new BigInt64Array([-1n, 5n]).buffer) }],
    ['Ünïcode "quoted"\n', { dtype: 'F16', shape: [1, 2], data: bytes(0, 60, 0, 64) }],
  ]);
  await writeSafetensors(path, tensors, new Map([['format', 'pt'], ['__proto__', 'kept']]));
  const back = await readSafetensors(path);
  t.deepEqual([...back.tensors.keys()].sort(), [...tensors.keys()].sort());
  for (const [name, tensor] of tensors) {
    const { dtype, shape, data } = back.tensors.get(name)!;
    t.deepEqual({ dtype, shape }, { dtype: tensor.dtype, shape: tensor.shape }, name);
    t.deepEqual([...data], [...tensor.data], name);
    t.is(data.byteOffset % 8, 0);
  }
  t.deepEqual([...back.metadata], [['format', 'pt'], ['__proto__', 'kept']]);
  t.is(Object.getPrototypeOf({}), Object.prototype);
  t.is(back.tensors.get('wide')!.data.buffer.byteLength, 16, 'an own buffer');

  const file = await readFile(path);
  t.is(Number(file.readBigUInt64LE()) % 8, 0, 'the data begins aligned');
});

test('no tensors at all', async (t) => {
  const path = join(await temporaryFolder(t), 'x.safetensors');
  await writeSafetensors(path, new Map());
  const { tensors, metadata } = await readSafetensors(path);
  t.is(tensors.size + metadata.size, 0);
});

test('refuses to write what it could not read', async (t) => {
  const path = join(await temporaryFolder(t), 'x.safetensors');
  const write = (name: string, tensor: unknown) => writeSafetensors(path, new Map([[name, tensor as RawTensor]]));
  await fails(t, write('a', { dtype: 'F32', shape: [2], data: bytes(1) }), 'ERR_ARGUMENT', /"a" is F32 \[2\], which takes 8 bytes, but has 1/);
  await fails(t, write('a', { dtype: 'F31', shape: [1], data: bytes(1) }), 'ERR_ARGUMENT', /unknown dtype "F31"/);
  await fails(t, write('a', { dtype: 'U8', shape: [-1], data: bytes(1) }), 'ERR_ARGUMENT', /shape \[-1\]/);
  await fails(t, write('__metadata__', u8(1)), 'ERR_ARGUMENT', /reserves/);
  await fails(t, readSafetensors(path), 'ERR_FILE_IO', /ENOENT/);
});

test('reads a golden file of the reference, whole, by name and lazily', async (t) => {
  const path = golden('image/rgb_100x170.safetensors');
  const { tensors } = await readSafetensors(path);
  t.deepEqual(tensors.get('in.image_u8')!.shape, [170, 100, 3]);
  t.is(tensors.get('out.pixel_values')!.dtype, 'F32');

  const one = await readSafetensors(path, { names: ['out.tiles_u8'] });
  t.deepEqual([...one.tensors.keys()], ['out.tiles_u8']);

  await using reader = await openSafetensors(path);
  t.deepEqual([...reader.names].sort(), [...tensors.keys()].sort());
  t.deepEqual(reader.info('out.tiles_u8'), { dtype: 'U8', shape: [3, 28, 28, 3], bytes: 7056 });
  t.deepEqual((await reader.read('out.tiles_u8')).data, tensors.get('out.tiles_u8')!.data);
  t.true(reader.has('in.image_u8'));
  await fails(t, reader.read('out.tile_u8'), 'ERR_ARGUMENT', /no tensor "out.tile_u8"; did you mean "out.tiles_u8"\? \(it has 4\)/);
  await fails(t, readSafetensors(path, { names: ['nothing like it'] }), 'ERR_ARGUMENT', /no tensor "nothing like it" \(it has 4\)/);
});

async function shards(t: ExecutionContext, index: unknown): Promise<string> {
  const folder = join(await temporaryFolder(t), 'model');
  await mkdir(folder);
  await writeSafetensors(join(folder, 'one.safetensors'), new Map([['a', u8(1)], ['extra', u8(2)]]));
  await writeSafetensors(join(folder, 'two.safetensors'), new Map([['b', u8(3, 4)]]));
  await writeSafetensors(join(folder, '..', 'outside.safetensors'), new Map([['a', u8(5)]]));
  await writeFile(join(folder, 'model.safetensors.index.json'), typeof index === 'string' ? index : JSON.stringify(index));
  return folder;
}

test('follows an index to its shards', async (t) => {
  const folder = await shards(t, { metadata: { total_size: 3 }, weight_map: { b: 'two.safetensors', a: 'one.safetensors' } });
  const { tensors, metadata } = await readSharded(folder);
  t.deepEqual([...tensors.keys()], ['b', 'a']);
  t.deepEqual([...tensors.get('b')!.data], [3, 4]);
  t.is(metadata.get('total_size'), '3');
  await using reader = await openSharded(folder);
  t.deepEqual(reader.info('a'), { dtype: 'U8', shape: [1], bytes: 1 });
  await fails(t, reader.read('extra'), 'ERR_ARGUMENT', /no tensor "extra"/);
});

test('without an index reads the single file, and without either says so', async (t) => {
  const { tensors } = await readSharded(golden('models/hovle_tiny'));
  t.true(tensors.size > 10);
  const folder = await temporaryFolder(t);
  await fails(t, readSharded(folder), 'ERR_FILE_IO', /neither model.safetensors.index.json nor model.safetensors/);
  await copyFile(golden('image/single_tile_33x33.safetensors'), join(folder, 'model.safetensors'));
  t.is((await readSharded(folder, { names: ['in.image_u8'] })).tensors.size, 1);
});

for (const file of ['../outside.safetensors', '/etc/passwd', 'sub/one.safetensors', '..\\outside.safetensors', 'C:one', 'one.safetensors\0', '..', '.', '', 3, null]) {
  test(`an index may not point at ${JSON.stringify(file)}`, async (t) => {
    await fails(t, readSharded(await shards(t, { weight_map: { a: file } })), 'ERR_FILE_FORMAT', /weight_map of "a" is .*plain file name/);
  });
}

test('broken indexes', async (t) => {
  await fails(t, readSharded(await shards(t, '{')), 'ERR_FILE_FORMAT', /index\.json: not JSON/);
  await fails(t, readSharded(await shards(t, [])), 'ERR_FILE_FORMAT', /needs an object "weight_map"/);
  await fails(t, readSharded(await shards(t, { weight_map: { b: 'one.safetensors' } })), 'ERR_FILE_FORMAT', /"b" into one.safetensors, which lacks it/);
  await fails(t, readSharded(await shards(t, { weight_map: { b: 'three.safetensors' } })), 'ERR_FILE_IO', /three\.safetensors.*ENOENT/);
});
