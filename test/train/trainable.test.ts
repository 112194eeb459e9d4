import test from 'ava';
import { trainableByPreset, trainableIn } from '../../lib/train/trainable.js';

const layer = 'language_model.model.layers.3.attention';
const introduced = [
  'dt_bias', 'A_log_bias', 'D', 'conv1d.weight', 'conv1d.bias', 'in_proj.weight', 'g_norm.weight', 'g_proj.weight', 'q_norm.weight', 'k_norm.bias',
];
const inherited = ['q_proj.weight', 'k_proj.weight', 'v_proj.weight'];
const others = [
  `${layer}.wqkv.weight`, `${layer}.wo.weight`, 'language_model.model.layers.3.attention_norm.weight',
  'language_model.model.layers.3.ffn_norm.weight',
  'language_model.model.layers.3.feed_forward.w1.weight', 'embedding_model.pixel_shuffle_proj.0.weight', 'embedding_model.llm_text_embeddings.weight',
  'embedding_model.vision_embeddings.patch_embedding.bias', 'language_model.output.weight', 'language_model.model.norm.weight',
];
const mixer = [...introduced, ...inherited, 'o_proj.weight'];
const trained = (choose: (name: string) => boolean): string[] => mixer.filter((name) => choose(`${layer}.${name}`));

test('stages 1 and 2 train what is new, then the inherited projections too', (t) => {
  for (const preset of ['paper', 'reference'] as const) {
    t.deepEqual(trained(trainableByPreset(1, preset)), introduced);
    t.deepEqual(trained(trainableByPreset(2, preset)), [...introduced, ...inherited]);
  }
});

test('stage 3 trains the mixer but W_O; the reference leaves out dt_bias and A_log_bias', (t) => {
  t.deepEqual(trained(trainableByPreset(3, 'paper')), [...introduced, ...inherited]);
  t.deepEqual(trained(trainableByPreset(3, 'reference')), [...introduced.slice(2), ...inherited]);
  t.deepEqual(trained(trainableIn(3, [])), mixer);
});

test('nothing outside the mixers trains in any stage', (t) => {
  for (const stage of [1, 2, 3] as const)
    for (const preset of ['paper', 'reference', 'emoji'] as const) t.deepEqual(others.filter(trainableByPreset(stage, preset)), []);
});
