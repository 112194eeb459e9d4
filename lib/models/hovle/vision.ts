import { Linear } from '../../nn/layers.js';
import { normal, zeros } from '../../nn/initialise.js';
import { Module } from '../../nn/module.js';
import type { Parameter, Placement } from '../../nn/parameter.js';
import { add, patchEmbed, pixelShuffle, posEmbedBicubic, slice } from '../../ops/index.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { ModelConfig, VisionConfig } from '../config.js';

/** Patches of raw pixels plus a learned position embedding; HoVLE has no vision encoder. */
export class VisionEmbedding extends Module {
  readonly #weight: Parameter;
  readonly #bias: Parameter;
  readonly #position: Parameter;
  readonly #config: VisionConfig;

  constructor(path: string, placement: Placement, { vision, embedding }: ModelConfig) {
    super(path, placement);
    const { channels, patchSize, imageSize } = vision;
    const size = embedding.hiddenSize;
    this.#config = vision;
    // Row 0 of the position embedding stands for a class token that the model never uses; files carry it.
    this.#position = this.parameter('position_embedding', [1, (imageSize / patchSize) ** 2 + 1, size], { init: normal(0.02) });
    this.#weight = this.parameter('patch_embedding.weight', [size, channels, patchSize, patchSize], { init: normal(0.02) });
    this.#bias = this.parameter('patch_embedding.bias', [size], { init: zeros });
  }

  /** @param pixels (n, c, S, S), S a multiple of twice the patch size @returns (n, (S / p)^2, C) */
  forward(pixels: Tensor): Tensor {
    const { imageSize, patchSize } = this.#config;
    const grid = imageSize / patchSize;
    const outH = pixels.dim(2) / patchSize;
    const outW = pixels.dim(3) / patchSize;
    const patches = patchEmbed({ x: pixels, weight: this.#weight.value, bias: this.#bias.value });
    const trained = slice(this.#position.value, 1, 1, grid * grid + 1);
    const position = outH === grid && outW === grid ? trained : posEmbedBicubic({ posEmbed: trained }, { outH, outW });
    return add({ a: patches, b: position });
  }
}

/** Joins 2 x 2 patches to one token and maps it to the language model: Linear, GELU, Linear. */
export class PatchMerger extends Module {
  readonly #first: Linear;
  readonly #second: Linear;

  constructor(path: string, placement: Placement, size: number) {
    super(path, placement);
    this.#first = this.child(new Linear(`${path}.0`, placement, 4 * size, size, { bias: true }));
    this.#second = this.child(new Linear(`${path}.2`, placement, size, size, { bias: true }));
  }
  /** @param patches (n, h * h, C) @returns (n, h * h / 4, C) */
  forward(patches: Tensor): Tensor {
    return this.#second.forward(this.#first.forward(pixelShuffle({ x: patches }), { activation: 'gelu' }));
  }
}
