// Run in a child process with another instruction set, thread count or GEMM: `child.js check` prints the failures of the
// compact cases as JSON, `child.js digest` a digest of every result's bits.
import { createHash } from 'node:crypto';
import { compactCases, loadCatalogue } from './catalogue.js';
import { checkFinite, checkForward, hasGradients } from './check.js';
import { drawInputs } from './draw.js';
import { drawUpstream, runForward, runGradients, type ResultMap } from './run.js';

const { cases, references } = await loadCatalogue();

async function check(): Promise<Record<string, string[]>> {
  const failures: Record<string, string[]> = {};
  for (const c of compactCases(cases)) {
    const reference = references.get(c.op);
    if (!reference) continue;
    const problems = [
      ...(await checkForward(c, reference, 'f32')),
      ...(await checkForward(c, reference, 'bf16')),
      ...(await checkForward(c, reference, 'f16')),
      ...(hasGradients(c) ? await checkFinite(c, reference) : []),
    ];
    if (problems.length) failures[`${c.op}: ${c.name}`] = problems;
  }
  return failures;
}

function digestOf(results: ResultMap): string {
  const hash = createHash('sha256');
  for (const [name, { data }] of results) hash.update(name).update(Float64Array.from(data));
  return hash.digest('hex').slice(0, 16);
}

async function digests(): Promise<Record<string, string>> {
  const out: Record<string, string> = {};
  for (const c of cases)
    for (const dtype of ['f32', 'bf16'] as const) {
      const drawn = drawInputs(c, dtype);
      const outputs = await runForward(c, drawn);
      out[`${c.op}: ${c.name}: ${dtype}`] = digestOf(outputs);
      if (hasGradients(c)) out[`${c.op}: ${c.name}: ${dtype} gradients`] = digestOf(await runGradients(c, drawn, drawUpstream(c, outputs)));
    }
  return out;
}

process.stdout.write(JSON.stringify(process.argv[2] === 'check' ? await check() : await digests()));
