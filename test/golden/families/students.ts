import { join } from 'node:path';
import { readSafetensors } from '../../../lib/io/safetensors.js';
import { rawState } from '../../../lib/models/load.js';
import { seedStudent } from '../../../lib/models/seed.js';
import { readTensors, type Golden, type Handler } from '../golden.js';
import { judgeForward } from './models.js';
import { studentOf, withModel } from './support.js';

const forward: Handler = (g) =>
  withModel(g, g.text('base'), async (teacher) => {
    using student = await studentOf(g, teacher);
    await judgeForward(g, student);
  });

// The teacher of the folder's students. Their cases do not name it.
const teacherFolder = 'models/hovle_tiny';

// What seeding draws at random: no other generator gives the same numbers, but their ranges are known.
const drawn: Record<string, (value: number, fanIn: number, fanOut: number) => boolean> = {
  'g_proj.weight': (w, fanIn, fanOut) => Math.abs(w) <= 2 ** -2.5 * Math.sqrt(6 / (fanIn + fanOut)),
  // log-uniform in [0.001, 0.1] behind softplus
  dt_bias: (b) => Math.log1p(Math.exp(b)) >= 0.00099 && Math.log1p(Math.exp(b)) <= 0.101,
};

/** Freshly seeded mixers equal the file's but for what is drawn at random; overlays on them fit. */
async function weights(g: Golden): Promise<void> {
  await withModel(g, teacherFolder, async (teacher) => {
    using student = seedStudent(teacher, { seed: 1 });
    const known = student.namedParameters();
    const { tensors } = await readSafetensors(join(g.options.root, g.entry.file));
    for (const [name, { shape }] of tensors) g.exactly(`shape of ${name}`, known.get(name)?.shape, shape);
    if (!/seeded/.test(g.entry.file) || g.options.dtype !== 'f32') return;
    const seeded = await rawState(student);
    for (const [name, { data, shape }] of await readTensors(join(g.options.root, g.entry.file))) {
      const raw = seeded.get(name);
      if (!raw) continue;
      const own = new Float32Array(raw.data.buffer, raw.data.byteOffset, raw.data.byteLength / 4);
      const range = Object.entries(drawn).find(([end]) => name.endsWith(end))?.[1];
      if (!range) {
        if (!own.every((v, i) => v === data[i])) g.wrong(`${name}: seeding gives other values`);
        continue;
      }
      const within = (list: ArrayLike<number>): boolean => Array.from(list).every((v) => range(v, shape[1] ?? 0, shape[0]!));
      if (!within(own)) g.wrong(`${name}: seeding draws outside the range`);
      if (!within(data)) g.wrong(`${name}: the file's values are outside the range`);
    }
  });
}

export const students: Record<string, Handler> = { student_weights: weights, student_forward: forward };
