import { noGrad } from '../../autograd/tape.js';
import { linearDefault, ones, xavierUniform, zeros, type Initialiser } from '../../nn/initialise.js';
import { joinRows, Linear } from '../../nn/layers.js';
import { Module } from '../../nn/module.js';
import type { Parameter, Placement } from '../../nn/parameter.js';
import {
  add, causalConv1d, causalConv1dUpdate, copy, gatedRmsNorm, gatherRows, layerNorm, linear, permute, reshape, scale, selectiveStateUpdate, silu,
  split, ssd, unary,
} from '../../ops/index.js';
import { scope, untracked } from '../../tensor/scope.js';
import { Tensor } from '../../tensor/tensor.js';
import type { MixerConfig, StackConfig } from '../config.js';
import { keep, type MambaState, type SequenceContext, type Tap } from '../context.js';

const normEps = 1e-5;

/** From which the mixer's decay and projections start. */
export interface MixerInitialisation {
  /**
   * the layer first acts like attention: identity convolution, in_proj = 0, A = -e, dt_bias spread so that the decay is
   * near 1; without it the defaults of Mamba-2
   */
  mimic: boolean;
}

/** dt_bias so that softplus(dt_bias) is log-uniform in [0.001, 0.1]. */
const stepBias: Initialiser = (random, shape) =>
  random.fill(shape[0]!, (r) => {
    const dt = Math.exp(r.uniform(Math.log(0.001), Math.log(0.1)));
    return dt + Math.log(-Math.expm1(-dt));
  });
const logUniformRates: Initialiser = (random, shape) => random.fill(shape[0]!, (r) => Math.log(r.uniform(1, 16)));
const identityTap: Initialiser = (_, shape) => {
  const width = shape[2]!;
  return Float32Array.from({ length: shape[0]! * width }, (_, i) => (i % width === width - 1 ? 1 : 0));
};

/** Projections of one call: vkq (B, L, Dc), gate (B, L, H P) or null, dt (B, L, H); or the same without L. */
interface Projected {
  vkq: Tensor;
  gate: Tensor | null;
  dt: Tensor;
}

/**
 * mmMamba's token mixer (arXiv 2502.13145): `v, k, q = SiLU(conv(x W))`, `S_t = exp(dt_t A) S_{t-1} + dt_t v_t k_tᵀ`,
 * `y_t = S_t q_t` with dt = softplus(x W_γ + dt_bias) and A = -exp(A_log_bias), then RMSNorm per head times swish(x W_G).
 * Neither rotary embedding nor 1/sqrt(D).
 */
export class MambaMixer extends Module {
  readonly type = 'mamba2';
  /** v, k, q rows and, in the fused layout, gate and dt rows behind them */
  readonly projections: Parameter[];
  readonly gateProjection: Parameter | null;
  readonly stepProjection: Parameter | null;
  readonly convWeight: Parameter | null;
  readonly convBias: Parameter | null;
  readonly dtBias: Parameter;
  readonly logRates: Parameter | null;
  readonly skip: Parameter | null;
  readonly gateNorm: Parameter | null;
  readonly headNorms: { qWeight: Parameter; qBias: Parameter; kWeight: Parameter; kBias: Parameter } | null;
  readonly output: Linear;
  /** Dc: channels of v, k and q together */
  readonly channels: number;
  /** zeros (n) that heads of k and v are broadcast against; null when every query head has its own */
  #repeat: Tensor | null = null;
  #fixedRates: Tensor | null = null;

  constructor(
    path: string,
    placement: Placement,
    readonly config: StackConfig,
    readonly mixer: MixerConfig,
    initialisation: MixerInitialisation = { mimic: true },
  ) {
    super(path, placement);
    const { hiddenSize: c, heads, kvHeads, headDim } = config;
    const { mimic } = initialisation;
    const inner = heads * headDim;
    const kv = kvHeads * headDim;
    this.channels = 2 * kv + inner;
    this.dtBias = this.parameter('dt_bias', [heads], { init: mimic ? stepBias : zeros });
    this.logRates = mixer.useA ? this.parameter('A_log_bias', [heads], { init: mimic ? ones : logUniformRates }) : null;
    this.skip = mixer.useD ? this.parameter('D', [heads], { init: ones }) : null;
    const matrix = (name: string, rows: number, init: Initialiser): Parameter => this.parameter(`${name}.weight`, [rows, c], { init });
    const stepInit = mimic ? zeros : linearDefault();
    const gateInit = xavierUniform(2 ** -2.5);
    if (mixer.layout === 'separate') {
      this.projections = [matrix('v_proj', kv, linearDefault()), matrix('k_proj', kv, linearDefault()), matrix('q_proj', inner, linearDefault())];
      this.gateProjection = mixer.useGnorm ? matrix('g_proj', inner, gateInit) : null;
      this.stepProjection = matrix('in_proj', heads, stepInit);
    } else {
      const gateRows = mixer.useGnorm ? inner : 0;
      const init: Initialiser = (random, [, n]) => {
        const parts = [linearDefault()(random, [this.channels, n!]), gateInit(random, [gateRows, n!]), stepInit(random, [heads, n!])];
        const all = new Float32Array((this.channels + gateRows + heads) * n!);
        parts.reduce((at, p) => (all.set(p, at), at + p.length), 0);
        return all;
      };
      this.projections = [matrix('wvkqgdt', this.channels + gateRows + heads, init)];
      this.gateProjection = this.stepProjection = null;
    }
    const { convKernel: width } = mixer;
    const tapInit = mimic ? identityTap : linearDefault();
    const biasInit = mimic ? zeros : linearDefault(width);
    this.convWeight = mixer.useConv ? this.parameter('conv1d.weight', [this.channels, 1, width], { init: tapInit, exact: true }) : null;
    this.convBias = mixer.useConv ? this.parameter('conv1d.bias', [this.channels], { init: biasInit }) : null;
    const normName = mixer.layout === 'separate' ? 'g_norm.weight' : 'g_norm_swish_gate.weight';
    this.gateNorm = mixer.useGnorm ? this.parameter(normName, [headDim], { init: ones }) : null;
    this.headNorms = mixer.useQknorm
      ? {
          qWeight: this.parameter('q_norm.weight', [headDim], { init: ones }),
          qBias: this.parameter('q_norm.bias', [headDim], { init: zeros }),
          kWeight: this.parameter('k_norm.weight', [headDim], { init: ones }),
          kBias: this.parameter('k_norm.bias', [headDim], { init: zeros }),
        }
      : null;
    this.output = this.child(new Linear(`${path}.o_proj`, placement, inner, c));
  }

  /** A = -exp(A_log_bias), f32 (H). */
  #rates(): Tensor {
    if (this.logRates) return scale({ x: unary({ x: this.logRates.value }, { kind: 'exp' }) }, { factor: -1 });
    return (this.#fixedRates ??= untracked(() => Tensor.full([this.config.heads], -1, { device: this.placement.device })));
  }

  /** All projections' rows as one matrix [v | k | q | g | dt]. */
  #fused(): Tensor {
    const parts = [...this.projections, this.gateProjection, this.stepProjection].flatMap((p) => (p ? [p.value] : []));
    return parts.length === 1 ? parts[0]! : joinRows(parts);
  }
  /** Splits the columns of a fused projection. */
  #columns(all: Tensor): Projected {
    const { heads, headDim } = this.config;
    if (!this.mixer.useGnorm) {
      const [vkq, dt] = split(all, -1, [this.channels, heads]) as [Tensor, Tensor];
      return { vkq, gate: null, dt };
    }
    const [vkq, gate, dt] = split(all, -1, [this.channels, heads * headDim, heads]) as [Tensor, Tensor, Tensor];
    return { vkq, gate, dt };
  }
  #project(x: Tensor): Projected {
    if (!this.stepProjection) return this.#columns(linear({ x, weight: this.projections[0]!.value }));
    // Three products: where only gate and dt are trained (stage 1), no gradient of the v, k, q rows is computed.
    return {
      vkq: linear({ x, weight: joinRows(this.projections.map((p) => p.value)) }),
      gate: this.gateProjection && linear({ x, weight: this.gateProjection.value }),
      dt: linear({ x, weight: this.stepProjection.value }),
    };
  }

  /**
   * The operands of the scan from the convolved [v | k | q] (..., Dc): v, k, q (..., H, P). v and k are repeated to the
   * query heads in one pass, as each query head has its own decay and so its own state.
   */
  #scanOperands(vkq: Tensor): { v: Tensor; k: Tensor; q: Tensor } {
    const { heads, kvHeads, headDim } = this.config;
    const lead = vkq.shape.slice(0, -1);
    const axis = lead.length;
    const group = heads / kvHeads;
    const all = reshape(vkq, [...lead, 2 * kvHeads + heads, headDim]);
    if (group === 1) {
      const [v, k, q] = split(all, axis, [heads, heads, heads]) as [Tensor, Tensor, Tensor];
      return { v, ...this.#normHeads(k, q) };
    }
    const [vk, q] = split(all, axis, [2 * kvHeads, heads]) as [Tensor, Tensor];
    this.#repeat ??= untracked(() => Tensor.zeros([group, 1], this.placement));
    const repeated = add({ a: reshape(vk, [...lead, 2 * kvHeads, 1, headDim]), b: this.#repeat });
    const [v, k] = split(reshape(repeated, [...lead, 2 * heads, headDim]), axis, [heads, heads]) as [Tensor, Tensor];
    return { v, ...this.#normHeads(k, q) };
  }
  #normHeads(k: Tensor, q: Tensor): { k: Tensor; q: Tensor } {
    const norms = this.headNorms;
    if (!norms) return { k, q };
    const options = { eps: normEps };
    return {
      k: layerNorm({ x: k, weight: norms.kWeight.value, bias: norms.kBias.value }, options),
      q: layerNorm({ x: q, weight: norms.qWeight.value, bias: norms.qBias.value }, options),
    };
  }

  /** Norm and gate behind the scan. @param y (..., H, P) */
  #gated(y: Tensor, gate: Tensor | null): Tensor {
    if (!gate) return y;
    return gatedRmsNorm({ x: y, gate: reshape(gate, y.shape), weight: this.gateNorm!.value }, { eps: normEps });
  }

  /** (Dc, W) from the file's (Dc, 1, W). */
  #taps(): Tensor {
    return reshape(this.convWeight!.value, [this.channels, this.mixer.convKernel]);
  }

  #scan(x: Tensor, context: SequenceContext, tap?: Tap): { y: Tensor; raw: Tensor; conv: Tensor | null; ssm: Tensor } {
    const { vkq, gate, dt } = this.#project(x);
    let active: Tensor;
    let conv: Tensor | null = null;
    if (this.convWeight) {
      const result = causalConv1d({ x: permute(vkq, [0, 2, 1]), weight: this.#taps(), bias: this.convBias!.value }, { activation: 'silu' });
      active = permute(result.y, [0, 2, 1]);
      conv = result.finalStates;
    } else active = silu({ x: vkq });
    const { v, k, q } = this.#scanOperands(active);
    const steps = context.padding ? add({ a: dt, b: context.padding }) : dt;
    const { y, finalStates } = ssd(
      { x: v, dt: steps, A: this.#rates(), B: k, C: q, D: this.skip?.value, dtBias: this.dtBias.value },
      { dtSoftplus: true },
    );
    if (tap) for (const [name, value] of Object.entries({ vkq, vkq_conv: active, dt_raw: dt, ...(gate && { gate }), ssd_y: y })) tap(name, value);
    return { y: this.#gated(y, gate), raw: vkq, conv, ssm: finalStates };
  }

  /**
   * @param x (B, L, C)
   * @param tap gets the intermediates vkq, vkq_conv, dt_raw, gate and ssd_y
   * @returns the heads' output (B, L, H, P), before the output projection
   */
  heads(x: Tensor, context: SequenceContext, tap?: Tap): Tensor {
    return this.#scan(x, context, tap).y;
  }

  /** As heads(), with the state after each row's last token; the caller owns the state. */
  prefill(x: Tensor, context: SequenceContext): { y: Tensor; state: MambaState } {
    const { y, raw, conv, ssm } = this.#scan(x, context);
    const kept = conv && (context.lengths ? this.#lastInputs(raw, context) : keep(conv));
    return { y, state: { type: 'mamba2', conv: kept, ssm: keep(ssm), ...this.#constants() } };
  }

  /** The last W - 1 raw projections of every row, (B, Dc, W - 1), zeros before the first. */
  #lastInputs(raw: Tensor, { batch, length, lengths }: SequenceContext): Tensor {
    const taps = this.mixer.convKernel - 1;
    return noGrad(() =>
      scope(() => {
        const zero = batch * length;
        const index = new Int32Array(batch * taps).map((_, i) => {
          const row = Math.floor(i / taps);
          const at = lengths![row]! - taps + (i % taps);
          return at < 0 ? zero : row * length + at;
        });
        const rows = reshape(raw, [zero, this.channels]);
        const padded = index.includes(zero) ? joinRows([rows, Tensor.zeros([1, this.channels], this.placement)]) : rows;
        const picked = gatherRows({ x: padded, index: Tensor.from(index, [index.length], { device: raw.device }) });
        return keep(copy({ x: permute(reshape(picked, [batch, taps, this.channels]), [0, 2, 1]) }));
      }),
    );
  }

  /** The state before the first token. */
  state(batch: number): MambaState {
    const { heads, headDim } = this.config;
    const { device } = this.placement;
    return untracked(() => ({
      type: 'mamba2' as const,
      conv: this.convWeight ? Tensor.zeros([batch, this.channels, this.mixer.convKernel - 1], this.placement) : null,
      ssm: Tensor.zeros([batch, heads, headDim, headDim], { device }),
      ...this.#constants(),
    }));
  }
  #constants(): Pick<MambaState, 'rates' | 'weight' | 'taps'> {
    return noGrad(() => scope(() => ({ rates: keep(this.#rates()), weight: keep(this.#fused()), taps: this.convWeight && keep(this.#taps()) })));
  }

  /** One token a row. @param x (B, C) @returns (B, H, P) */
  step(x: Tensor, state: MambaState): Tensor {
    const { vkq, gate, dt } = this.#columns(linear({ x, weight: state.weight }));
    const { conv, taps } = state;
    const active =
      conv && taps
        ? causalConv1dUpdate({ x: vkq, convState: conv, weight: taps, bias: this.convBias!.value }, { activation: 'silu' })
        : silu({ x: vkq });
    const { v, k, q } = this.#scanOperands(active);
    const y = selectiveStateUpdate(
      { state: state.ssm, x: v, dt, A: state.rates, B: k, C: q, D: this.skip?.value, dtBias: this.dtBias.value },
      { dtSoftplus: true },
    );
    return this.#gated(y, gate);
  }

  override dispose(): void {
    super.dispose();
    this.#repeat?.dispose();
    this.#fixedRates?.dispose();
    this.#repeat = this.#fixedRates = null;
  }
}
