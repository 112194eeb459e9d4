import { z } from 'zod';
import { loadJsonConfig } from '../io/config.js';
import { MmError } from '../native/errors.js';

/** What mixes the tokens of a layer: softmax attention or the linear Mamba-2 mixer. The names are those of `layers_block_type`. */
export type BlockType = 'mha' | 'mamba2';

export interface RopeConfig {
  theta: number;
  scaling: 'none' | 'linear' | 'dynamic';
  factor: number;
  /** length the model was trained for */
  maxPosition: number;
}

/** One stack of decoder layers. */
export interface StackConfig {
  hiddenSize: number;
  heads: number;
  /** heads of keys and values; head h reads number h / (heads / kvHeads) */
  kvHeads: number;
  headDim: number;
  intermediateSize: number;
  rmsNormEps: number;
  rope: RopeConfig;
  /** one a layer */
  blocks: BlockType[];
}

export interface VisionConfig {
  channels: number;
  patchSize: number;
  /** pixels a side that the position embedding was trained for */
  imageSize: number;
  /** where patches become tokens: before the embedding layers or after them */
  pixelShuffle: 'pre' | 'post';
}

/** Switches of the Mamba-2 mixer, named as in the reference implementation. */
export interface MixerConfig {
  /**
   * separate: one tensor a projection (v_proj, k_proj, q_proj, g_proj, in_proj), as trained; fused: all rows in
   * wvkqgdt, as released.
   */
  layout: 'separate' | 'fused';
  /** causal depthwise convolution over v, k and q before SiLU; without it SiLU alone */
  useConv: boolean;
  /** RMSNorm per head times swish gate behind the scan; without it neither */
  useGnorm: boolean;
  /** learned decay rate A; without it A = -1 */
  useA: boolean;
  /** skip connection D v, one factor a head */
  useD: boolean;
  /** LayerNorm over the heads of q and k */
  useQknorm: boolean;
  /** width of the convolution, 2 to 4 */
  convKernel: number;
}

/** A model's architecture. `raw` is config.json as read: keys that concern others pass through to the saved file. */
export interface ModelConfig {
  raw: Record<string, unknown>;
  /** the holistic embedding, layers 0 to E - 1 */
  embedding: StackConfig;
  /** the language model, layers E to E + L - 1 */
  llm: StackConfig;
  vision: VisionConfig;
  mixer: MixerConfig;
  /** rows of the text embedding; ids from here on are special tokens */
  textVocabulary: number;
  /** rows of the special-token embedding, 0 for none */
  specialTokens: number;
  /** width of the logits */
  vocabulary: number;
  /** `<IMG_CONTEXT>` */
  imageToken: number;
  endToken: number | null;
}

export const defaultMixer: MixerConfig = {
  layout: 'separate',
  useConv: true,
  useGnorm: true,
  useA: true,
  useD: false,
  useQknorm: false,
  convKernel: 2,
};

const count = z.int().positive();

const ropeScaling = z
  .looseObject({
    type: z.enum(['linear', 'dynamic']).optional(),
    rope_type: z.enum(['default', 'linear', 'dynamic']).optional(),
    factor: z.number().positive(),
  })
  .nullish();

const stack = {
  hidden_size: count,
  num_attention_heads: count,
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

/** The keys of config.json that the forward pass depends on. */
export const modelConfigSchema = z
  .looseObject({
    embedding_config: z.looseObject({
      ...stack,
      num_channels: count.default(3),
      patch_size: count,
      image_size: count,
      llm_vocab_size: count,
      llm_hidden_size: count.optional(),
      downsample_ratio: z.literal(0.5).optional(),
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
      if (s.num_attention_heads % kv !== 0)
        problem([key, 'num_key_value_heads'], `num_attention_heads ${s.num_attention_heads} is no multiple of num_key_value_heads ${kv}`);
      if (s.layers_block_type && s.layers_block_type.length !== s.num_hidden_layers)
        problem(
          [key, 'layers_block_type'],
          `layers_block_type has ${s.layers_block_type.length} entries for ${s.num_hidden_layers} layers (num_hidden_layers)`,
        );
      if (s.rope_scaling && !s.rope_scaling.type && !s.rope_scaling.rope_type)
        problem([key, 'rope_scaling'], "rope_scaling needs a type: 'linear' or 'dynamic'");
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
  const type = s.rope_scaling?.type ?? s.rope_scaling?.rope_type;
  return {
    hiddenSize: s.hidden_size,
    heads: s.num_attention_heads,
    kvHeads: s.num_key_value_heads ?? s.num_attention_heads,
    headDim: s.hidden_size / s.num_attention_heads,
    intermediateSize: s.intermediate_size,
    rmsNormEps: s.rms_norm_eps,
    rope: {
      theta: s.rope_theta,
      scaling: type === 'linear' || type === 'dynamic' ? type : 'none',
      factor: s.rope_scaling?.factor ?? 1,
      maxPosition: s.max_position_embeddings,
    },
    blocks: s.layers_block_type ?? new Array<BlockType>(s.num_hidden_layers).fill('mha'),
  };
}

function modelConfig(parsed: Parsed, raw: Record<string, unknown>): ModelConfig {
  const { embedding_config: e, llm_config: l, mixer_config: m } = parsed;
  const end = Array.isArray(l.eos_token_id) ? l.eos_token_id[0] : l.eos_token_id;
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
    endToken: end ?? null,
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
  const parsed = await loadJsonConfig(path, modelConfigSchema);
  return modelConfig(parsed, parsed);
}

/** Types of all layers: those of the embedding, then those of the language model. */
export function blockTypes(config: ModelConfig): BlockType[] {
  return [...config.embedding.blocks, ...config.llm.blocks];
}

/** Checks a list of layer numbers, counted over both stacks. @throws MmError ERR_ARGUMENT */
export function checkLayers(config: ModelConfig, layers: readonly number[], what: string): void {
  const total = blockTypes(config).length;
  const wrong = layers.filter((i) => !Number.isInteger(i) || i < 0 || i >= total);
  if (wrong.length > 0)
    throw new MmError(
      'ERR_ARGUMENT',
      `${what}: layer ${wrong.join(', ')} does not exist; ${config.embedding.blocks.length} embedding layers and ` +
        `${config.llm.blocks.length} language layers are numbered 0 to ${total - 1}`,
    );
  if (new Set(layers).size !== layers.length) throw new MmError('ERR_ARGUMENT', `${what}: [${layers.join(', ')}] names a layer twice`);
}

type Json = Record<string, unknown>;

/**
 * The same architecture with other token mixers: layers in `attentionLayers` (numbered over both stacks) are softmax
 * attention, all others Mamba-2. `raw` becomes that of a released mmMamba folder, with `mixer_config` added unless the
 * mixers are the reference's own in the fused layout.
 */
export function studentConfig(config: ModelConfig, attentionLayers: readonly number[], mixer: MixerConfig): ModelConfig {
  checkLayers(config, attentionLayers, 'attention layers');
  const types = blockTypes(config).map((_, i): BlockType => (attentionLayers.includes(i) ? 'mha' : 'mamba2'));
  const first = types.slice(0, config.embedding.blocks.length);
  const second = types.slice(config.embedding.blocks.length);
  const released: MixerConfig = { ...defaultMixer, layout: 'fused' };
  const standard = (Object.keys(released) as (keyof MixerConfig)[]).every((key) => mixer[key] === released[key]);
  const { mixer_config: _, ...rest } = config.raw;
  const raw: Json = {
    ...rest,
    architectures: ['mmMambaChatModel'],
    model_type: 'mmMamba_chat',
    auto_map: {
      AutoConfig: 'configuration_mmMamba_chat.mmMambaChatConfig',
      AutoModel: 'modeling_mmMamba_chat.mmMambaChatModel',
      AutoModelForCausalLM: 'modeling_mmMamba_chat.mmMambaChatModel',
    },
    embedding_config: { ...(config.raw['embedding_config'] as Json), model_type: 'mmMamba_embedding', layers_block_type: first },
    llm_config: {
      ...(config.raw['llm_config'] as Json),
      architectures: ['mmMambaForCausalLM'],
      model_type: 'mmMamba',
      auto_map: {
        AutoConfig: 'configuration_mmMamba.mmMambaConfig',
        AutoModel: 'modeling_mmMamba.mmMambaForCausalLM',
        AutoModelForCausalLM: 'modeling_mmMamba.mmMambaForCausalLM',
      },
      layers_block_type: second,
    },
    ...(standard
      ? {}
      : {
          mixer_config: {
            layout: mixer.layout,
            use_conv: mixer.useConv,
            use_gnorm: mixer.useGnorm,
            use_A: mixer.useA,
            use_D: mixer.useD,
            use_qknorm: mixer.useQknorm,
            conv_kernel: mixer.convKernel,
          },
        }),
  };
  return {
    ...config,
    raw,
    embedding: { ...config.embedding, blocks: first },
    llm: { ...config.llm, blocks: second },
    mixer,
  };
}
