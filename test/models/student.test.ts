import test from 'ava';
import { fill } from '../../lib/ops/index.js';
import { Scope } from '../../lib/tensor/scope.js';
import type { Tensor } from '../../lib/tensor/tensor.js';
import { batchOf, convertLayout, loadModel, seedStudent, withAttentionLayers, type MixerConfig, type VisionLanguageModel } from '../../lib/models/index.js';
import { fails } from '../io/_helpers.js';
import { Golden, golden, goldenStudent, leakFree, relativeError, teacherOf } from './_golden.js';

for (const [kind, layers] of [['linear', []], ['hybrid', [0, 4]]] as const)
  test.serial(`${kind}: the seeded student agrees with the reference`, (t) =>
    leakFree(t, async () => {
      using teacher = await teacherOf();
      using student = await goldenStudent(teacher, 0, layers);
      for (const name of ['mm', 'text']) {
        const file = await Golden.read(`student/seeded_${kind}_forward_${name}.safetensors`);
        using held = new Scope();
        const seen = new Map<string, Promise<Float32Array>>();
        const tap = (n: string, value: Tensor): unknown => seen.set(n, value.toFloat32());
        tap('logits', held.run(() => student.forward(student.prepare(file.batch()), { tap })));
        for (const n of file.names('out.')) t.true(relativeError(await seen.get(n)!, file.f32(`out.${n}`)) <= 5e-5, `${name} ${n}`);
      }
    }),
  );

const valuesOf = async (model: VisionLanguageModel): Promise<Map<string, Float32Array>> => {
  const state = model.stateDict();
  const values = new Map<string, Float32Array>();
  for (const [name, value] of state) {
    values.set(name, await value.toFloat32());
    value.dispose();
  }
  return values;
};

test.serial('seeding: deterministic parts are the reference\'s, random parts follow their distributions', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = seedStudent(teacher, { seed: 7 });
    using again = seedStudent(teacher, { seed: 7 });
    using hybrid = seedStudent(teacher, { seed: 7, attentionLayers: [1] });
    const reference = await Golden.read('student/student_seeded.safetensors');
    const values = await valuesOf(student);
    t.deepEqual(await valuesOf(again), values);
    const mixed = await valuesOf(hybrid);
    const dt: number[] = [];
    for (const name of reference.names('')) {
      const value = values.get(name)!;
      if (name.endsWith('g_proj.weight')) {
        const bound = 2 ** -2.5 * Math.sqrt(6 / 128);
        t.true(value.every((x) => Math.abs(x) <= bound) && Math.max(...value) > 0.9 * bound, name);
      } else if (name.endsWith('dt_bias')) dt.push(...Array.from(value, (x) => Math.log1p(Math.exp(x))));
      else t.deepEqual(value, reference.f32(name), name);
      if (!name.includes('encoder.1.')) t.deepEqual(mixed.get(name), value, `${name} depends on other layers`);
    }
    t.true(dt.every((x) => x > 0.00099 && x < 0.101) && Math.max(...dt) > 5 * Math.min(...dt));
    t.true(mixed.has('embedding_model.encoder.1.attention.wqkv.weight'));
  }),
);

test.serial('seeding from scratch: own projections, Mamba-2\'s defaults', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = seedStudent(teacher, { seed: 1, inheritQkv: false, mimicInit: false });
    using seeded = seedStudent(teacher, { seed: 1 });
    const [values, inherited] = [await valuesOf(student), await valuesOf(seeded)];
    const at = (name: string): Float32Array => values.get(`language_model.model.layers.1.attention.${name}`)!;
    t.notDeepEqual(at('q_proj.weight'), inherited.get('language_model.model.layers.1.attention.q_proj.weight'));
    t.true(at('q_proj.weight').every((x) => Math.abs(x) <= 1 / 8));
    t.true(at('dt_bias').every((x) => x === 0));
    t.true(at('A_log_bias').every((x) => x >= 0 && x <= Math.log(16)));
    t.true(at('conv1d.weight').some((x) => x !== 0 && x !== 1));
    t.deepEqual(at('o_proj.weight'), inherited.get('language_model.model.layers.1.attention.o_proj.weight'));
  }),
);

const prompt = batchOf([[3, 17, 44, 90, 5, 12, 61], [9, 8, 7, 6, 5, 4, 3]]);

const switches: Partial<MixerConfig>[] = [
  {}, { useConv: false }, { useGnorm: false }, { useA: false }, { useD: true }, { useQknorm: true }, { convKernel: 4 },
  { useConv: false, useGnorm: false, useA: false, useD: true, useQknorm: true },
];
for (const mixer of switches)
  test.serial(`mixer switches ${JSON.stringify(mixer)}: both layouts and the recurrent form agree`, (t) =>
    leakFree(t, async () => {
      using teacher = await teacherOf();
      using student = seedStudent(teacher, { seed: 3, mixer, mimicInit: false, attentionLayers: [1] });
      using fused = convertLayout(student, 'fused');
      using back = convertLayout(fused, 'separate');
      t.deepEqual(await valuesOf(back), await valuesOf(student), 'layouts convert without loss');
      using held = new Scope();
      const logits = held.run(() => student.forward(student.prepare(prompt)));
      const expected = await logits.toFloat32();
      t.true(expected.every(Number.isFinite));
      t.true(relativeError(await held.run(() => fused.forward(fused.prepare(prompt))).toFloat32(), expected) < 1e-5);
      for (const model of [student, fused]) {
        using state = model.state(2);
        const width = model.config.vocabulary;
        for (let i = 0; i < 7; i++) {
          const step = held.run(() => model.step([prompt.inputIds[i]!, prompt.inputIds[7 + i]!], state));
          const rows = Float32Array.from([i, 7 + i].flatMap((r) => [...expected.subarray(r * width, (r + 1) * width)]));
          t.true(relativeError(await step.toFloat32(), rows) < 2e-5, `step ${i}`);
        }
      }
    }),
  );

test.serial('attention layers chosen after the mixers were trained', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = await goldenStudent(teacher, 2);
    using hybrid = withAttentionLayers(student, teacher, [0, 4]);
    using expected = await goldenStudent(teacher, 2, [0, 4]);
    t.deepEqual(await valuesOf(hybrid), await valuesOf(expected));
    t.deepEqual(hybrid.blockTypes, ['mha', 'mamba2', 'mamba2', 'mamba2', 'mha']);
    using all = withAttentionLayers(student, teacher, [0, 1, 2, 3, 4]);
    using held = new Scope();
    const [a, b] = held.run(() => [all.forward(all.prepare(prompt)), teacher.forward(teacher.prepare(prompt))]);
    t.deepEqual(await a!.data(), await b!.data());
    await fails(t, () => withAttentionLayers(hybrid, teacher, [0]), 'ERR_ARGUMENT', /layer 4 of the student is softmax attention/);
    const numbers = /layer 5 does not exist; 2 embedding layers and 3 language layers are numbered 0 to 4/;
    await fails(t, () => seedStudent(teacher, { seed: 1, attentionLayers: [5] }), 'ERR_ARGUMENT', numbers);
    await fails(t, () => seedStudent(teacher, { seed: 1, attentionLayers: [1, 1] }), 'ERR_ARGUMENT', /names a layer twice/);
    await fails(t, () => seedStudent(hybrid, { seed: 1 }), 'ERR_ARGUMENT', /teacher must have softmax attention in every layer/);
  }),
);

test.serial('attention layers chosen between two stages under bf16: masters go along, for what is trainable alone', (t) =>
  leakFree(t, async () => {
    using teacher = await loadModel(golden('models/hovle_tiny'), { dtype: 'bf16' });
    using student = seedStudent(teacher, { seed: 1 });
    const projections = (name: string): boolean => /[qkv]_proj/.test(name);
    for (const p of student.setTrainable(projections)) fill({ x: p.master }, { value: 1.2345678 }); // between two numbers of bf16
    using hybrid = withAttentionLayers(student, teacher, [0, 4]);
    for (const p of hybrid.parameters()) {
      t.is(p.trainable, projections(p.name), p.name);
      if (!p.trainable) t.is(p.master, p.value, p.name);
    }
    const trained = hybrid.setTrainable((name) => projections(name) && !name.includes('v_proj'));
    t.is(trained.length, 6);
    for (const p of trained) {
      t.deepEqual([p.value.dtype, p.master.dtype], ['bf16', 'f32'], p.name);
      t.true((await p.master.toFloat32()).every((x) => x === Math.fround(1.2345678)), p.name);
    }
    using shown = withAttentionLayers(student, teacher, [0, 4], () => false);
    for (const p of [...shown.parameters(), ...hybrid.parameters().filter(({ name }) => name.includes('v_proj'))])
      t.is(p.master, p.value, p.name);
  }),
);

test.serial('sharing: training one model leaves the other alone', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = seedStudent(teacher, { seed: 1 });
    const [name] = [...student.namedParameters().keys()].filter((n) => n.endsWith('w1.weight'));
    const own = student.namedParameters().get(name!)!;
    const before = await teacher.namedParameters().get(name!)!.value.toFloat32();
    own.trainable = true;
    fill({ x: own.master }, { value: 5 });
    t.deepEqual(await teacher.namedParameters().get(name!)!.value.toFloat32(), before);
    t.true((await own.value.toFloat32()).every((x) => x === 5));
  }),
);
