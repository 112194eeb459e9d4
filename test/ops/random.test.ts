import test from 'ava';
import fc from 'fast-check';
import type { OpCase } from './case.js';
import { loadCatalogue } from './catalogue.js';
import { checkFinite, checkForward, hasGradients } from './check.js';
import { randomCases } from './random.js';

const { references } = await loadCatalogue();

// A failure is shrunk to a small one and printed.
for (const { op, runs, arbitrary } of randomCases(fc, true))
  test.serial(`${op}: random shapes`, async (t) => {
    const reference = references.get(op);
    if (!reference) return t.fail(`test/ops/reference has no export '${op}'`);
    await fc.assert(
      fc.asyncProperty(arbitrary, fc.constantFrom('f32', 'bf16', 'f16'), async (body, dtype) => {
        const c: OpCase = { op, name: JSON.stringify(body), ...body };
        const gradients = dtype === 'f32' && hasGradients(c) ? await checkFinite(c, reference) : [];
        const problems = [...(await checkForward(c, reference, dtype)), ...gradients];
        if (problems.length) throw new Error(problems.join('\n'));
      }),
      { seed: 2502, numRuns: runs },
    );
    t.pass();
  });
