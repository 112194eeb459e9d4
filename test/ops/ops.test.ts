import test from 'ava';
import { opSchemas } from '../../lib/tensor/run.js';
import { backwardOps, loadCatalogue } from './catalogue.js';
import { checkFinite, checkForward, checkGradients, hasGradients } from './check.js';

const { cases, references } = await loadCatalogue();
const backward = backwardOps();

for (const schema of opSchemas())
  test(`${schema.name}: complete`, (t) => {
    const missing: string[] = [];
    if (!schema.cpu) missing.push('a CPU kernel');
    const verdict = schema.backward ?? '';
    if (!opSchemas().some((s) => s.name === verdict) && !/^none: \S/.test(verdict))
      missing.push(`a backward: '${verdict}' is neither an op nor 'none: <reason>'`);
    if (!backward.has(schema.name)) {
      if (!references.has(schema.name)) missing.push(`an export '${schema.name}' in test/ops/reference`);
      if (!cases.some((c) => c.op === schema.name)) missing.push('a case in test/ops/cases');
    }
    t.deepEqual(missing, []);
  });

for (const c of cases) {
  const reference = references.get(c.op);
  if (!reference) continue;
  for (const dtype of ['f32', 'bf16', 'f16'] as const)
    test.serial(`${c.op}: ${c.name}: ${dtype} forward`, async (t) => t.deepEqual(await checkForward(c, reference, dtype), []));
  if (!hasGradients(c)) continue;
  test.serial(`${c.op}: ${c.name}: f32 gradients against finite differences`, async (t) => t.deepEqual(await checkFinite(c, reference), []));
  for (const dtype of ['bf16', 'f16'] as const)
    test.serial(`${c.op}: ${c.name}: ${dtype} gradients against f32`, async (t) => t.deepEqual(await checkGradients(c, dtype), []));
}
