import { memoryStats } from '../../lib/tensor/memory.js';
import type { Dtype } from '../../lib/tensor/dtype.js';
import type { OpCase, Reference } from './case.js';
import { compare } from './compare.js';
import { drawInputs, referenceInputs, type Drawn, type DrawnInputs } from './draw.js';
import { compareFinite } from './finite.js';
import { poisonTensors } from './poison.js';
import { cpu, drawUpstream, gradInputs, runForward, runGradients, type ResultMap, type Target } from './run.js';
import { gradientLimit, outputLimit } from './tolerances.js';

/** What is wrong with a result, and how far beyond its limit it is. */
interface Verdict {
  text: string;
  excess: number;
}
const wrong = (text: string): Verdict => ({ text, excess: Infinity });
/** The worst first. */
const texts = (verdicts: Verdict[]): string[] => verdicts.sort((a, b) => (b.excess > a.excess ? 1 : b.excess < a.excess ? -1 : 0)).map((v) => v.text);

/** Runs `body` and adds to its problems if it left tensors behind. */
export async function leakChecked(body: () => Promise<string[]>): Promise<string[]> {
  const live = (): number => memoryStats().tensors - poisonTensors();
  const before = live();
  const problems = await body();
  const after = live();
  return after === before ? problems : [...problems, `${after - before} tensors were left behind`];
}

/** What a run gives; with `twice` also what differs when it runs again. */
async function repeated(target: Target, run: () => Promise<ResultMap>): Promise<[ResultMap, Verdict[]]> {
  const first = await run();
  if (!target.twice) return [first, []];
  const different: Verdict[] = [];
  for (const [name, { data }] of await run()) {
    const before = first.get(name)?.data ?? [];
    let count = 0;
    let at = -1;
    for (let i = 0; i < data.length; i++)
      if (!Object.is(data[i], before[i])) {
        if (count++ === 0) at = i;
      }
    if (count > 0) different.push(wrong(`${name}: ${count} of ${data.length} elements differ in a second run, the first at ${at}: ${data[at]} after ${before[at]}`));
  }
  return [first, different];
}

/** The op in `dtype` against its float64 reference. Returns what is wrong. */
export function checkForward(c: OpCase, reference: Reference, dtype: Dtype, target = cpu): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, dtype);
    const [actual, problems] = await repeated(target, () => runForward(c, drawn, target));
    const expected = reference(referenceInputs(drawn), c.attrs ?? {});
    for (const name of new Set([...actual.keys(), ...Object.keys(expected)])) {
      const a = actual.get(name);
      const e = expected[name];
      if (!a || !e) {
        problems.push(wrong(`${name}: ${a ? 'the reference does not give it' : 'the op does not give it'}`));
        continue;
      }
      if (a.shape.join() !== e.shape.join()) {
        problems.push(wrong(`${name}: shape [${a.shape.join(', ')}] where [${e.shape.join(', ')}] was expected`));
        continue;
      }
      const limit = a.dtype === 'i32' || a.dtype === 'u8' ? 0 : outputLimit(c.op, dtype);
      const { maxrel, text } = compare(a.data, e.data, e.shape);
      if (!(maxrel <= limit)) problems.push({ text: `${name}: ${text}, limit ${limit.toExponential(1)}`, excess: maxrel / limit });
    }
    return texts(problems);
  });
}

/** The op's gradients in f32 against finite differences of its reference. Returns what is wrong. */
export function checkFinite(c: OpCase, reference: Reference, target = cpu): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, 'f32');
    const upstream = drawUpstream(c, await runForward(c, drawn, target));
    const [gradients, problems] = await repeated(target, () => runGradients(c, drawn, upstream, target));
    return [...texts(problems), ...compareFinite(c, reference, drawn, upstream, gradients)];
  });
}

/** The same numbers as f32. */
function widened(drawn: DrawnInputs, dtype: Dtype): DrawnInputs {
  const one = (x: Drawn): Drawn => ({ ...x, dtype: x.dtype === dtype ? 'f32' : x.dtype });
  return Object.fromEntries(Object.entries(drawn).map(([name, a]) => [name, Array.isArray(a) ? a.map(one) : one(a)]));
}

/** The op's gradients against those that the CPU computes in f32 from the same numbers. Returns what is wrong. */
export function checkGradients(c: OpCase, dtype: Dtype, target = cpu): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, dtype);
    const upstream = drawUpstream(c, await runForward(c, drawn));
    const [actual, problems] = await repeated(target, () => runGradients(c, drawn, upstream, target));
    const expected = await runGradients(c, widened(drawn, dtype), upstream);
    for (const [name, e] of expected) {
      const base = name.replace(/\[\d+\]$/, '');
      // both sides of a comparison in f32 are rounded
      const limit = gradientLimit(c.op, `d${base[0]!.toUpperCase()}${base.slice(1)}`, dtype) * (dtype === 'f32' ? 2 : 1);
      const { maxrel, text } = compare(actual.get(name)?.data ?? [], e.data, e.shape);
      if (!(maxrel <= limit)) problems.push({ text: `gradient of ${name}: ${text}, limit ${limit.toExponential(1)}`, excess: maxrel / limit });
    }
    return texts(problems);
  });
}

/** The op against the CPU in f32 on the same numbers, for shapes that are too large for the reference. Returns what is wrong. */
export function checkParity(c: OpCase, dtype: Dtype, target: Target): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, dtype);
    const [actual, problems] = await repeated(target, () => runForward(c, drawn, target));
    for (const [name, e] of await runForward(c, widened(drawn, dtype))) {
      const limit = e.dtype === 'i32' || e.dtype === 'u8' ? 0 : outputLimit(c.op, dtype) * (dtype === 'f32' ? 2 : 1);
      const { maxrel, text } = compare(actual.get(name)?.data ?? [], e.data, e.shape);
      if (!(maxrel <= limit)) problems.push({ text: `${name}: ${text}, limit ${limit.toExponential(1)}`, excess: maxrel / limit });
    }
    return texts(problems);
  });
}

/** Whether a case has gradients to check. */
export function hasGradients(c: OpCase): boolean {
  return gradInputs(c).length > 0;
}
