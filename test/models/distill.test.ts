import test, { type ExecutionContext } from 'ava';
import { readFile } from 'node:fs/promises';
import { memoryStats } from '../../lib/tensor/memory.js';
import { Scope } from '../../lib/tensor/scope.js';
import type { Gradients } from '../../lib/nn/gradients.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { klDiv } from '../../lib/ops/index.js';
import { convertLayout, distillLayers, distillLogits, seedStudent } from '../../lib/models/index.js';
import { close, Golden, golden, goldenStudent, leakFree, permuted, relativeError, teacherOf } from './_golden.js';

interface Trainable {
  stage1: string[];
  stage2: string[];
  stage3_linear: string[];
  stage3_hybrid: string[];
  student_state_dict_names: string[];
  stage3_hybrid_state_dict_names: string[];
}
const trainable = async (): Promise<Trainable> => JSON.parse(await readFile(golden('distill/trainable.json'), 'utf8')) as Trainable;

async function compareGradients(t: ExecutionContext, file: Golden, gradients: Gradients, tolerance: number): Promise<void> {
  const byName = new Map([...gradients].map(([p, g]) => [p.name, g]));
  for (const name of file.names('grad.')) {
    t.true(byName.has(name), `no gradient of ${name}`);
    await close(t, file, `grad.${name}`, byName.get(name)!, tolerance);
  }
}

// Case, stage, and the reference's student tensors that it starts from.
const layerCases = [
  ['stage1_seeded_mm', 1, 0],
  ['stage1_mm', 1, 1],
  ['stage1_padded', 1, 1],
  ['stage2_mm', 2, 2],
  ['stage2_text', 2, 2],
] as const;

for (const [name, stage, weights] of layerCases)
  test.serial(`${name}: heads, loss and gradients, layer by layer`, (t) =>
    leakFree(t, async () => {
      using teacher = await teacherOf();
      using student = await goldenStudent(teacher, weights);
      const names = new Set((await trainable())[`stage${stage}`]);
      const chosen = student.setTrainable((n) => names.has(n));
      t.is(chosen.length, names.size);
      const file = await Golden.read(`distill/${name}.safetensors`);
      using held = new Scope();
      const heads = new Map<string, Promise<Float32Array>>();
      const inputs = held.run(() => teacher.prepare(file.batch()));
      const result = held.run(() =>
        distillLayers(teacher, student, inputs, {
          onLayer: (label, predicted, target) => {
            heads.set(`${label}.y_pred`, permuted(predicted, [0, 2, 1, 3]));
            heads.set(`${label}.y_true`, permuted(target, [0, 2, 1, 3]));
          },
        }),
      );
      t.true(relativeError(await result.loss.toFloat32(), file.f32('out.loss')) <= 1e-5, 'loss');
      const terms = Array.from(await result.terms.toFloat32(), (x) => (x * result.labels.length) / 1000);
      t.true(relativeError(terms, file.f32('out.mse_per_layer')) <= 5e-5, 'mse per layer');
      for (const key of file.names('out.').filter((n) => n.includes('.y_')))
        t.true(relativeError(await heads.get(key)!, file.f32(`out.${key}`)) <= 5e-5, key);
      const logits = held.run(() => teacher.head(result.hidden, inputs, 'all'));
      await close(t, file, 'out.logits', logits, 5e-5, file.u8('in.attention_mask'));
      t.deepEqual([...result.gradients.keys()].map((p) => p.name).sort(), [...names].sort());
      await compareGradients(t, file, result.gradients, 1e-3);

      const plain = held.run(() => distillLayers(teacher, student, inputs, { gradients: false }));
      t.is(plain.gradients.size, 0);
      t.is(await plain.loss.item(), await result.loss.item());
    }),
  );

for (const kind of ['linear', 'hybrid'] as const)
  for (const [name, temperature] of [['mm', 1], ['text', 2]] as const)
    for (const checkpoint of [false, true])
      test.serial(`stage3_${kind}_${name}${checkpoint ? ' with checkpointing' : ''}: KL of the logits, end to end`, (t) =>
        leakFree(t, async () => {
          using teacher = await teacherOf();
          using student = await goldenStudent(teacher, 2, kind === 'hybrid' ? [0, 4] : []);
          const names = new Set((await trainable())[`stage3_${kind}`]);
          student.setTrainable((n) => names.has(n));
          const file = await Golden.read(`distill/stage3_${kind}_${name}.safetensors`);
          using held = new Scope();
          const inputs = held.run(() => teacher.prepare(file.batch()));
          await close(t, file, 'out.student_logits', held.run(() => student.forward(inputs)), 5e-5);
          await close(t, file, 'out.teacher_logits', held.run(() => teacher.forward(inputs)), 5e-5);
          const result = held.run(() => distillLogits(teacher, student, inputs, { temperature, checkpoint }));
          await close(t, file, 'out.loss', result.loss, 5e-5);
          await close(t, file, 'out.kl_per_position', result.perPosition, 5e-4);
          t.deepEqual([...result.gradients.keys()].map((p) => p.name).sort(), [...names].sort());
          await compareGradients(t, file, result.gradients, 1e-3);
        }),
      );

for (const kind of ['linear', 'hybrid'] as const)
  test.serial(`stage3_${kind}_padded: logits at tokens, and the loss of the reference's logits`, (t) =>
    leakFree(t, async () => {
      using teacher = await teacherOf();
      using student = await goldenStudent(teacher, 2, kind === 'hybrid' ? [0, 4] : []);
      const file = await Golden.read(`distill/stage3_${kind}_padded.safetensors`);
      const mask = file.u8('in.attention_mask');
      using held = new Scope();
      const inputs = held.run(() => teacher.prepare(file.batch()));
      await close(t, file, 'out.student_logits', held.run(() => student.forward(inputs)), 5e-5, mask);
      await close(t, file, 'out.teacher_logits', held.run(() => teacher.forward(inputs)), 5e-5, mask);
      const shape = file.shape('out.student_logits');
      const given = held.run(() =>
        klDiv({ student: Tensor.from(file.f32('out.student_logits'), shape), teacher: Tensor.from(file.f32('out.teacher_logits'), shape) }),
      );
      await close(t, file, 'out.loss', given.loss, 5e-5);

      // A mask takes padding out; the same positions picked before the head give the same loss and gradients.
      const names = new Set((await trainable())[`stage3_${kind}`]);
      student.setTrainable((n) => names.has(n));
      const at = [...mask.keys()].filter((i) => mask[i] === 1);
      const [masked, picked] = held.run(() => [
        distillLogits(teacher, student, inputs, { mask: Tensor.from(Float32Array.from(mask), [2, 16]) }),
        distillLogits(teacher, student, inputs, { positions: Tensor.from(Int32Array.from(at), [at.length]) }),
      ]);
      t.true(Math.abs((await masked!.loss.item()) / (await picked!.loss.item()) - 1) < 1e-6);
      for (const [p, g] of masked!.gradients) t.true(relativeError(await picked!.gradients.get(p)!.toFloat32(), await g.toFloat32()) < 1e-4, p.name);
    }),
  );

test.serial('state-dict names are the reference implementation\'s', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using linear = seedStudent(teacher, { seed: 1 });
    using hybrid = seedStudent(teacher, { seed: 1, attentionLayers: [0, 4] });
    const { student_state_dict_names: all, stage3_hybrid_state_dict_names: some } = await trainable();
    const names = (m: typeof linear): string[] => [...m.namedParameters().keys(), ...m.unused.keys()].sort();
    t.deepEqual(names(linear), [...all].sort());
    t.deepEqual(names(hybrid), [...some].sort());
  }),
);

test.serial('layer distillation holds one layer at a time', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = await goldenStudent(teacher, 1);
    student.setTrainable((n) => student.mixerParameters().some((p) => p.name === n));
    const file = await Golden.read('distill/stage1_mm.safetensors');
    using held = new Scope();
    const inputs = held.run(() => teacher.prepare(file.batch()));
    const counts = (): number[] => {
      const live: number[] = [];
      using scope = new Scope();
      scope.run(() => distillLayers(teacher, student, inputs, { onLayer: () => live.push(memoryStats().tensors) }));
      return live;
    };
    counts(); // makes what models keep, such as rotary tables
    const live = counts();
    // A layer leaves its gradients and its term behind, no intermediates.
    for (const [i, block] of student.blocks.entries()) {
      const kept = block.mixer.parameters().filter((p) => p.trainable).length + 1;
      if (i + 1 < live.length) t.is(live[i + 1]! - live[i]!, kept);
    }
  }),
);

test.serial('the fused layout has the same gradients, row for row', (t) =>
  leakFree(t, async () => {
    using teacher = await teacherOf();
    using student = await goldenStudent(teacher, 2);
    using fused = convertLayout(student, 'fused');
    const file = await Golden.read('distill/stage2_mm.safetensors');
    using held = new Scope();
    const inputs = held.run(() => teacher.prepare(file.batch()));
    for (const m of [student, fused]) for (const p of m.mixerParameters()) p.trainable = true;
    const [a, b] = held.run(() => [distillLayers(teacher, student, inputs), distillLayers(teacher, fused, inputs)]);
    const byName = new Map([...a!.gradients].map(([p, g]) => [p.name, g]));
    for (const [p, g] of b!.gradients) {
      if (!p.name.endsWith('wvkqgdt.weight')) continue;
      const names = ['v_proj', 'k_proj', 'q_proj', 'g_proj', 'in_proj'].map((n) => p.name.replace('wvkqgdt', n));
      const parts = await Promise.all(names.map((n) => byName.get(n)!.toFloat32()));
      t.true(relativeError(await g.toFloat32(), Float32Array.from(parts.flatMap((x) => [...x]))) < 1e-5, p.name);
    }
  }),
);
