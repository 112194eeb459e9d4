import test from 'ava';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { packageRoot } from '../../lib/native/loader.js';

test('lib/ops/generated.ts is what csrc/ops declares', async (t) => {
  await t.notThrowsAsync(promisify(execFile)(process.execPath, [join(packageRoot, 'scripts', 'generate-ops.mjs'), '--check']));
});
