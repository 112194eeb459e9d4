import test, { type ExecutionContext } from 'ava';
import { mul, reshape, slice, sum } from '../../lib/ops/index.js';
import { Scope, scope } from '../../lib/tensor/scope.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { Tape } from '../../lib/autograd/tape.js';
import type { SequenceContext } from '../../lib/models/context.js';
import type { MambaMixer } from '../../lib/models/mmmamba/mixer.js';
import { convertLayout, generate, loadModel, type RecurrentState, type VisionLanguageModel } from '../../lib/models/index.js';
import { close, Golden, golden, leakFree, permuted, relativeError } from './_golden.js';

const tolerance = 5e-5;

/** Compares a recurrent state with `out.<prefix>.<layer>.*`. */
async function compareState(t: ExecutionContext, model: VisionLanguageModel, file: Golden, prefix: string, state: RecurrentState): Promise<void> {
  const check = async (name: string, actual: Float32Array | Promise<Float32Array>): Promise<void> => {
    const error = relativeError(await actual, file.f32(`out.${prefix}.${name}`));
    t.true(error <= tolerance, `${file.path} ${prefix}.${name}: ${error}`);
  };
  const length = state.consumed.llm[0]!;
  for (const [i, block] of model.blocks.entries()) {
    const layer = state.layers[i]!;
    if (layer.type === 'mamba2') {
      await check(`${block.label}.conv`, layer.conv!.toFloat32());
      await check(`${block.label}.ssm`, layer.ssm.toFloat32());
      continue;
    }
    for (const part of ['key', 'value'] as const) {
      const used = scope(() => slice(layer[part], 1, 0, length));
      await check(`${block.label}.${part}`, permuted(used, [0, 2, 1, 3]));
      used.dispose();
    }
  }
}

for (const kind of ['linear', 'hybrid'])
  for (const layout of ['fused', 'separate'] as const) {
    const open = async (): Promise<VisionLanguageModel> => {
      const model = await loadModel(golden(`models/mmmamba_tiny_${kind}`));
      if (layout === 'fused') return model;
      const separate = convertLayout(model, layout);
      model.dispose();
      return separate;
    };

    test.serial(`${kind}, ${layout} layout: prefill gives the reference's logits and states`, (t) =>
      leakFree(t, async () => {
        using model = await open();
        for (const name of ['mm', 'text', 'mm_two_tiles']) {
          const file = await Golden.read(`released/${kind}_prefill_${name}.safetensors`);
          using held = new Scope();
          const { logits, state } = held.run(() => model.prefill(model.prepare(file.batch()), { logits: 'all' }));
          await close(t, file, 'out.logits', logits, tolerance);
          if (file.names('out.state.').length) await compareState(t, model, file, 'state', state);
          state.dispose();
          const forward = held.run(() => model.forward(model.prepare(file.batch())));
          t.deepEqual(await forward.data(), await logits.data());
        }
      }),
    );

    test.serial(`${kind}, ${layout} layout: decoding from nothing, token by token`, (t) =>
      leakFree(t, async () => {
        using model = await open();
        const file = await Golden.read(`released/${kind}_decode_from_zero_text.safetensors`);
        const ids = file.i32('in.input_ids');
        const expected = file.f32('out.logits');
        const width = model.config.vocabulary;
        using held = new Scope();
        using state = model.state(1);
        for (const [i, id] of ids.entries()) {
          const logits = held.run(() => model.step([id], state));
          const error = relativeError(await logits.toFloat32(), expected.subarray(i * width, (i + 1) * width));
          t.true(error <= tolerance, `step ${i}: ${error}`);
          for (const n of [1, 13]) if (i + 1 === n) await compareState(t, model, file, `state${n}`, state);
        }
      }),
    );

    test.serial(`${kind}, ${layout} layout: prefill and 12 greedy steps`, (t) =>
      leakFree(t, async () => {
        using model = await open();
        for (const name of ['mm', 'text']) {
          const file = await Golden.read(`released/${kind}_generate_${name}.safetensors`);
          const expected = [...file.i32('out.tokens')];
          const steps = file.f32('out.step_logits');
          const width = model.config.vocabulary;
          using held = new Scope();
          const first = held.run(() => model.prefill(model.prepare(file.batch())));
          let current = first.logits;
          for (const [i, token] of expected.entries()) {
            const error = relativeError(await current.toFloat32(), steps.subarray(i * width, (i + 1) * width));
            t.true(error <= tolerance, `${name} step ${i}: ${error}`);
            current = held.run(() => model.step([token], first.state));
          }
          await compareState(t, model, file, 'state_final', first.state);
          first.state.dispose();

          const tokens: number[] = [];
          for await (const step of generate(model, file.batch(), { maxTokens: 12, stopTokens: [] })) tokens.push(step.tokens[0]!);
          t.deepEqual(tokens, expected);
        }
      }),
    );
  }

test.serial('one mixer: intermediates, states and all gradients', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/mmmamba_tiny_linear'));
    const file = await Golden.read('released/mixer_layer2.safetensors');
    const block = model.blocks.find((b) => b.label === 'llm.0')!;
    const mixer = block.mixer as MambaMixer;
    const parameters = mixer.parameters();
    for (const p of parameters) p.trainable = true;
    using held = new Scope();
    const [batch, length] = file.shape('in.hidden') as [number, number];
    const seen = new Map<string, Promise<Float32Array>>();
    const leaf = held.run(() => Tensor.from(file.f32('in.hidden'), file.shape('in.hidden')));
    leaf.requiresGrad = true;
    const context = { batch, length, lengths: null, padding: null } as unknown as SequenceContext;
    const { out, grads } = held.run(() =>
      scope(() => {
        using tape = new Tape();
        const { out, loss } = tape.record(() => {
          const y = mixer.heads(leaf, context, (name, value) => seen.set(name, value.toFloat32()));
          const out = mixer.output.forward(reshape(y, leaf.shape));
          return { out, loss: sum({ x: mul({ a: out, b: Tensor.from(file.f32('dout.out'), out.shape) }) }) };
        });
        return { out, grads: tape.backward(loss, [leaf, ...parameters.map((p) => p.value)]) };
      }),
    );
    await close(t, file, 'out.out', out, 2e-5);
    for (const [name, value] of seen) t.true(relativeError(await value, file.f32(`out.${name}`)) <= 2e-5, name);
    await close(t, file, 'grad.hidden', grads[0]!, 1e-4);
    for (const [i, p] of parameters.entries()) await close(t, file, `grad.${p.name.split('.attention.')[1]}`, grads[i + 1]!, 1e-4);

    const { state } = held.run(() => mixer.prefill(leaf, context));
    await close(t, file, 'out.state.conv', state.conv!, 2e-5);
    await close(t, file, 'out.state.ssm', state.ssm, 2e-5);
    for (const x of [state.conv!, state.ssm, state.rates, state.weight, state.taps!]) x.dispose();
  }),
);
