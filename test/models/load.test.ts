import test from 'ava';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { Random } from '../../lib/tensor/random.js';
import { Scope } from '../../lib/tensor/scope.js';
import { parseModelConfig } from '../../lib/models/config-file.js';
import { batchOf, loadModel, placementOf, saveModel, seedStudent, VisionLanguageModel } from '../../lib/models/index.js';
import { fails, temporaryFolder } from '../io/_helpers.js';
import { Golden, golden, leakFree, relativeError, teacherOf } from './_golden.js';

for (const name of ['hovle_tiny', 'hovle_tiny_post', 'mmmamba_tiny_linear', 'mmmamba_tiny_hybrid'])
  test.serial(`${name}: saving what was loaded changes no tensor and no key`, (t) =>
    leakFree(t, async () => {
      const folder = join(await temporaryFolder(t), 'model');
      using model = await loadModel(golden('models', name));
      await saveModel(model, folder, { files: [['note.txt', [Buffer.from('x')]]] });
      const before = await readSafetensors(golden('models', name, 'model.safetensors'));
      const after = await readSafetensors(join(folder, 'model.safetensors'));
      t.deepEqual([...after.tensors.keys()].sort(), [...before.tensors.keys()].sort());
      for (const [key, raw] of before.tensors) t.deepEqual(after.tensors.get(key), raw, key);
      const json = async (path: string): Promise<Record<string, Record<string, unknown>>> => JSON.parse(await readFile(path, 'utf8')) as never;
      const [old, now] = [await json(golden('models', name, 'config.json')), await json(join(folder, 'config.json'))];
      t.like(now, { ...old, architectures: now['architectures']! });
      t.is(await readFile(join(folder, 'note.txt'), 'utf8'), 'x');
    }),
  );

test.serial('a student folder says what it is: layers, layout, switches', (t) =>
  leakFree(t, async () => {
    const folder = join(await temporaryFolder(t), 'student');
    using teacher = await teacherOf();
    using student = seedStudent(teacher, { seed: 2, attentionLayers: [0], mixer: { useD: true } });
    await saveModel(student, folder);
    using loaded = await loadModel(folder);
    t.deepEqual(loaded.config.mixer, student.config.mixer);
    t.deepEqual(loaded.blockTypes, ['mha', 'mamba2', 'mamba2', 'mamba2', 'mamba2']);
    using held = new Scope();
    const [a, b] = held.run(() => [student, loaded].map((m) => m.forward(m.prepare(batchOf([[4, 5, 6]])))));
    t.deepEqual(await b!.data(), await a!.data());
  }),
);

test.serial('a file that does not fit is refused with all names at once', (t) =>
  leakFree(t, async () => {
    const folder = await temporaryFolder(t);
    await copyFile(golden('models/hovle_tiny/config.json'), join(folder, 'config.json'));
    const { tensors } = await readSafetensors(golden('models/hovle_tiny/model.safetensors'));
    const one = tensors.get('language_model.model.norm.weight')!;
    tensors.delete('language_model.output.weight');
    tensors.set('language_model.lm_head.weight', one);
    tensors.set('embedding_model.encoder.0.ffn_norm.weight', { ...one, shape: [8, 8] });
    await writeSafetensors(join(folder, 'model.safetensors'), tensors);
    const lines = [
      'missing \\(1\\):', '  language_model.output.weight',
      'unexpected \\(1\\):', '  language_model.lm_head.weight',
      'of another shape \\(1\\):', '  embedding_model.encoder.0.ffn_norm.weight: \\[8, 8\\] instead of \\[64\\]',
    ];
    await fails(t, loadModel(folder), 'ERR_SHAPE', new RegExp(lines.join('\n')));
    await fails(t, loadModel(join(folder, 'absent')), 'ERR_FILE_IO', /absent/);
  }),
);

test.serial('a file that is truncated, overlaps or claims too much is refused, and a model that lives goes on', (t) =>
  leakFree(t, async () => {
    const folder = await temporaryFolder(t);
    await copyFile(golden('models/hovle_tiny/config.json'), join(folder, 'config.json'));
    using model = await loadModel(golden('models/hovle_tiny'));
    using held = new Scope();
    const logits = (): Promise<Float32Array> => held.run(() => model.forward(model.prepare(batchOf([[4, 5, 6]])))).toFloat32();
    const before = await logits();
    const good = await readFile(golden('models/hovle_tiny/model.safetensors'));
    const length = Number(good.readBigUInt64LE());
    const header = JSON.parse(good.toString('utf8', 8, 8 + length)) as Record<string, { data_offsets: number[] }>;
    const [first, second] = Object.keys(header).filter((name) => name !== '__metadata__');
    const overlapping = structuredClone(header);
    overlapping[second!]!.data_offsets = [...header[first!]!.data_offsets];
    const claiming = Buffer.from(good);
    claiming.writeBigUInt64LE(2n ** 40n);
    const headed = (value: unknown): Buffer => {
      const text = Buffer.from(JSON.stringify(value));
      const size = Buffer.alloc(8);
      size.writeBigUInt64LE(BigInt(text.length));
      return Buffer.concat([size, text, good.subarray(8 + length)]);
    };
    const files: [Buffer, RegExp][] = [
      [good.subarray(0, good.length - 5), /model\.safetensors.*truncated: tensor "/],
      [headed(overlapping), /model\.safetensors.*(overlap|data_offsets span)/],
      [claiming, /model\.safetensors.*header claims 1099511627776 bytes/],
    ];
    for (const [content, message] of files) {
      await writeFile(join(folder, 'model.safetensors'), content);
      await fails(t, loadModel(folder), 'ERR_FILE_FORMAT', message);
    }
    await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map: { [first!]: '../../model.safetensors' } }));
    await fails(t, loadModel(folder), 'ERR_FILE_FORMAT', /weight_map of ".*" is "\.\.\/\.\.\/model\.safetensors"; .*plain file name/);
    t.deepEqual(await logits(), before);
  }),
);

test.serial('contradictory configurations are refused', async (t) => {
  const text = await readFile(golden('models/hovle_tiny/config.json'), 'utf8');
  const folder = await temporaryFolder(t);
  const cases: [(c: Record<string, Record<string, unknown>>) => void, RegExp][] = [
    [(c) => (c['llm_config']!['num_attention_heads'] = 7), /hidden_size 64 is no multiple of num_attention_heads 7/],
    [(c) => (c['llm_config']!['num_key_value_heads'] = 3), /num_attention_heads 4 is no multiple of num_key_value_heads 3/],
    [(c) => (c['llm_config']!['layers_block_type'] = ['mha']), /layers_block_type has 1 entries for 3 layers/],
    [(c) => (c['llm_config']!['layers_block_type'] = ['mha', 'mha', 'lstm']), /layers_block_type/],
    [(c) => (c['embedding_config']!['hidden_size'] = 32), /hidden_size 32 differs from the language model's 64/],
    [(c) => (c['embedding_config']!['image_size'] = 30), /image_size 30 is no multiple of patch_size 7/],
    [(c) => (c['embedding_config']!['image_size'] = 21), /image_size \/ patch_size is 3; pixel shuffle needs an even number/],
    [(c) => (c['embedding_config']!['img_context_token_id'] = 200), /img_context_token_id 200 is outside the 176 rows/],
    [(c) => (c['embedding_config']!['special_token_maps'] = { '<x>': 5 }), /special token ids lie in \[176, 177\)/],
    [(c) => (c['llm_config']!['tie_word_embeddings'] = true), /tie_word_embeddings/],
    [(c) => (c['llm_config']!['rope_scaling'] = { factor: 2 }), /rope_scaling needs a type/],
    [(c) => (c['llm_config']!['rope_scaling'] = { type: 'linear', rope_type: 'dynamic', factor: 2 }), /type 'linear' and the rope_type 'dynamic'/],
    [(c) => (c['llm_config']!['rope_scaling'] = { rope_type: 'dynamic' }), /rope_scaling of type 'dynamic' needs a factor/],
    [(c) => (c['llm_config']!['head_dim'] = 32), /head_dim 32 differs from hidden_size \/ num_attention_heads, 16/],
    [(c) => (c['downsample_ratio'] = 1 as never), /downsample_ratio: .*expected 0\.5/],
    [(c) => delete c['llm_config']!['vocab_size'], /vocab_size/],
    [(c) => (c['mixer_config'] = { use_cnov: true }), /use_cnov/],
  ];
  for (const [change, message] of cases) {
    const config = JSON.parse(text) as Record<string, Record<string, unknown>>;
    change(config);
    await fails(t, () => parseModelConfig(config), 'ERR_CONFIG', message);
    await writeFile(join(folder, 'config.json'), JSON.stringify(config));
    await fails(t, loadModel(folder), 'ERR_CONFIG', message);
  }
});

test('keys that say what goes without saying', async (t) => {
  const config = JSON.parse(await readFile(golden('models/hovle_tiny/config.json'), 'utf8')) as Record<string, Record<string, unknown>>;
  for (const key of ['embedding_config', 'llm_config']) Object.assign(config[key]!, { head_dim: 16, rope_scaling: null });
  const { raw: _, ...plain } = parseModelConfig(config);
  for (const scaling of [{ rope_type: 'default' }, { type: 'default', rope_type: 'default', factor: 1 }]) {
    config['llm_config']!['rope_scaling'] = scaling;
    const { raw: __, ...same } = parseModelConfig(config);
    t.deepEqual(same, plain);
  }
});

test.serial('random initialisation is reproducible, and such a model saves and loads', (t) =>
  leakFree(t, async () => {
    const folder = join(await temporaryFolder(t), 'scratch');
    const config = parseModelConfig(JSON.parse(await readFile(golden('models/hovle_tiny/config.json'), 'utf8')));
    using a = VisionLanguageModel.initialised(config, placementOf(), new Random(4));
    using b = VisionLanguageModel.initialised(config, placementOf(), new Random(4));
    await saveModel(a, folder);
    using c = await loadModel(folder);
    using held = new Scope();
    const [x, y, z] = held.run(() => [a, b, c].map((m) => m.forward(m.prepare(batchOf([[4, 5, 6]])))));
    t.deepEqual(await y!.data(), await x!.data());
    t.deepEqual(await z!.data(), await x!.data());
  }),
);

const cases = [
  ['hovle_tiny', 'hovle/forward_mm'],
  ['mmmamba_tiny_linear', 'released/linear_prefill_mm'],
  ['mmmamba_tiny_hybrid', 'released/hybrid_prefill_mm'],
] as const;

for (const dtype of ['bf16', 'f16'] as const)
  test.serial(`${dtype} compute stays near f32`, (t) =>
    leakFree(t, async () => {
      for (const [folder, path] of cases) {
        using model = await loadModel(golden('models', folder), { dtype });
        const file = await Golden.read(`${path}.safetensors`);
        using held = new Scope();
        const expected = file.f32('out.logits');
        const { logits, state } = held.run(() => model.prefill(model.prepare(file.batch()), { logits: 'all' }));
        const norm = (x: ArrayLike<number>): number => Math.sqrt(Array.from(x).reduce((s, v) => s + v * v, 0));
        const got = await logits.toFloat32();
        t.is(logits.dtype, dtype);
        t.true(norm(got.map((v, i) => v - expected[i]!)) / norm(expected) < 0.09, folder);
        const next = held.run(() => model.step([5], state));
        t.true((await next.toFloat32()).every(Number.isFinite));
        t.true(relativeError(got, expected) < 0.3);
        state.dispose();
      }
    }),
  );
