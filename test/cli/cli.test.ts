import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { parseModelConfig } from '../../lib/models/config-file.js';
import { placementOf, saveModel, VisionLanguageModel } from '../../lib/models/index.js';
import { fill } from '../../lib/ops/index.js';
import { Random } from '../../lib/tensor/random.js';
import { fixture, golden } from '../io/_helpers.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'mmmamba-cli-'));

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}
function mmmamba(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });
}

const commands = ['demo', 'train-teacher', 'distill', 'eval', 'generate', 'bench', 'doctor'];

test('every command has --help, --device and --seed', async (t) => {
  const root = await mmmamba(['--help']);
  t.is(root.code, 0);
  t.regex(root.stdout, /Exit codes: 0 success, 1 failure, 2 wrong usage or settings, 130 stopped/);
  for (const command of commands) {
    t.true(root.stdout.includes(command));
    const { code, stdout } = await mmmamba([command, '--help']);
    t.is(code, 0, command);
    t.regex(stdout, /--device <name>/);
    t.regex(stdout, /--seed <n>/);
  }
});

test('wrong usage ends with 2 and one clear line', async (t) => {
  const cases: [string[], RegExp][] = [
    [[], /Usage: mmmamba/],
    [['nonsense'], /unknown command 'nonsense'/],
    [['distill', '--out', 'x'], /required option '--teacher <folder>'/],
    [['train-teacher', '--out', 'x', '--steps', 'many'], /expected an integer of at least 1/],
    [['demo', '--device', 'tpu'], /expected 'cpu', 'cuda', 'cuda:<n>' or 'auto'/],
    [['distill', '--out', 'x', '--teacher', 'y', '--student', 'half'], /'linear', 'hybrid' or layer numbers/],
    [['distill', '--out', 'x', '--teacher', 'y', '--preset', 'papre'], /Allowed choices are paper, reference, emoji/],
    ...['', '4,', ',4', '-1', '1.5'].map((layers): [string[], RegExp] => [
      ['distill', '--out', 'x', '--teacher', 'y', `--student=${layers}`],
      /'linear', 'hybrid' or layer numbers/,
    ]),
    ...['2', '0', ''].map((p): [string[], RegExp] => [
      ['generate', '--model', 'x', '--prompt', 'y', `--top-p=${p}`],
      /expected a number above 0 and up to 1/,
    ]),
    [['generate', '--model', 'x', '--prompt', 'y', '--temperature', '-1'], /expected a number from 0 to 100/],
    [['bench', '--seed', 'x'], /expected an integer of at least 0/],
  ];
  for (const [args, message] of cases) {
    const { code, stderr } = await mmmamba(args);
    t.is(code, 2, args.join(' '));
    t.regex(stderr, message);
  }
});

test('wrong settings end with 2 and name file, line and key', async (t) => {
  const config = join(folder, 'run.yaml');
  writeFileSync(config, 'seed: 1\nstagse: {}\n');
  const { code, stderr } = await mmmamba(['distill', '--config', config, '--teacher', folder, '--out', join(folder, 'out')]);
  t.is(code, 2);
  t.is(stderr, `mmmamba: ${config}:2:1: stagse: unknown key; did you mean "stages"?\n`);
});

test('what cannot be done ends with 1 and one line', async (t) => {
  const cases: [string[], RegExp][] = [
    [['eval', '--model', join(folder, 'none')], /^mmmamba: cannot read .*config\.json: ENOENT[^\n]*\n$/],
    [['demo', '--teacher', folder], /^mmmamba: there is no teacher in [^\n]*\n$/],
    [['generate', '--model', folder, '--prompt', 'x'], /^mmmamba: .* holds no tokenizer[^\n]*\n$/],
    [['train-teacher', '--config', join(folder, 'none.yaml'), '--out', join(folder, 'out')], /^mmmamba: cannot read .*none\.yaml[^\n]*\n$/],
    [['train-teacher', '--out', folder], /^mmmamba: .* is not empty: give --resume[^\n]*\n$/],
    [['bench', '--seed', '3', '--filter', 'nosuchop'], /^mmmamba: no benchmark matches 'nosuchop'\n$/],
  ];
  writeFileSync(join(folder, 'something'), '');
  for (const [args, message] of cases) {
    const { code, stderr } = await mmmamba(args);
    t.is(code, 1, args.join(' '));
    t.regex(stderr, message);
  }
});

test('an answer that ends inside a character is shown to its end', async (t) => {
  const parsed = (path: string): Record<string, Record<string, unknown>> => JSON.parse(readFileSync(path, 'utf8')) as never;
  const config = parsed(golden('models/hovle_tiny/config.json'));
  Object.assign(config['embedding_config']!, { llm_vocab_size: 420, img_context_token_id: 5 });
  config['llm_config']!['vocab_size'] = 420;
  using model = VisionLanguageModel.initialised(parseModelConfig(config), placementOf(), new Random(1));
  // All logits are equal, so that token 0 is said: the first byte of three.
  fill({ x: model.namedParameters().get('language_model.output.weight')!.value }, { value: 0 });
  const tokenizer = parsed(fixture('hf/tokenizer.json')) as { added_tokens?: { id: number }[]; model?: { vocab: Record<string, number> } };
  const { vocab } = tokenizer.model!;
  [vocab['<pad>'], vocab['ä']] = [vocab['ä']!, 0];
  tokenizer.added_tokens![0]!.id = vocab['<pad>'];
  const path = join(folder, 'bytes');
  await saveModel(model, path, { files: [['tokenizer.json', [Buffer.from(JSON.stringify(tokenizer))]]] });
  const { code, stdout, stderr } = await mmmamba(['generate', '--model', path, '--prompt', 'x', '--max-tokens', '1']);
  t.is(code, 0, stderr);
  t.is(stdout, '\ufffd\n');
});

test('the doctor looks at machine, addon, oneDNN, pictures and cache', async (t) => {
  const { code, stdout } = await mmmamba(['doctor', '--json'], { XDG_CACHE_HOME: join(folder, 'cache') });
  t.is(code, 0);
  const checks = JSON.parse(stdout) as { name: string; status: string; remedy?: string }[];
  t.deepEqual(
    checks.map(({ name }) => name),
    ['platform', 'node', 'processor', 'memory', 'addon', 'cpu', 'oneDNN', 'cuda', 'sharp', 'emoji drawings', 'cache'],
  );
  writeFileSync(join(folder, 'a-file'), '');
  const broken = await mmmamba(['doctor'], { MMMAMBA_NATIVE_PATH: join(folder, 'none.node'), XDG_CACHE_HOME: join(folder, 'a-file') });
  t.is(broken.code, 1);
  t.regex(broken.stdout, /FAIL {2}addon .*MMMAMBA_NATIVE_PATH=/);
  t.regex(broken.stdout, /warn {2}cache [^]*→ set XDG_CACHE_HOME/);
  const slow = await mmmamba(['doctor'], { MMMAMBA_ONEDNN: '0' });
  t.regex(slow.stdout, /warn {2}oneDNN .*switched off by MMMAMBA_ONEDNN=0\n.*→ matrix products run on the slower/);
});
