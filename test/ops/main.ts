// npm run ops -- [options]: the cases of test/ops without a test framework, on any device.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { machine } from '../../bench/machine.js';
import { resolveDevice } from '../../lib/native/backends.js';
import type { OpCase } from './case.js';
import { loadCatalogue, smallestCases } from './catalogue.js';
import { checkFinite, checkForward, checkGradients, checkParity, hasGradients } from './check.js';
import { clearPoison } from './poison.js';
import { randomCases, type RandomCases } from './random.js';
import type { Target } from './run.js';

const help = `npm run --silent ops -- [options]

Every case of every op against its float64 reference, gradients against finite differences (f32) and against those of the CPU
in f32. Off the CPU the memory that an op gets is filled with NaNs first, and all runs twice and must give the same bits;
then random shapes against the references and, at the sizes of models, against the CPU.

  --device NAME    default cpu
  --dtype LIST     of f32,bf16,f16; default all
  --only LIST      ops by name
  --small          the smallest cases of each op alone, once, without NaNs and random shapes: for a sanitizer
  --random N       random cases of each op and kind; default 20 off the CPU, else 0
  --seed N         of the random cases; default 2502
  --part I/N       every Nth case from the Ith, to share the work among processes
  --json FILE      writes device, commit, counts and failures there
`;

const dtypes = ['f32', 'bf16', 'f16'] as const;
type FloatDtype = (typeof dtypes)[number];

interface Failure {
  op: string;
  case: string;
  dtype: string;
  check: string;
  problems: string[];
}
interface Count {
  passed: number;
  failed: number;
}
/** The device is lost: nothing after this can be judged. */
class Unusable extends Error {}

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cpu' },
    dtype: { type: 'string' },
    only: { type: 'string' },
    small: { type: 'boolean', default: false },
    random: { type: 'string' },
    seed: { type: 'string', default: '2502' },
    part: { type: 'string', default: '1/1' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});

/** A list of an option, each item of it known. */
function listed<T extends string>(option: string, text: string | undefined, known: readonly T[]): readonly T[] {
  if (text === undefined) return known;
  const items = text.split(',');
  for (const item of items) if (!known.includes(item as T)) throw new Error(`--${option}: '${item}' is unknown; known are ${known.join(', ')}`);
  return items as T[];
}
function whole(option: string, text: string): number {
  const n = Number(text);
  if (!Number.isSafeInteger(n) || n < 0) throw new Error(`--${option} must be a whole number; got '${text}'`);
  return n;
}

const counts = new Map<string, Map<string, Count>>();
const failures: Failure[] = [];
let passed = 0;

async function judge(c: OpCase, dtype: string, check: string, body: () => Promise<string[]>): Promise<void> {
  const byDtype = counts.get(c.op) ?? new Map<string, Count>();
  counts.set(c.op, byDtype);
  const count = byDtype.get(dtype) ?? { passed: 0, failed: 0 };
  byDtype.set(dtype, count);
  let problems: string[];
  try {
    problems = await body();
  } catch (error) {
    problems = [error instanceof Error ? error.message : String(error)];
  }
  if (problems.length === 0) {
    passed++;
    count.passed++;
    return;
  }
  count.failed++;
  failures.push({ op: c.op, case: c.name, dtype, check, problems });
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
  console.log(`FAIL ${c.op}: ${c.name}: ${dtype} ${check}: ${problems[0]!}${more}`);
  if (problems.some((p) => p.includes('stays unusable'))) throw new Unusable(problems[0]);
}

async function fastCheck(): Promise<typeof import('fast-check').default | null> {
  try {
    return (await import('fast-check')).default;
  } catch {
    return null;
  }
}

/** Random cases of one op; a failure is made as small as it goes before it is reported. */
async function judgeRandom(family: RandomCases, check: string, allowed: readonly FloatDtype[], runs: number, seed: number, body: (c: OpCase, dtype: FloatDtype) => Promise<string[]>): Promise<void> {
  const fc = (await import('fast-check')).default;
  const { op, arbitrary } = family;
  const named = (drawn: Omit<OpCase, 'op' | 'name'>): OpCase => ({ op, name: JSON.stringify(drawn), ...drawn });
  const property = fc.asyncProperty(arbitrary, fc.constantFrom(...allowed), async (drawn, dtype) => {
    const problems = await body(named(drawn), dtype);
    if (problems.length) throw new Error(problems.join('\n'));
  });
  const result = await fc.check(property, { seed, numRuns: runs, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: false });
  const [drawn, dtype] = result.counterexample ?? [undefined, 'all'];
  const problem = (result.errorInstance as Error | undefined)?.message ?? 'failed';
  const about: OpCase = drawn ? named(drawn) : { op, name: 'random shapes', inputs: {} };
  await judge(about, dtype, check, () => Promise.resolve(result.failed ? problem.split('\n') : []));
}

async function main(): Promise<void> {
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  const device = resolveDevice(values.device);
  const target: Target = device === 'cpu' || values.small ? { device } : { device, poison: true, twice: true };
  const { cases, references } = await loadCatalogue();
  const ops = listed('only', values.only, [...new Set(cases.map((c) => c.op))]);
  const floats = listed('dtype', values.dtype, dtypes);
  const [part, parts] = values.part.split('/').map((n) => whole('part', n)) as [number, number];
  const about = machine(device); // the device is there, or this throws
  const chosen = ops.flatMap((op) => {
    const list = cases.filter((c) => c.op === op);
    return values.small ? smallestCases(list) : list;
  });
  const fc = await fastCheck();
  const random = values.small ? 0 : whole('random', values.random ?? (device === 'cpu' || !fc ? '0' : '20'));
  if (random > 0 && !fc) throw new Error('--random needs fast-check, which is not installed');
  if (!fc && device !== 'cpu' && !values.small) console.log('fast-check is not installed: no random shapes');
  const seed = whole('seed', values.seed);

  let stopped: string | null = null;
  let turn = 0;
  const mine = (): boolean => turn++ % parts === part - 1;
  try {
    for (const c of chosen) {
      const reference = references.get(c.op);
      if (!reference || !mine()) continue;
      for (const dtype of floats) {
        await judge(c, dtype, 'forward', () => checkForward(c, reference, dtype, target));
        if (!hasGradients(c)) continue;
        if (dtype === 'f32') await judge(c, dtype, 'gradients against finite differences', () => checkFinite(c, reference, target));
        if (dtype !== 'f32' || device !== 'cpu') await judge(c, dtype, 'gradients against the CPU', () => checkGradients(c, dtype, target));
      }
    }
    if (fc && random > 0) {
      for (const family of randomCases(fc, true)) {
        const reference = references.get(family.op);
        if (!reference || !ops.includes(family.op) || !mine()) continue;
        await judgeRandom(family, 'random shapes against the reference', floats, random, seed, async (c, dtype) => [
          ...(await checkForward(c, reference, dtype, target)),
          ...(dtype === 'f32' && hasGradients(c) ? await checkFinite(c, reference, target) : []),
        ]);
      }
      for (const family of randomCases(fc, false)) {
        if (!ops.includes(family.op) || !mine()) continue;
        await judgeRandom(family, 'random shapes against the CPU', floats, random, seed, async (c, dtype) => [
          ...(await checkParity(c, dtype, target)),
          ...(hasGradients(c) ? await checkGradients(c, dtype, target) : []),
        ]);
      }
    }
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    stopped = error.message;
    console.log('stopped: the device is unusable');
  }
  clearPoison();
  for (const [op, byDtype] of counts) {
    const list = [...byDtype.values()];
    const bad = list.reduce((n, count) => n + count.failed, 0);
    const good = list.reduce((n, count) => n + count.passed, 0);
    console.log(`${op}: ${good} checks passed${bad ? `, ${bad} failed` : ''}`);
  }
  console.log(`${passed} passed, ${failures.length} failed`);
  if (values.json) {
    const result = { machine: about, passed, failed: failures.length, stopped, counts: Object.fromEntries([...counts].map(([op, d]) => [op, Object.fromEntries(d)])), failures };
    writeFileSync(values.json, `${JSON.stringify(result, null, 1)}\n`);
  }
  if (failures.length > 0 || stopped) process.exitCode = 1;
}

try {
  await main();
} catch (error) {
  console.error(`${error instanceof Error ? error.message : String(error)}\n\n${help}`);
  process.exitCode = 2;
}
