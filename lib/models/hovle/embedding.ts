import { Embedding, joinRows } from '../../nn/layers.js';
import { Module } from '../../nn/module.js';
import type { Placement } from '../../nn/parameter.js';
import { embedding, gatherRows, reshape, scatterRows } from '../../ops/index.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { ModelConfig } from '../config.js';
import type { Tap } from '../context.js';
import type { ModelInputs, TokenInputs } from '../inputs.js';
import type { MixerInitialisation } from '../mmmamba/mixer.js';
import { DecoderBlock } from './block.js';
import { PatchMerger, VisionEmbedding } from './vision.js';

/** HoVLE's holistic embedding (arXiv 2412.16158): text and image patches become one sequence, which decoder layers join. */
export class HolisticEmbedding extends Module {
  readonly blocks: DecoderBlock[];
  readonly #vision: VisionEmbedding;
  readonly #text: Embedding;
  readonly #special: Embedding | null;
  readonly #merger: PatchMerger;
  readonly #config: ModelConfig;

  constructor(path: string, placement: Placement, config: ModelConfig, initialisation?: MixerInitialisation) {
    super(path, placement);
    const stack = config.embedding;
    this.#config = config;
    this.#vision = this.child(new VisionEmbedding(`${path}.vision_embeddings`, placement, config));
    this.#text = this.child(new Embedding(`${path}.llm_text_embeddings`, placement, config.textVocabulary, stack.hiddenSize));
    this.#special = config.specialTokens
      ? this.child(new Embedding(`${path}.special_text_embeddings`, placement, config.specialTokens, stack.hiddenSize))
      : null;
    this.blocks = stack.blocks.map((type, i) =>
      this.child(new DecoderBlock(`${path}.encoder.${i}`, placement, `embed.${i}`, stack, type, config.mixer, initialisation)),
    );
    this.#merger = this.child(new PatchMerger(`${path}.pixel_shuffle_proj`, placement, stack.hiddenSize));
  }

  /** Text embeddings with the rows of images in place, (B, L, C): what the embedding layers read. */
  forward(inputs: ModelInputs, tap?: Tap): Tensor {
    const { pixels, embedding: tokens } = inputs;
    const h = this.#embed(tokens);
    if (!pixels || !tokens.images) return h;
    const patches = this.#vision.forward(pixels);
    tap?.('vision_embeddings', patches);
    let rows = patches;
    if (!inputs.merge) {
      rows = this.#merger.forward(patches);
      tap?.('pixel_shuffle_proj', rows);
    }
    const size = h.dim(-1);
    const replaced = scatterRows({ x: reshape(h, [-1, size]), index: tokens.images, src: reshape(rows, [-1, size]) });
    return reshape(replaced, h.shape);
  }

  /** Under 'post': merges the patches of the embedding layers' output to image tokens. @returns (B, L, C) for the language layers */
  merge(h: Tensor, inputs: ModelInputs, tap?: Tap): Tensor {
    if (!inputs.merge) return h;
    const size = h.dim(-1);
    const rows = reshape(h, [-1, size]);
    const patches = reshape(gatherRows({ x: rows, index: inputs.embedding.images! }), [inputs.pixels!.dim(0), -1, size]);
    const images = reshape(this.#merger.forward(patches), [-1, size]);
    tap?.('pixel_shuffle_proj', images);
    return reshape(gatherRows({ x: joinRows([rows, images]), index: inputs.merge }), [inputs.batch, inputs.llm.length, size]);
  }

  /** Embeds one generated token a row. @param ids i32 (B), text tokens @returns (B, C) */
  token(ids: Tensor): Tensor {
    return this.#text.forward(ids);
  }

  #embed({ ids, special }: TokenInputs): Tensor {
    const h = this.#text.forward(ids);
    if (!special) return h;
    const size = this.#config.embedding.hiddenSize;
    const rows = embedding({ weight: this.#special!.weight.value, ids: special.rows });
    return reshape(scatterRows({ x: reshape(h, [-1, size]), index: special.at, src: rows }), h.shape);
  }
}
