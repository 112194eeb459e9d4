import test from 'ava';
import { backends } from '../../lib/native/backends.js';
import { checks, has } from './checks.js';

const devices = ['cpu', ...(backends().find((b) => b.name === 'cuda')?.available ? ['cuda:0'] : [])];
for (const device of devices)
  for (const { name, needs, run } of checks)
    if (has(device, needs))
      test.serial(`${device}: ${name}`, async (t) => {
        await t.notThrowsAsync(run(device));
      });
