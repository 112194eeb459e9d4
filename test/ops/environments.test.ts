import test from 'ava';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { backends } from '../../lib/native/backends.js';

/** The compact cases, or the digests of all results, in a child process with other environment variables. */
async function child(mode: 'check' | 'digest', env: Record<string, string>): Promise<Record<string, unknown>> {
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [join(import.meta.dirname, 'child.js'), mode], {
      env: { ...process.env, ...env },
      maxBuffer: 1 << 26,
    });
    return JSON.parse(stdout) as Record<string, unknown>;
  } catch (error) {
    const { code, signal, stderr } = error as { code?: unknown; signal?: unknown; stderr?: unknown };
    throw new Error(`the child process ended with ${String(signal ?? code)}: ${String(stderr ?? error)}`);
  }
}

const best = String(backends().find((b) => b.name === 'cpu')!.devices[0]!['isa']);
const order = ['base', 'avx2', 'avx512'];
for (const isa of order.slice(0, Math.max(order.indexOf(best), 1)))
  test.serial(`compact cases with MMMAMBA_ISA=${isa}`, async (t) => t.deepEqual(await child('check', { MMMAMBA_ISA: isa }), {}));

test.serial('compact cases with MMMAMBA_THREADS=1', async (t) => t.deepEqual(await child('check', { MMMAMBA_THREADS: '1' }), {}));
test.serial('compact cases with MMMAMBA_ONEDNN=0: the built-in GEMM', async (t) => t.deepEqual(await child('check', { MMMAMBA_ONEDNN: '0' }), {}));

for (const onednn of ['0', '1'])
  test.serial(`the bits do not depend on the number of threads (MMMAMBA_ONEDNN=${onednn})`, async (t) => {
    const one = await child('digest', { MMMAMBA_THREADS: '1', MMMAMBA_ONEDNN: onednn });
    const two = await child('digest', { MMMAMBA_THREADS: '2', MMMAMBA_ONEDNN: onednn });
    t.deepEqual(Object.keys(one).filter((k) => one[k] !== two[k]), []);
  });
