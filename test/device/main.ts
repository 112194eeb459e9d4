// npm run --silent device -- [--device NAME] [--only TEXT] [--json FILE]: what holds of a device beyond its ops.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { machine } from '../../bench/machine.js';
import { resolveDevice } from '../../lib/native/backends.js';
import { checks, has } from './checks.js';

const { values } = parseArgs({
  options: { device: { type: 'string', default: 'cpu' }, only: { type: 'string', default: '' }, json: { type: 'string' } },
});
const device = resolveDevice(values.device);
const results: { name: string; result: 'passed' | 'failed' | 'not possible here'; problem?: string; ms?: number }[] = [];
for (const { name, needs, run } of checks.filter((c) => c.name.includes(values.only))) {
  if (!has(device, needs)) {
    results.push({ name, result: 'not possible here', problem: `needs ${needs!}` });
    console.log(`skip  ${name}: ${device} is not known to have ${needs!}`);
    continue;
  }
  const start = performance.now();
  try {
    await run(device);
    const ms = Math.round(performance.now() - start);
    results.push({ name, result: 'passed', ms });
    console.log(`ok    ${name} (${ms} ms)`);
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error);
    results.push({ name, result: 'failed', problem });
    console.log(`FAIL  ${name}: ${problem}`);
  }
}
const count = (result: string): number => results.filter((r) => r.result === result).length;
console.log(`${count('passed')} passed, ${count('failed')} failed`);
if (values.json) writeFileSync(values.json, `${JSON.stringify({ machine: machine(device), passed: count('passed'), failed: count('failed'), results }, null, 1)}\n`);
if (count('failed') > 0) process.exitCode = 1;
