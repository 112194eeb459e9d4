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
  /** what ends an answer; none where config.json has no eos_token_id */
  endTokens: readonly number[];
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
