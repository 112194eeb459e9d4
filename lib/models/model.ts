import { isDeepStrictEqual } from 'node:util';
import { activeTape, checkpoint, noGrad } from '../autograd/tape.js';
import type { RawTensor } from '../io/safetensors.js';
import { MmError } from '../native/errors.js';
import { Linear, RmsNorm } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import type { Parameter, Placement } from '../nn/parameter.js';
import { gatherRows, reshape, slice } from '../ops/index.js';
import type { Random } from '../tensor/random.js';
import { scope } from '../tensor/scope.js';
import { Tensor } from '../tensor/tensor.js';
import { blockTypes, type BlockType, type ModelConfig, type StackConfig } from './config.js';
import type { LayerState, SequenceContext, StepContext, Tap } from './context.js';
import { DecoderBlock } from './hovle/block.js';
import { HolisticEmbedding } from './hovle/embedding.js';
import { RotaryTables } from './hovle/rotary.js';
import { prepareInputs, type Batch, type ModelInputs, type TokenInputs } from './inputs.js';
import type { MambaMixer, MixerInitialisation } from './mmmamba/mixer.js';
import { RecurrentState } from './state.js';

/** Added to a mixer's dt at padding: softplus then gives exactly 0, in every dtype. */
const closedStep = -1e4;

/** Which positions get logits: all (B, L, V), each row's last token (B, V), or flat positions in an i32 tensor (M) -> (M, V). */
export type LogitPositions = 'all' | 'last' | Tensor;

export interface ForwardOptions {
  logits?: LogitPositions;
  /**
   * sees named intermediates: `embed.<i>` and `llm.<i>` with `.attn_out` and `.layer_out`, vision_embeddings,
   * pixel_shuffle_proj, embedding_output, final_norm
   */
  tap?: Tap;
  /** under a tape: keeps only the layers' inputs and computes the rest again during backward */
  checkpoint?: boolean;
}

/** What a step reads beside the state: plain data. */
export interface StepInputs {
  /** i32 (B) */
  ids: Tensor;
  /** i32 (4, B): tokens before this one and with it, in the embedding layers and in the language layers */
  counts: Tensor;
  /** tokens that the rotary tables are made for; 0 where no layer rotates */
  spans: { embedding: number; llm: number };
}

/** Runs one layer inside a custom forward pass. */
export type BlockRunner = (h: Tensor, block: DecoderBlock, index: number, context: SequenceContext) => Tensor;

/** The language model behind the embedding: decoder layers, norm, output projection. */
class LanguageModel extends Module {
  readonly blocks: DecoderBlock[];
  readonly norm: RmsNorm;
  readonly output: Linear;

  constructor(path: string, placement: Placement, config: ModelConfig, initialisation?: MixerInitialisation) {
    super(path, placement);
    const stack = config.llm;
    this.blocks = stack.blocks.map((type, i) =>
      this.child(new DecoderBlock(`${path}.model.layers.${i}`, placement, `llm.${i}`, stack, type, config.mixer, initialisation)),
    );
    this.norm = this.child(new RmsNorm(`${path}.model.norm`, placement, stack.hiddenSize, stack.rmsNormEps));
    this.output = this.child(new Linear(`${path}.output`, placement, stack.hiddenSize, config.vocabulary));
  }
}

/**
 * A decoder-only vision-language model of HoVLE's shape: the teacher when all layers are softmax attention, mmMamba when
 * some or all are Mamba-2 mixers. Parameters bear the names of the released folders.
 */
export class VisionLanguageModel extends Module {
  readonly embedding: HolisticEmbedding;
  readonly language: LanguageModel;
  /** Tensors of the file that no forward pass reads (tok_embeddings, class_embedding); kept on the host for saving. */
  readonly unused = new Map<string, RawTensor>();
  readonly #tables: { embedding: RotaryTables; llm: RotaryTables };

  constructor(
    readonly config: ModelConfig,
    placement: Placement,
    initialisation?: MixerInitialisation,
  ) {
    super('', placement);
    this.embedding = this.child(new HolisticEmbedding('embedding_model', placement, config, initialisation));
    this.language = this.child(new LanguageModel('language_model', placement, config, initialisation));
    const tables = ({ rope, headDim }: StackConfig): RotaryTables => new RotaryTables(rope, headDim, placement.device);
    const llm = tables(config.llm);
    const alike = config.embedding.headDim === llm.headDim && isDeepStrictEqual(config.embedding.rope, llm.config);
    this.#tables = { llm, embedding: alike ? llm : tables(config.embedding) };
  }

  /** A model with random weights. */
  static initialised(config: ModelConfig, placement: Placement, random: Random, initialisation?: MixerInitialisation): VisionLanguageModel {
    const model = new VisionLanguageModel(config, placement, initialisation);
    model.initialise(random);
    return model;
  }

  /** All decoder layers: those of the embedding, then those of the language model. */
  get blocks(): DecoderBlock[] {
    return [...this.embedding.blocks, ...this.language.blocks];
  }
  get blockTypes(): BlockType[] {
    return blockTypes(this.config);
  }
  /** Parameters of the Mamba-2 mixers without their output projections: all that the paper's distillation trains. */
  mixerParameters(): Parameter[] {
    const own = (mixer: MambaMixer): Parameter[] => mixer.parameters().filter((p) => p !== mixer.output.weight);
    return this.blocks.flatMap(({ mixer }) => (mixer.type === 'mamba2' ? own(mixer) : []));
  }

  /** A batch on the model's device; disposed by the enclosing scope. @throws MmError ERR_ARGUMENT, ERR_SHAPE that say what does not fit */
  prepare(batch: Batch): ModelInputs {
    return prepareInputs(this.config, this.placement, batch);
  }

  /** Logits, compute dtype: (B, L, V), (B, V) or (M, V) as `options.logits` says (default 'all'). */
  forward(inputs: ModelInputs, options: ForwardOptions = {}): Tensor {
    const { logits = 'all', tap } = options;
    const rerun = options.checkpoint && !tap && activeTape() !== null;
    return scope(() => {
      const h = this.run(
        inputs,
        (x, block, _, context) => (rerun ? checkpoint(([input]) => block.forward(input!, context), [x]) : block.forward(x, context)),
        tap,
      );
      return this.head(h, inputs, logits, tap);
    });
  }

  /** The hidden state behind the last layer (B, L, C), every layer run by `runBlock`. */
  run(inputs: ModelInputs, runBlock: BlockRunner, tap?: Tap, padding = false): Tensor {
    const layers = (h: Tensor, blocks: readonly DecoderBlock[], first: number, context: SequenceContext): Tensor =>
      blocks.reduce((x, block, i) => {
        const next = runBlock(x, block, first + i, context);
        if (!tap) x.dispose(); // what backward needs, the tape holds
        return next;
      }, h);
    const { blocks } = this.embedding;
    return scope(() => {
      const embedded = scope(() => this.embedding.forward(inputs, tap));
      const joined = layers(embedded, blocks, 0, this.#context(inputs, 'embedding', padding, tap));
      tap?.('embedding_output', joined);
      const merged = this.embedding.merge(joined, inputs, tap);
      return layers(merged, this.language.blocks, blocks.length, this.#context(inputs, 'llm', padding, tap));
    });
  }

  /** Final norm and output projection at the chosen positions. @param h (B, L, C) */
  head(h: Tensor, inputs: ModelInputs, positions: LogitPositions, tap?: Tap): Tensor {
    return scope(() => {
      const x = this.language.norm.forward(this.#pick(h, inputs, positions));
      tap?.('final_norm', x);
      return this.language.output.forward(x);
    });
  }
  #pick(h: Tensor, { batch, llm, lengths }: ModelInputs, positions: LogitPositions): Tensor {
    if (positions === 'all') return h;
    const size = h.dim(-1);
    if (positions !== 'last') return gatherRows({ x: reshape(h, [-1, size]), index: positions });
    if (!lengths) return reshape(slice(h, 1, llm.length - 1, llm.length), [batch, size]);
    const index = lengths.map((n, b) => b * llm.length + n - 1);
    return gatherRows({ x: reshape(h, [-1, size]), index: Tensor.from(index, [batch], { device: h.device }) });
  }

  #context(inputs: ModelInputs, stack: 'embedding' | 'llm', padding: boolean, tap?: Tap): SequenceContext {
    const { length, positions, span }: TokenInputs = inputs[stack];
    const lengths = padding ? inputs.lengths : null;
    const data = lengths && new Float32Array(inputs.batch * length).map((_, i) => (i % length < lengths[Math.floor(i / length)]! ? 0 : closedStep));
    return {
      batch: inputs.batch,
      length,
      positions,
      span,
      lengths,
      padding: data && Tensor.from(data, [inputs.batch, length, 1], this.placement),
      rotary: this.#tables[stack],
      ...(tap && { tap }),
    };
  }

  /**
   * Consumes a batch of prompts at once. Rows may be of different lengths (Batch.attentionMask); the state is that after
   * each row's last token.
   * @returns logits (default 'last': (B, V)), disposed by the enclosing scope, and the state, which the caller disposes
   */
  prefill(inputs: ModelInputs, options: Pick<ForwardOptions, 'logits' | 'tap'> = {}): { logits: Tensor; state: RecurrentState } {
    const { logits: positions = 'last', tap } = options;
    if (inputs.merge && inputs.lengths) throw new MmError('ERR_ARGUMENT', "prefill of padded rows needs pixel_shuffle_loc 'pre'");
    const states: LayerState[] = [];
    const full = (n: number): Int32Array => inputs.lengths?.slice() ?? new Int32Array(inputs.batch).fill(n);
    const state = new RecurrentState(states, { embedding: full(inputs.embedding.length), llm: full(inputs.llm.length) });
    try {
      const logits = noGrad(() =>
        scope(() => {
          const h = this.run(
            inputs,
            (x, block, _, context) => {
              const result = block.prefill(x, context);
              states.push(result.state);
              return result.h;
            },
            tap,
            true,
          );
          return this.head(h, inputs, positions, tap);
        }),
      );
      return { logits, state };
    } catch (error) {
      state.dispose();
      throw error;
    }
  }

  /** The state before the first token; the caller disposes it. */
  state(batch: number): RecurrentState {
    const consumed = (): Int32Array => new Int32Array(batch);
    return new RecurrentState(
      this.blocks.map((b) => b.state(batch)),
      { embedding: consumed(), llm: consumed() },
    );
  }

  /**
   * Consumes one text token a row and updates the state in place. Under dynamic NTK scaling past `maxPosition` the new
   * token is rotated for the length so far, while cached keys keep the rotation they had.
   * @param tokens ids (B) on the host or as an i32 tensor
   * @returns logits (B, V), disposed by the enclosing scope
   */
  step(tokens: ArrayLike<number> | Tensor, state: RecurrentState): Tensor {
    const logits = noGrad(() => scope(() => this.stepFrom(this.stepInputs(tokens, state), state)));
    state.consume();
    return logits;
  }

  /**
   * What a step reads beside the state: the tokens and where they go. The caches of the state grow where they are full.
   * @param tokens as for step(); a tensor is handed through
   */
  stepInputs(tokens: ArrayLike<number> | Tensor, state: RecurrentState): StepInputs {
    const { batch, consumed } = state;
    const count = tokens instanceof Tensor ? tokens.size : tokens.length;
    if (count !== batch) throw new MmError('ERR_SHAPE', `step: ${count} tokens for a state of ${batch} rows`);
    const { device } = this.placement;
    const first = this.embedding.blocks.length;
    const span = (stack: 'embedding' | 'llm', blocks: readonly DecoderBlock[], layers: readonly LayerState[]): number => {
      const capacity = Math.max(0, ...consumed[stack]) + 1;
      const attends = blocks.filter((block, i) => block.reserve(layers[i]!, capacity)).length > 0;
      return attends ? this.#tables[stack].span(capacity) : 0;
    };
    const counts = [consumed.embedding, consumed.llm].flatMap((list) => [...list, ...list.map((n) => n + 1)]);
    return {
      ids: tokens instanceof Tensor ? tokens : Tensor.from(Int32Array.from(tokens), [batch], { device }),
      counts: Tensor.from(Int32Array.from(counts), [4, batch], { device }),
      spans: {
        embedding: span('embedding', this.embedding.blocks, state.layers.slice(0, first)),
        llm: span('llm', this.language.blocks, state.layers.slice(first)),
      },
    };
  }

  /** The device's part of a step: logits (B, V), and the new state in place of the old. Counts no tokens; see RecurrentState.consume(). */
  stepFrom({ ids, counts, spans }: StepInputs, state: RecurrentState): Tensor {
    const { batch } = state;
    const row = (i: number): Tensor => reshape(slice(counts, 0, i, i + 1), [batch]);
    const context = (stack: 'embedding' | 'llm', at: number): StepContext => {
      const slots = row(at);
      return { batch, slots, positions: reshape(slots, [batch, 1]), lengths: row(at + 1), span: spans[stack], rotary: this.#tables[stack] };
    };
    const layers = (h: Tensor, blocks: readonly DecoderBlock[], first: number, c: StepContext): Tensor =>
      blocks.reduce((x, block, i) => block.step(x, state.layers[first + i]!, c), h);
    const joined = layers(this.embedding.token(ids), this.embedding.blocks, 0, context('embedding', 0));
    const h = layers(joined, this.language.blocks, this.embedding.blocks.length, context('llm', 2));
    return this.language.output.forward(this.language.norm.forward(h));
  }

  override dispose(): void {
    super.dispose();
    this.#tables.embedding.dispose();
    this.#tables.llm.dispose();
  }
}
