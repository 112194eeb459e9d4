import { memoryStats } from '../../lib/tensor/memory.js';
import type { Dtype } from '../../lib/tensor/dtype.js';
import type { OpCase, Reference } from './case.js';
import { compare } from './compare.js';
import { drawInputs, referenceInputs, type Drawn } from './draw.js';
import { compareFinite } from './finite.js';
import { drawUpstream, gradInputs, runForward, runGradients } from './run.js';
import { gradientLimit, outputLimit } from './tolerances.js';

/** Runs `body` and adds to its problems if it left tensors behind. */
export async function leakChecked(body: () => Promise<string[]>): Promise<string[]> {
  const before = memoryStats().tensors;
  const problems = await body();
  const after = memoryStats().tensors;
  return after === before ? problems : [...problems, `${after - before} tensors were left behind`];
}

/** The op in `dtype` against its float64 reference. Returns what is wrong. */
export function checkForward(c: OpCase, reference: Reference, dtype: Dtype): Promise<string[]> {
  return leakChecked(async () => {
    const problems: string[] = [];
    const drawn = drawInputs(c, dtype);
    const actual = await runForward(c, drawn);
    const expected = reference(referenceInputs(drawn), c.attrs ?? {});
    for (const name of new Set([...actual.keys(), ...Object.keys(expected)])) {
      const a = actual.get(name);
      const e = expected[name];
      if (!a || !e) {
        problems.push(`${name}: ${a ? 'the reference does not give it' : 'the op does not give it'}`);
        continue;
      }
      if (a.shape.join() !== e.shape.join()) {
        problems.push(`${name}: shape [${a.shape.join(', ')}] where [${e.shape.join(', ')}] was expected`);
        continue;
      }
      const limit = a.dtype === 'i32' || a.dtype === 'u8' ? 0 : outputLimit(c.op, dtype);
      const { maxrel, text } = compare(a.data, e.data, e.shape);
      if (!(maxrel <= limit)) problems.push(`${name}: ${text}, limit ${limit.toExponential(1)}`);
    }
    return problems;
  });
}

/** The op's gradients in f32 against finite differences of its reference. Returns what is wrong. */
export function checkFinite(c: OpCase, reference: Reference): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, 'f32');
    const upstream = drawUpstream(c, await runForward(c, drawn));
    return compareFinite(c, reference, drawn, upstream, await runGradients(c, drawn, upstream));
  });
}

/** The op's gradients in bf16 or f16 against those in f32 of the same numbers. Returns what is wrong. */
export function checkLowGradients(c: OpCase, dtype: 'bf16' | 'f16'): Promise<string[]> {
  return leakChecked(async () => {
    const drawn = drawInputs(c, dtype);
    const upstream = drawUpstream(c, await runForward(c, drawn));
    const low = await runGradients(c, drawn, upstream);
    const widened = (x: Drawn): Drawn => ({ ...x, dtype: x.dtype === dtype ? 'f32' : x.dtype });
    const wide = Object.fromEntries(Object.entries(drawn).map(([name, a]) => [name, Array.isArray(a) ? a.map(widened) : widened(a)]));
    const expected = await runGradients(c, wide, upstream);
    const problems: string[] = [];
    for (const [name, e] of expected) {
      const base = name.replace(/\[\d+\]$/, '');
      const limit = gradientLimit(c.op, `d${base[0]!.toUpperCase()}${base.slice(1)}`, dtype);
      const { maxrel, text } = compare(low.get(name)?.data ?? [], e.data, e.shape);
      if (!(maxrel <= limit)) problems.push(`gradient of ${name}: ${text}, limit ${limit.toExponential(1)}`);
    }
    return problems;
  });
}

/** Whether a case has gradients to check. */
export function hasGradients(c: OpCase): boolean {
  return gradInputs(c).length > 0;
}
