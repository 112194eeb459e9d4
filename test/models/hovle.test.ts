import test, { type ExecutionContext } from 'ava';
import { Scope } from '../../lib/tensor/scope.js';
import { Tensor } from '../../lib/tensor/tensor.js';
import { generate, loadModel, type VisionLanguageModel } from '../../lib/models/index.js';
import { close, Golden, golden, leakFree, relativeError } from './_golden.js';

/** Runs a case with taps and compares everything the file has. */
async function compareForward(t: ExecutionContext, model: VisionLanguageModel, file: Golden, tolerance: number): Promise<void> {
  using held = new Scope();
  const seen = new Map<string, Promise<Float32Array>>();
  const read = (name: string, value: Tensor): unknown => seen.set(name, value.toFloat32());
  const logits = held.run(() => model.forward(model.prepare(file.batch()), { tap: read }));
  read('logits', logits);
  const mask = file.u8('in.attention_mask');
  const rows = (name: string): Uint8Array | undefined => {
    const [b, l] = file.shape(`out.${name}`);
    const [size, length] = file.shape('in.input_ids');
    return b === size && l === length ? mask : undefined;
  };
  for (const name of file.names('out.')) {
    t.true(seen.has(name), `no tap ${name}`);
    const error = relativeError(await seen.get(name)!, file.f32(`out.${name}`), rows(name));
    t.true(error <= tolerance, `${file.path} ${name}: ${error}`);
  }
}

test.serial('the teacher agrees with the reference at every tap', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny'));
    for (const name of ['mm', 'mm_two_tiles', 'text', 'padded', 'long_text', 'pos_interp'])
      await compareForward(t, model, await Golden.read(`hovle/forward_${name}.safetensors`), 2e-5);
  }),
);

test.serial('a long sequence leaves no trace in later short ones (dynamic NTK is stateless)', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny'));
    for (const name of ['long_text', 'text', 'long_text'])
      await compareForward(t, model, await Golden.read(`hovle/forward_${name}.safetensors`), 2e-5);
  }),
);

test.serial('pixel shuffle behind the embedding layers, special tokens, linear rope scaling', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny_post'));
    for (const name of ['mm', 'mm_two_tiles']) await compareForward(t, model, await Golden.read(`hovle/post_forward_${name}.safetensors`), 2e-5);
  }),
);

test.serial('the teacher decodes with a key-value cache what the reference recomputes', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny'));
    for (const name of ['mm', 'text']) {
      const file = await Golden.read(`hovle/generate_${name}.safetensors`);
      const expected = [...file.i32('out.tokens')];
      const steps = file.f32('out.step_logits');
      const width = model.config.vocabulary;
      using held = new Scope();
      const { logits, state } = held.run(() => model.prefill(model.prepare(file.batch())));
      let current = logits;
      for (const [i, token] of expected.entries()) {
        const error = relativeError(await current.toFloat32(), steps.subarray(i * width, (i + 1) * width));
        t.true(error <= 5e-5, `${name} step ${i}: ${error}`);
        current = held.run(() => model.step([token], state));
      }
      await current.data();
      state.dispose();

      const tokens: number[] = [];
      for await (const step of generate(model, file.batch(), { maxTokens: 12, stopTokens: [] })) tokens.push(step.tokens[0]!);
      t.deepEqual(tokens, expected);
    }
  }),
);

test.serial('logits of single positions are rows of all logits', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny'));
    const file = await Golden.read('hovle/forward_padded.safetensors');
    using held = new Scope();
    const [all, picked] = held.run(() => {
      const inputs = model.prepare(file.batch());
      return [model.forward(inputs), model.forward(inputs, { logits: Tensor.from(Int32Array.of(3, 17), [2]) })] as const;
    });
    const whole = await all.toFloat32();
    const width = model.config.vocabulary;
    const rows = Float32Array.from([3, 17].flatMap((i) => [...whole.subarray(i * width, (i + 1) * width)]));
    t.true(relativeError(await picked.toFloat32(), rows) < 1e-6);
    await close(t, file, 'out.logits', all, 2e-5, file.u8('in.attention_mask'));
  }),
);

test.serial("decoding behind images that the embedding layers see patch by patch ('post')", (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/hovle_tiny_post'));
    const batch = (await Golden.read('hovle/post_forward_mm.safetensors')).batch();
    const next = 77;
    const longer = {
      ...batch,
      length: batch.length + 1,
      inputIds: Int32Array.of(...batch.inputIds, next),
      patchIds: Int32Array.of(...batch.patchIds!, next),
      positionIds: null,
      patchPositionIds: null,
    };
    using held = new Scope();
    const [stepped, whole] = held.run(() => {
      const { state } = model.prefill(model.prepare(batch));
      const logits = model.step([next], state);
      state.dispose();
      return [logits, model.prefill(model.prepare(longer))] as const;
    });
    whole.state.dispose();
    t.true(relativeError(await stepped.toFloat32(), await whole.logits.toFloat32()) < 2e-5);
  }),
);
