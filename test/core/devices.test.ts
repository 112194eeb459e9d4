import test from 'ava';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../lib/native/loader.js';
import { runScript } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'mmmamba-devices-'));
test.after.always(() => rmSync(folder, { recursive: true }));
const library = join(folder, 'libmmmamba_cuda.so');

test.before(() => {
  const source = join(packageRoot, 'test', 'core', 'stub_backend.cc');
  execFileSync('g++', ['-std=c++17', '-shared', '-fPIC', '-fvisibility=hidden', '-I', join(packageRoot, 'csrc'), source, '-o', library]);
});

test('operands on different devices are refused by name, nothing is copied in silence, and work goes on', async (t) => {
  const ended = await runScript(
    `const here = mm.Tensor.from([1, 2]);
     const there = mm.Tensor.from([3, 4], [2], { device: 'cuda' });
     const attempts = {
       mixed: () => mm.add({ a: here, b: there }),
       mixedBack: () => mm.rmsNorm({ x: there, weight: here }),
       list: () => mm.concat({ x: [here, there] }),
       inPlace: () => mm.copyInto({ dst: there, src: here }),
       absent: () => mm.add({ a: there, b: there }),
     };
     const errors = Object.fromEntries(Object.entries(attempts).map(([name, call]) => {
       try { return [name, String(call())]; } catch (e) { return [name, e.name + ' ' + e.code + ' ' + e.message]; }
     }));
     const sum = [...await mm.add({ a: here, b: here }).data()];
     const auto = mm.Tensor.zeros([1], { device: 'auto' }).device;
     console.log(JSON.stringify({ errors, sum, there: [...await there.data()], where: there.device, auto }));`,
    { env: { MMMAMBA_CUDA_PATH: library } },
  );
  t.is(ended.code, 0, ended.stderr);
  const { errors, ...rest } = JSON.parse(ended.stdout) as { errors: Record<string, string> };
  t.regex(errors['mixed']!, /^MmError ERR_DEVICE add: operands lie on different devices: b on cuda:0, the call on cpu/);
  t.regex(errors['mixedBack']!, /^MmError ERR_DEVICE rmsNorm: operands lie on different devices: weight on cpu, the call on cuda:0/);
  t.regex(errors['list']!, /^MmError ERR_DEVICE concat: operands lie on different devices: x on cuda:0, the call on cpu/);
  t.regex(errors['inPlace']!, /^MmError ERR_DEVICE copyInto: operands lie on different devices: src on cpu, the call on cuda:0/);
  t.is(errors['absent'], 'MmError ERR_UNSUPPORTED add: no kernel of the cuda backend takes these operands');
  t.deepEqual(rest, { sum: [2, 4], there: [3, 4], where: 'cuda:0', auto: 'cuda:0' } as object);
});
