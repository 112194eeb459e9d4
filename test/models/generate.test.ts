import test from 'ava';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { memoryStats } from '../../lib/tensor/memory.js';
import { Scope, scope } from '../../lib/tensor/scope.js';
import { sync, Tensor } from '../../lib/tensor/tensor.js';
import type { ErrorCode } from '../../lib/native/errors.js';
import { batchOf, generate, generateTokens, loadModel, type Batch, type GenerateOptions, type VisionLanguageModel } from '../../lib/models/index.js';
import { fails, temporaryFolder } from '../io/_helpers.js';
import { Golden, golden, leakFree, relativeError } from './_golden.js';

const rows = [[3, 17, 44, 90, 5, 12, 61], [9], [100, 21, 22]];
const open = (name: string): Promise<VisionLanguageModel> => loadModel(golden('models', name));
const models = ['hovle_tiny', 'mmmamba_tiny_linear', 'mmmamba_tiny_hybrid'];

for (const name of models)
  test.serial(`${name}: a batch of prompts of different lengths gives what each gives alone`, (t) =>
    leakFree(t, async () => {
      using model = await open(name);
      const options: GenerateOptions = { maxTokens: 80, stopTokens: [] }; // past the first size of a key-value cache
      const together = await generateTokens(model, batchOf(rows), options);
      t.true(together.every((r) => r.length === 80));
      for (const [i, row] of rows.entries()) {
        const [alone] = await generateTokens(model, batchOf([row]), { ...options, maxTokens: 40 });
        t.deepEqual(alone, together[i]!.slice(0, 40));
      }

      using held = new Scope();
      const all = held.run(() => model.prefill(model.prepare(batchOf(rows))));
      const width = model.config.vocabulary;
      for (const [i, row] of rows.entries()) {
        const alone = held.run(() => model.prefill(model.prepare(batchOf([row]))));
        const logits = (await all.logits.toFloat32()).subarray(i * width, (i + 1) * width);
        t.true(relativeError(await alone.logits.toFloat32(), logits) < 1e-5);
        alone.state.dispose();
      }
      all.state.dispose();
    }),
  );

for (const name of models)
  test.serial(`${name}: prefill equals step by step, clones go their own way`, (t) =>
    leakFree(t, async () => {
      using model = await open(name);
      const ids = rows[0]!;
      using held = new Scope();
      const { logits, state } = held.run(() => model.prefill(model.prepare(batchOf([ids]))));
      using stepped = model.state(1);
      let last: Tensor | undefined;
      for (const id of ids) last = held.run(() => model.step([id], stepped));
      t.true(relativeError(await last!.toFloat32(), await logits.toFloat32()) < 2e-5);
      using copy = state.clone();
      const first = await held.run(() => model.step([7], copy)).toFloat32();
      held.run(() => model.step([8], copy));
      t.deepEqual(await held.run(() => model.step([7], state)).toFloat32(), first);
      t.deepEqual([state.consumed.llm[0], copy.consumed.llm[0]], [8, 9]);
      state.dispose();
      await fails(t, () => model.step([1, 2], copy), 'ERR_SHAPE', /2 tokens for a state of 1 rows/);
    }),
  );

test.serial('the state of a linear model does not grow with the context, that of attention does', (t) =>
  leakFree(t, async () => {
    const sizes = async (name: string): Promise<number[]> => {
      using model = await open(name);
      using held = new Scope();
      return [5, 300].map((n) => {
        const { state } = held.run(() => model.prefill(model.prepare(batchOf([Array.from({ length: n }, (_, i) => 3 + (i % 90))]))));
        const { bytes } = state;
        state.dispose();
        return bytes;
      });
    };
    const [linear, hybrid, teacher] = [await sizes('mmmamba_tiny_linear'), await sizes('mmmamba_tiny_hybrid'), await sizes('hovle_tiny')];
    t.is(linear[0], linear[1]);
    t.true(hybrid[1]! > hybrid[0]!);
    t.true(teacher[1]! > 4 * teacher[0]!);
  }),
);

test.serial('a linear model has no positions: after a million tokens a step takes the memory of the first', (t) =>
  leakFree(t, async () => {
    using model = await open('mmmamba_tiny_linear');
    using state = model.state(1);
    const held = async (): Promise<number> => {
      scope(() => void model.step([5], state));
      await sync();
      return memoryStats().devices['cpu']!.bytes;
    };
    const first = await held();
    for (const counts of Object.values(state.consumed)) counts.fill(1e6);
    t.is(await held(), first);
  }),
);

test.serial('a disposed model and a disposed state say so', (t) =>
  leakFree(t, async () => {
    using held = new Scope();
    const model = await open('mmmamba_tiny_hybrid');
    const inputs = held.run(() => model.prepare(batchOf([[3, 4]])));
    using state = model.state(1);
    const gone = model.state(1);
    for (let twice = 0; twice < 2; twice++) gone.dispose();
    await fails(t, () => held.run(() => model.step([3], gone)), 'ERR_DISPOSED', /a tensor of shape \[.*\] was used after dispose\(\)/);
    for (let twice = 0; twice < 2; twice++) model.dispose();
    const first = /parameter embedding_model\.llm_text_embeddings\.weight was used after dispose\(\)/;
    await fails(t, () => model.forward(inputs), 'ERR_DISPOSED', first);
    await fails(t, () => model.step([3], state), 'ERR_DISPOSED', first);
    await fails(t, () => generateTokens(model, batchOf([[3]]), { maxTokens: 1 }), 'ERR_DISPOSED', first);
  }),
);

test.serial('images in the prompt', (t) =>
  leakFree(t, async () => {
    using model = await open('mmmamba_tiny_linear');
    const file = await Golden.read('released/linear_generate_mm.safetensors');
    t.deepEqual(await generateTokens(model, file.batch(), { maxTokens: 12, stopTokens: [] }), [[...file.i32('out.tokens')]]);
  }),
);

test.serial('sampling: reproducible by seed, limited by topK and topP', (t) =>
  leakFree(t, async () => {
    using model = await open('mmmamba_tiny_linear');
    const draw = (options: Partial<GenerateOptions>): Promise<number[][]> =>
      generateTokens(model, batchOf(rows), { maxTokens: 12, stopTokens: [], temperature: 1.5, ...options });
    const greedy = await draw({ temperature: 0 });
    t.deepEqual(await draw({ seed: 5 }), await draw({ seed: 5 }));
    t.notDeepEqual(await draw({ seed: 5 }), await draw({ seed: 6 }));
    t.notDeepEqual(await draw({ seed: 5 }), greedy);
    t.deepEqual(await draw({ topK: 1, seed: 9 }), greedy);
    t.deepEqual(await draw({ topP: 1e-6, seed: 9 }), greedy);
  }),
);

test.serial('stop tokens end their row; others go on', (t) =>
  leakFree(t, async () => {
    using model = await open('hovle_tiny');
    const free = await generateTokens(model, batchOf(rows), { maxTokens: 10, stopTokens: [] });
    const stop = free[0]![3]!;
    const cut = (row: number[]): number[] => (row.includes(stop) ? row.slice(0, row.indexOf(stop)) : row);
    t.deepEqual(await generateTokens(model, batchOf(rows), { maxTokens: 10, stopTokens: [stop] }), free.map(cut));
    const steps: Int32Array[] = [];
    for await (const { tokens } of generate(model, batchOf([rows[0]!]), { maxTokens: 10, stopTokens: [stop] })) steps.push(tokens);
    t.is(steps.length, free[0]!.indexOf(stop) + 1);
    t.is(steps.at(-1)![0], stop);

    const folder = await temporaryFolder(t);
    await copyFile(golden('models/hovle_tiny/model.safetensors'), join(folder, 'model.safetensors'));
    const config = JSON.parse(await readFile(golden('models/hovle_tiny/config.json'), 'utf8')) as { llm_config: Record<string, unknown> };
    config.llm_config['eos_token_id'] = [0, stop];
    await writeFile(join(folder, 'config.json'), JSON.stringify(config));
    using several = await loadModel(folder);
    t.deepEqual(await generateTokens(several, batchOf(rows), { maxTokens: 10 }), free.map(cut));
  }),
);

test.serial('aborting, leaving early, and wrong options', (t) =>
  leakFree(t, async () => {
    using model = await open('mmmamba_tiny_hybrid');
    const controller = new AbortController();
    let seen = 0;
    await fails(
      t,
      async () => {
        for await (const step of generate(model, batchOf(rows), { maxTokens: 50, stopTokens: [], signal: controller.signal })) {
          seen = step.index + 1;
          if (seen === 3) controller.abort();
        }
      },
      'ERR_ABORTED',
      /aborted/,
    );
    t.is(seen, 3);
    for await (const { index } of generate(model, batchOf(rows), { maxTokens: 50, stopTokens: [] })) if (index === 2) break;
    for (const [options, message] of [
      [{ maxTokens: -1 }, /maxTokens: expected a non-negative integer, got -1/],
      [{ maxTokens: 1, temperature: -1 }, /temperature/],
      [{ maxTokens: 1, topP: 0 }, /topP: expected a number in \(0, 1\], got 0/],
      [{ maxTokens: 1, topK: 1.5 }, /topK/],
    ] as const)
      await fails(t, generateTokens(model, batchOf(rows), options), 'ERR_ARGUMENT', message);
    t.deepEqual(await generateTokens(model, batchOf(rows), { maxTokens: 0 }), [[], [], []]);
  }),
);

test.serial('inputs that do not fit are refused with reasons', (t) =>
  leakFree(t, async () => {
    using model = await open('hovle_tiny');
    const pixels = { pixelValues: new Float32Array(3 * 28 * 28), imageFlags: [1] };
    const cases: [Batch, RegExp, ErrorCode?][] = [
      [batchOf([[1, 171, 171, 5]], pixels), /inputIds has 2 <IMG_CONTEXT> tokens, but the images give 4 rows \(1 tiles x 4\)/],
      [batchOf([[1, 171, 5]]), /1 <IMG_CONTEXT> tokens, but the images give 0 rows/],
      [batchOf([[1, 176]]), /token 176 in row 0, column 1 is outside the vocabulary \[0, 176\)/],
      [{ ...batchOf([[1, 2]]), attentionMask: Uint8Array.of(0, 1) }, /padding before a token; pad on the right/],
      [{ ...batchOf([[1, 2]]), attentionMask: Uint8Array.of(0, 0) }, /row 0 has no token/],
      [{ size: 1, length: 0, inputIds: new Int32Array(0) }, /the prompt has no token: the batch is of 1 rows x 0/],
      [batchOf([[]]), /the prompt has no token: the batch is of 1 rows x 0/],
      [batchOf([]), /the prompt has no token: the batch is of 0 rows x 0/],
      [{ ...batchOf([[1, 2]]), size: 2 }, /inputIds has 2 entries; a batch of 2 rows x 2 has 4/, 'ERR_SHAPE'],
      [batchOf([[1, 2]], { pixelValues: new Float32Array(100), imageFlags: [1] }), /not 1 square tiles of 3 channels/, 'ERR_SHAPE'],
      [batchOf([[1, 2]], { pixelValues: new Float32Array(3 * 21 * 21), imageFlags: [1] }), /S a multiple of 14/, 'ERR_SHAPE'],
    ];
    for (const [batch, message, code = 'ERR_ARGUMENT'] of cases) await fails(t, () => void model.prepare(batch), code, message);
    using held = new Scope();
    const none = held.run(() => model.prepare(batchOf([[1, 2]], { pixelValues: Tensor.zeros([1, 3, 28, 28]), imageFlags: [0] })));
    t.is(none.pixels, null);
  }),
);
