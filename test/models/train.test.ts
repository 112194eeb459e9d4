import test, { type ExecutionContext } from 'ava';
import { withGradients } from '../../lib/nn/gradients.js';
import { copyInto, crossEntropy } from '../../lib/ops/index.js';
import { Random } from '../../lib/tensor/random.js';
import { Scope } from '../../lib/tensor/scope.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { distillLayers, distillLogits, loadModel, seedStudent, type VisionLanguageModel } from '../../lib/models/index.js';
import { Golden, golden, goldenStudent, leakFree, relativeError } from './_golden.js';

/** Mean next-token loss of a case's ids. */
function lossOf(model: VisionLanguageModel, file: Golden): { loss: Tensor } {
  const inputs = model.prepare(file.batch());
  const logits = model.forward(inputs);
  const ids = file.i32('in.input_ids');
  const labels = ids.map((_, i) => ((i + 1) % inputs.llm.length === 0 || ids[i + 1]! >= model.config.vocabulary ? -100 : ids[i + 1]!));
  return { loss: crossEntropy({ logits, labels: Tensor.from(labels, logits.shape.slice(0, 2)) }).loss };
}

/**
 * Every parameter's gradient against a difference quotient along (nearly) the gradient's own direction, where the slope is
 * steepest and f32 rounding disturbs least; extrapolated, for these little models are strongly curved.
 */
async function checkSlopes(t: ExecutionContext, model: VisionLanguageModel, file: Golden): Promise<void> {
  for (const p of model.parameters()) p.trainable = true;
  using held = new Scope();
  const { gradients } = held.run(() => withGradients(model.parameters(), () => lossOf(model, file)));
  for (const p of model.parameters()) {
    const gradient = gradients.get(p);
    t.truthy(gradient, `${p.name} has no gradient`);
    const [g, w] = [await gradient!.toFloat32(), await p.value.toFloat32()];
    const norm = (x: Float32Array): number => Math.sqrt(x.reduce((s, v) => s + v * v, 0));
    const random = new Random(5);
    const spread = norm(g) / Math.sqrt(g.length);
    const mixed = g.map((x) => x + random.normal(0, spread / 2));
    const length = norm(mixed);
    const direction = mixed.map((x) => x / length);
    const slope = direction.reduce((s, d, i) => s + d * g[i]!, 0);
    const step = Math.min(3e-4 / Math.abs(slope), 1e-3);
    const lossAt = async (by: number): Promise<number> => {
      using scope = new Scope();
      const loss = scope.run(() => {
        copyInto({ dst: p.value, src: Tensor.from(w.map((x, i) => x + by * direction[i]!), p.shape) });
        return lossOf(model, file).loss;
      });
      return await loss.item();
    };
    const central = async (h: number): Promise<number> => ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
    const difference = (4 * (await central(step / 2)) - (await central(step))) / 3;
    await lossAt(0);
    t.true(Math.abs(difference - slope) <= 5e-2 * Math.abs(slope) + 5e-6 / step, `${p.name}: gradient ${slope}, difference ${difference}`);
  }
}

test.serial('gradients of all parameters of the teacher, interpolated positions included', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny'));
    await checkSlopes(t, model, await Golden.read('hovle/forward_pos_interp.safetensors'));
  }),
);

test.serial('gradients of all parameters with pixel shuffle behind the embedding layers', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny_post'));
    await checkSlopes(t, model, await Golden.read('hovle/post_forward_mm_two_tiles.safetensors'));
  }),
);

test.serial('gradients of all parameters of a hybrid with every switch on', (t) =>
  leakFree(t, async () => {
    using teacher = await loadModel(golden('models/hovle_tiny'));
    using student = seedStudent(teacher, { seed: 3, mimicInit: false, attentionLayers: [2], mixer: { useD: true, useQknorm: true, convKernel: 3 } });
    await checkSlopes(t, student, await Golden.read('hovle/forward_mm.safetensors'));
  }),
);

for (const dtype of ['bf16', 'f16'] as const)
  test.serial(`${dtype} compute: losses and gradients of the three stages stay near f32`, (t) =>
    leakFree(t, async () => {
      const file = await Golden.read('distill/stage2_mm.safetensors');
      const run = async (compute: 'f32' | typeof dtype): Promise<[number, Map<string, Float32Array>][]> => {
        using teacher = await loadModel(golden('models/hovle_tiny'), { dtype: compute });
        using student = await goldenStudent(teacher, 2);
        for (const p of student.mixerParameters()) p.trainable = true;
        using held = new Scope();
        const results = held.run(() => {
          const inputs = teacher.prepare(file.batch());
          return [distillLayers(teacher, student, inputs), distillLogits(teacher, student, inputs)];
        });
        return await Promise.all(
          results.map(async ({ loss, gradients }) => {
            t.true([...gradients.values()].every((g) => g.dtype === 'f32'));
            const read = await Promise.all([...gradients].map(async ([p, g]) => [p.name, await g.toFloat32()] as const));
            return [await loss.item(), new Map(read)] as [number, Map<string, Float32Array>];
          }),
        );
      };
      const [exact, low] = [await run('f32'), await run(dtype)];
      exact.forEach(([loss, gradients], i) => {
        t.true(Math.abs(low[i]![0] / loss - 1) < (i === 0 ? 0.05 : 0.1), `loss ${low[i]![0]} against ${loss}`);
        for (const [name, g] of gradients) {
          const error = relativeError(low[i]![1].get(name)!, g);
          t.true(error < 0.25, `${name}: ${error}`);
        }
      });
    }),
  );
