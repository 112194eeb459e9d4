import test from 'ava';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { loadJsonConfig, loadYaml } from '../../lib/io/config.js';
import { fails, golden, temporaryFolder } from './_helpers.js';

const optimizer = z.object({ lr: z.number().positive(), weightDecay: z.number().default(0), betas: z.tuple([z.number(), z.number()]).optional() });
const schema = z.object({
  name: z.string(),
  steps: z.number().int().positive().default(10),
  optimizer,
  stages: z.array(z.object({ kind: z.enum(['one', 'two']), lr: z.number().optional() })).default([]),
  data: z.discriminatedUnion('type', [z.object({ type: z.literal('folder'), path: z.string() }), z.object({ type: z.literal('list'), items: z.array(z.string()) })]).optional(),
  labels: z.record(z.string(), z.object({ weight: z.number() })).optional(),
});

const GOOD = `# a comment
name: trial
optimizer:
  lr: 1e-3
  betas: [0.9, 0.95]
stages:
  - kind: one
  - kind: two
    lr: 0.1
data: { type: folder, path: /tmp }
`;

test('yaml: a typed object with defaults', async (t) => {
  const path = join(await temporaryFolder(t), 'c.yaml');
  await writeFile(path, GOOD);
  const config = await loadYaml(path, schema);
  t.is(config.optimizer.lr, 1e-3);
  t.is(config.steps, 10);
  t.is(config.stages[1].lr, 0.1);
  await writeFile(path, '');
  t.deepEqual(await loadYaml(path, z.object({ a: z.number().default(1) })), { a: 1 });
});

const wrong: [string, string, RegExp][] = [
  ['an unknown key', GOOD.replace('  lr: 1e-3', '  lr: 1e-3\n  weight_deccay: 1'), /^\S*c\.yaml:5:3: optimizer\.weight_deccay: unknown key; did you mean "weightDecay"\?$/],
  ['an unknown key far from any', GOOD + 'zzzzzzzz: 1\n', /c\.yaml:11:1: zzzzzzzz: unknown key; known are name, steps, optimizer/],
  ['an unknown key in a list', GOOD.replace('    lr: 0.1', '    lrr: 0.1'), /c\.yaml:9:5: stages\[1\]\.lrr: unknown key; did you mean "lr"\?/],
  ['an unknown key in a union', GOOD.replace('path: /tmp }', 'path: /tmp, itms: [] }'), /c\.yaml:10:35: data\.itms: unknown key; known are type, path/],
  ['an unknown key in a record', GOOD + 'labels:\n  cat: { weight: 1, wieght: 2 }\n', /c\.yaml:12:21: labels\.cat\.wieght: unknown key; did you mean "weight"\?/],
  ['a prototype key', GOOD + '__proto__: { a: 1 }\n', /c\.yaml:11:1: __proto__: unknown key/],
  ['a wrong type', GOOD.replace('1e-3', 'fast'), /c\.yaml:4:3: optimizer\.lr: Invalid input: expected number, received string/],
  ['a value out of range', GOOD.replace('1e-3', '-1'), /c\.yaml:4:3: optimizer\.lr: Too small/],
  ['a wrong word', GOOD.replace('kind: two', 'kind: three'), /c\.yaml:8:5: stages\[1\]\.kind: Invalid option: expected one of "one"\|"two"/],
  ['a missing key', GOOD.replace('name: trial', 'steps: 5'), /c\.yaml:2:1: name: Invalid input: expected string/],
  ['a missing key inside', GOOD.replace('  lr: 1e-3\n', ''), /c\.yaml:3:1: optimizer\.lr: Invalid input: expected number/],
  ['a wrong discriminator', GOOD.replace('type: folder', 'type: floder'), /c\.yaml:10:\d+: data/],
  ['a list as the whole', '- 1\n', /c\.yaml:1:1: Invalid input: expected object/],
  ['broken yaml', 'name: [1, 2\noptimizer: {', /c\.yaml:\d+:\d+: not YAML: /],
  ['a key twice', GOOD + 'name: again\n', /c\.yaml:11:1: not YAML: Map keys must be unique/],
  ['aliases without end', 'a: &a [x, x, x, x, x, x, x, x, x]\n' + 'bcdefg'.split('').map((k, i) => `${k}: &${k} [${Array(9).fill(`*${'abcdef'[i]}`).join(', ')}]\n`).join(''), /not usable YAML: Excessive alias count/],
  ['an alias that leads nowhere', 'name: *none\n', /c\.yaml.*none/],
];
for (const [name, text, message] of wrong) {
  test(`yaml: ${name}`, async (t) => {
    const path = join(await temporaryFolder(t), 'c.yaml');
    await writeFile(path, text);
    await fails(t, loadYaml(path, schema), 'ERR_CONFIG', message);
  });
}

test('yaml: all problems at once, a line each; strict schemas are not reported twice', async (t) => {
  const path = join(await temporaryFolder(t), 'c.yaml');
  await writeFile(path, 'a: x\nbb: 1\nC: 1\n');
  await fails(t, loadYaml(path, z.strictObject({ a: z.number(), b: z.number().optional(), c: z.number().optional() })), 'ERR_CONFIG',
    /^\S+:2:1: bb: unknown key; did you mean "b"\?\n\S+:3:1: C: unknown key; did you mean "c"\?\n\S+:1:1: a: Invalid input[^\n]*$/);
  await writeFile(path, Array.from({ length: 30 }, (_, i) => `unknown${i}: 1`).join('\n'));
  await fails(t, loadYaml(path, z.object({})), 'ERR_CONFIG', /\n\.\.\. and 10 more$/);
  await fails(t, loadYaml(`${path}x`, schema), 'ERR_FILE_IO', /c\.yamlx.*ENOENT/);
});

test('yaml: open and wrapped schemas', async (t) => {
  const path = join(await temporaryFolder(t), 'c.yaml');
  await writeFile(path, 'any: { thing: 1 }\nopen: { a: 1, extra: 2 }\nnested: { n: { n: null } }\n');
  interface Nested { n?: Nested | null }
  const nested: z.ZodType<Nested> = z.lazy(() => z.object({ n: nested.nullable().optional() }));
  const lax = z.object({ any: z.unknown(), open: z.looseObject({ a: z.number() }), nested: nested.readonly() });
  await t.notThrowsAsync(loadYaml(path, lax));
  await writeFile(path, 'any: 1\nopen: { a: 1 }\nnested: { n: { m: 1 } }\n');
  await fails(t, loadYaml(path, lax), 'ERR_CONFIG', /c\.yaml:3:16: nested\.n\.m: unknown key; did you mean "n"\?/);
});

test('json: reads a model’s config and passes over what the schema does not name', async (t) => {
  const config = await loadJsonConfig(golden('models/hovle_tiny/config.json'), z.object({ llm_config: z.object({ hidden_size: z.number() }) }));
  t.true(config.llm_config.hidden_size > 0);
});

const brokenJson: [string, RegExp][] = [
  ['{\n  "a": 1,\n  "b": \n}', /c\.json:4:1: not JSON: expected a value, found "}"/],
  ['{"a": 1,}', /c\.json:1:9: not JSON: expected a key in double quotes/],
  ['{"a": 1} x', /c\.json:1:10: not JSON: expected the end/],
  ['{"a": 1, "a": 2}', /c\.json:1:10: not JSON: the key "a" appears twice/],
  ['{"a": 01}', /c\.json:1:8: not JSON: expected "," or "}", found "1"/],
  ['{"a": "x\n"}', /c\.json:1:9: not JSON: a control character/],
  ['{"a": "\\x"}', /c\.json:1:7: not JSON: .*escape/],
  ['{"a": "x', /c\.json:1:7: not JSON: a string that never ends/],
  ['{"a" 1}', /expected ":" after the key "a", found "1"/],
  ['[1 2]', /expected "," or "\]", found "2"/],
  ['', /c\.json:1:1: not JSON: expected a value, found the end of the text/],
  ['{"a": NaN}', /expected a value, found "N"/],
];
test('json: broken text names line and column', async (t) => {
  const path = join(await temporaryFolder(t), 'c.json');
  for (const [text, message] of brokenJson) {
    await writeFile(path, text);
    await fails(t, loadJsonConfig(path, z.unknown()), 'ERR_CONFIG', message);
  }
});

test('json: schema errors name line and column, too', async (t) => {
  const path = join(await temporaryFolder(t), 'c.json');
  await writeFile(path, '{\n  "a": {\n    "b": "x"\n  }\n}\n');
  await fails(t, loadJsonConfig(path, z.object({ a: z.object({ b: z.number() }) })), 'ERR_CONFIG', /^\S*c\.json:3:5: a\.b: Invalid input: expected number, received string$/);
  await fails(t, loadJsonConfig(path, z.strictObject({})), 'ERR_CONFIG', /^\S*c\.json:2:3: a: unknown key$/);
});
