import { z } from 'zod';
import { loadJsonConfigAndRaw } from '../io/config.js';
import { MmError } from '../native/errors.js';
import { defaultMixer, type BlockType, type ModelConfig, type StackConfig } from './config.js';

/*
 * config.json as a model's folder has it, checked. Apart from config.ts, which everything that holds a model imports: zod takes
 * longer to load than all of this library, and only reading a folder needs it.
 */

const count = z.int().positive();

const ropeScaling = z
  .looseObject({
    type: z.enum(['default', 'linear', 'dynamic']).nullish(),
    rope_type: z.enum(['default', 'linear', 'dynamic']).nullish(),
    factor: z.number().positive().nullish(),
  })
  .nullish();

const stack = {
  hidden_size: count,
  num_attention_heads: count,
  head_dim: count.nullish(),
  num_key_value_heads: count.optional(),
  num_hidden_layers: count,
  intermediate_size: count,
  max_position_embeddings: count,
  rope_theta: z.number().positive(),
  rope_scaling: ropeScaling,
  rms_norm_eps: z.number().positive(),
  hidden_act: z.literal('silu').optional(),
  layers_block_type: z.array(z.enum(['mha', 'mamba2'])).optional(),
};
type Stack = z.output<z.ZodObject<typeof stack>>;

const no = z.literal(false).optional();

const mixerSchema = z.strictObject({
  layout: z.enum(['separate', 'fused']).optional(),
  use_conv: z.boolean().default(defaultMixer.useConv),
  use_gnorm: z.boolean().default(defaultMixer.useGnorm),
  use_A: z.boolean().default(defaultMixer.useA),
  use_D: z.boolean().default(defaultMixer.useD),
  use_qknorm: z.boolean().default(defaultMixer.useQknorm),
  conv_kernel: z.int().min(2).max(4).default(defaultMixer.convKernel),
});

/** Of pixel shuffle, a side; InternVL's folders have it twice. */
const downsampleRatio = z.literal(0.5).nullish();

/** The keys of config.json that the forward pass depends on. */
export const modelConfigSchema = z
  .looseObject({
    downsample_ratio: downsampleRatio,
    embedding_config: z.looseObject({
      ...stack,
      num_channels: count.default(3),
      patch_size: count,
      image_size: count,
      llm_vocab_size: count,
      llm_hidden_size: count.optional(),
      downsample_ratio: downsampleRatio,
      img_context_token_id: z.int().nonnegative(),
      pixel_shuffle_loc: z.enum(['pre', 'post']).default('pre'),
      use_pixel_shuffle_proj: z.literal(true).optional(),
      special_token_maps: z.record(z.string(), z.int().nonnegative()).default({}),
      attention_bias: no,
      mlp_bias: no,
      use_ls: no,
    }),
    llm_config: z.looseObject({
      ...stack,
      vocab_size: count,
      bias: no,
      tie_word_embeddings: no,
      eos_token_id: z.union([z.int(), z.array(z.int()).nonempty()]).nullish(),
    }),
    mixer_config: mixerSchema.optional(),
  })
  .superRefine((config, context) => {
    const { embedding_config: e, llm_config: l } = config;
    const problem = (path: string[], message: string): void => context.addIssue({ code: 'custom', path, message });
    for (const [key, s] of [['embedding_config', e], ['llm_config', l]] as const) {
      const kv = s.num_key_value_heads ?? s.num_attention_heads;
      if (s.hidden_size % s.num_attention_heads !== 0)
        problem([key, 'hidden_size'], `hidden_size ${s.hidden_size} is no multiple of num_attention_heads ${s.num_attention_heads}`);
      else if ((s.hidden_size / s.num_attention_heads) % 2 !== 0)
        problem(
          [key, 'hidden_size'],
          `hidden_size / num_attention_heads is ${s.hidden_size / s.num_attention_heads}; rotary embedding needs an even number`,
        );
      else if ((s.head_dim ?? s.hidden_size / s.num_attention_heads) !== s.hidden_size / s.num_attention_heads)
        problem(
          [key, 'head_dim'],
          `head_dim ${s.head_dim} differs from hidden_size / num_attention_heads, ${s.hidden_size / s.num_attention_heads}; no other is supported`,
        );
      if (s.num_attention_heads % kv !== 0)
        problem([key, 'num_key_value_heads'], `num_attention_heads ${s.num_attention_heads} is no multiple of num_key_value_heads ${kv}`);
      if (s.layers_block_type && s.layers_block_type.length !== s.num_hidden_layers)
        problem(
          [key, 'layers_block_type'],
          `layers_block_type has ${s.layers_block_type.length} entries for ${s.num_hidden_layers} layers (num_hidden_layers)`,
        );
      if (!s.rope_scaling) continue;
      const { type, factor } = s.rope_scaling;
      const ropeType = s.rope_scaling.rope_type ?? type;
      if (!ropeType) problem([key, 'rope_scaling'], "rope_scaling needs a type: 'linear' or 'dynamic'");
      else if (type && type !== ropeType) problem([key, 'rope_scaling'], `rope_scaling has the type '${type}' and the rope_type '${ropeType}'`);
      else if (ropeType !== 'default' && !factor) problem([key, 'rope_scaling'], `rope_scaling of type '${ropeType}' needs a factor`);
    }
    if (e.hidden_size !== l.hidden_size)
      problem(['embedding_config', 'hidden_size'], `the embedding's hidden_size ${e.hidden_size} differs from the language model's ${l.hidden_size}`);
    if (e.llm_hidden_size !== undefined && e.llm_hidden_size !== l.hidden_size)
      problem(
        ['embedding_config', 'llm_hidden_size'],
        `llm_hidden_size ${e.llm_hidden_size} differs from the language model's hidden_size ${l.hidden_size}`,
      );
    if (e.image_size % e.patch_size !== 0)
      problem(['embedding_config', 'image_size'], `image_size ${e.image_size} is no multiple of patch_size ${e.patch_size}`);
    else if ((e.image_size / e.patch_size) % 2 !== 0)
      problem(['embedding_config', 'image_size'], `image_size / patch_size is ${e.image_size / e.patch_size}; pixel shuffle needs an even number`);
    const known = e.llm_vocab_size + Object.keys(e.special_token_maps).length;
    if (e.img_context_token_id >= known)
      problem(
        ['embedding_config', 'img_context_token_id'],
        `img_context_token_id ${e.img_context_token_id} is outside the ${known} rows of the text and special embeddings`,
      );
    for (const [token, id] of Object.entries(e.special_token_maps))
      if (id < e.llm_vocab_size || id >= known)
        problem(
          ['embedding_config', 'special_token_maps', token],
          `special token ids lie in [${e.llm_vocab_size}, ${known}), behind llm_vocab_size; got ${id}`,
        );
  });
type Parsed = z.output<typeof modelConfigSchema>;

function stackConfig(s: Stack): StackConfig {
  const type = s.rope_scaling?.type ?? s.rope_scaling?.rope_type ?? 'default';
  return {
    hiddenSize: s.hidden_size,
    heads: s.num_attention_heads,
    kvHeads: s.num_key_value_heads ?? s.num_attention_heads,
    headDim: s.hidden_size / s.num_attention_heads,
    intermediateSize: s.intermediate_size,
    rmsNormEps: s.rms_norm_eps,
    rope: {
      theta: s.rope_theta,
      scaling: type === 'default' ? 'none' : type,
      factor: s.rope_scaling?.factor ?? 1,
      maxPosition: s.max_position_embeddings,
    },
    blocks: s.layers_block_type ?? new Array<BlockType>(s.num_hidden_layers).fill('mha'),
  };
}

function modelConfig(parsed: Parsed, raw: Record<string, unknown>): ModelConfig {
  const { embedding_config: e, llm_config: l, mixer_config: m } = parsed;
  return {
    raw,
    embedding: stackConfig(e),
    llm: stackConfig(l),
    vision: { channels: e.num_channels, patchSize: e.patch_size, imageSize: e.image_size, pixelShuffle: e.pixel_shuffle_loc },
    // Released folders have no mixer_config; what this project trains always has one.
    mixer: m
      ? {
          layout: m.layout ?? 'separate',
          useConv: m.use_conv,
          useGnorm: m.use_gnorm,
          useA: m.use_A,
          useD: m.use_D,
          useQknorm: m.use_qknorm,
          convKernel: m.conv_kernel,
        }
      : { ...defaultMixer, layout: 'fused' },
    textVocabulary: e.llm_vocab_size,
    specialTokens: Object.keys(e.special_token_maps).length,
    vocabulary: l.vocab_size,
    imageToken: e.img_context_token_id,
    endTokens: [l.eos_token_id ?? []].flat(),
  };
}

/** The checked configuration of a parsed config.json. @throws MmError ERR_CONFIG with one line a problem */
export function parseModelConfig(value: unknown): ModelConfig {
  const result = modelConfigSchema.safeParse(value);
  if (result.success) return modelConfig(result.data, value as Record<string, unknown>);
  const lines = result.error.issues.map(({ path, message }) => `${path.join('.') || 'config.json'}: ${message}`);
  throw new MmError('ERR_CONFIG', `the model's configuration is not usable\n${lines.join('\n')}`, { cause: result.error });
}

/** Reads and checks config.json. @throws MmError ERR_FILE_IO; ERR_CONFIG with file, line and column of each problem */
export async function readModelConfig(path: string): Promise<ModelConfig> {
  const { config, raw } = await loadJsonConfigAndRaw(path, modelConfigSchema);
  return modelConfig(config, raw as Record<string, unknown>);
}
