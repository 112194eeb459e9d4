import { Tape } from '../../../lib/autograd/tape.js';
import {
  attention, causalConv1d, causalConv1dUpdate, gatedRmsNorm, gatherRows, gelu, gla, linear, linearAttention, patchEmbed, pixelShuffle,
  posEmbedBicubic, rmsNorm, rope, ropeTable, selectiveScan, selectiveStateUpdate, simpleGla, ssd, swiglu,
} from '../../../lib/ops/index.js';
import { Tensor } from '../../../lib/tensor/tensor.js';
import type { Golden, Handler } from '../golden.js';

/** Inputs of a case by name, without `in.`; null where the file has none. Those with a gradient are leaves. */
export type Inputs = (name: string, exact?: 'f32') => Tensor | null;
/** Results by name, without `out.`. */
type Results = Record<string, Tensor | null>;

/** Judges an op, its outputs and its gradients. */
export function op(forward: (input: Inputs, g: Golden) => Results): Handler {
  return async (g) => {
    const made = new Map<string, Tensor>();
    const input: Inputs = (name, exact) => {
      const t = made.get(name) ?? g.optional(`in.${name}`, exact !== undefined);
      if (t) {
        made.set(name, t);
        t.requiresGrad = g.has(`grad.${name}`);
      }
      return t;
    };
    using tape = new Tape();
    const results = g.run(() => tape.record(() => forward(input, g)));
    const outputs = Object.entries(results).filter((e): e is [string, Tensor] => e[1] !== null);
    const upstream = g.names('dout.').map((name) => {
      const output = results[name];
      if (!output) throw new Error(`dout.${name} is given, but the op has no result ${name}`);
      return [output, g.tensor(`dout.${name}`, output.dtype === 'f32')] as const;
    });
    const grads = g.run(() => tape.backwardAll(upstream));
    for (const [name, t] of outputs) if (g.has(`out.${name}`)) await g.judge(`out.${name}`, t);
    for (const name of g.names('grad.')) {
      const leaf = made.get(name);
      // no gradient: nothing that has an upstream gradient depends on it
      if (leaf) await g.judge(`grad.${name}`, grads.get(leaf) ?? new Float32Array(leaf.size));
      else g.wrong(`grad.${name}: the op has no input ${name}`);
    }
  };
}

/** Starts of packed sequences: given, or derived from seq_idx (1, T), which says the same. */
function starts(g: Golden): Tensor | null {
  if (g.has('in.cu_seqlens')) return g.tensor('in.cu_seqlens');
  if (!g.has('in.seq_idx')) return null;
  const { data } = g.stored('in.seq_idx');
  const cuts = Array.from(data).flatMap((id, t) => (t === 0 || id !== data[t - 1] ? [t] : []));
  return g.run(() => Tensor.from([...cuts, data.length], undefined, { dtype: 'i32', device: g.options.device }));
}

const need = (t: Tensor | null, name: string): Tensor => {
  if (!t) throw new Error(`the file has no tensor in.${name}`);
  return t;
};

const activation = (g: Golden): 'none' | 'silu' => {
  g.only('activation', null, 'none', 'silu', 'swish');
  return ['silu', 'swish'].includes(String(g.attrs['activation'])) ? 'silu' : 'none';
};

interface LinearOperands extends Record<string, Tensor | null> {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  initialState: Tensor | null;
  cuSeqlens: Tensor | null;
}

function linearLike(run: (x: LinearOperands, input: Inputs, g: Golden) => { o: Tensor; finalState: Tensor }): Handler {
  return op((input, g) => {
    const { o, finalState } = run(
      { q: input('q')!, k: input('k')!, v: input('v')!, initialState: input('initial_state', 'f32'), cuSeqlens: starts(g) },
      input,
      g,
    );
    return { o, final_state: finalState };
  });
}

export const ops: Record<string, Handler> = {
  selective_scan: op((input, g) => {
    const { out, lastState } = selectiveScan(
      {
        u: input('u')!, delta: input('delta')!, A: input('A', 'f32')!, B: input('B')!, C: input('C')!, D: input('D', 'f32'), z: input('z'),
        deltaBias: input('delta_bias', 'f32'),
      },
      { deltaSoftplus: g.flag('delta_softplus') },
    );
    return { out, last_state: lastState };
  }),

  selective_state_update: op((input, g) => {
    const state = input('state', 'f32')!;
    const out = selectiveStateUpdate(
      {
        state, x: input('x')!, dt: input('dt')!, A: input('A', 'f32')!, B: input('B')!, C: input('C')!, D: input('D', 'f32'), z: input('z'),
        dtBias: input('dt_bias', 'f32'),
      },
      { dtSoftplus: g.flag('dt_softplus') },
    );
    return { out, new_state: state };
  }),

  ssd_chunk_scan: op((input, g) => {
    const { y, finalStates } = ssd(
      {
        x: input('x')!, dt: input('dt')!, A: input('A', 'f32')!, B: input('B')!, C: input('C')!, D: input('D', 'f32'), z: input('z'),
        dtBias: input('dt_bias', 'f32'), initialStates: input('initial_states', 'f32'), cuSeqlens: starts(g),
      },
      { dtSoftplus: g.flag('dt_softplus') },
    );
    return { y, final_states: finalStates };
  }),

  linear_attn: linearLike((x, _, g) => linearAttention(x, { scale: g.number('scale'), normalize: g.flag('normalize') })),
  simple_gla: linearLike((x, input, g) => {
    g.only('normalize', false);
    return simpleGla({ ...x, g: input('g')! }, { scale: g.number('scale') });
  }),
  gla: linearLike((x, input, g) => {
    g.only('normalize', false);
    return gla({ ...x, gk: input('gk')! }, { scale: g.number('scale') });
  }),

  attention: op((input, g) => ({
    ...attention(
      { q: input('q')!, k: input('k')!, v: input('v')!, cuSeqlensQ: input('cu_seqlens_q'), cuSeqlensK: input('cu_seqlens_k') },
      {
        scale: g.number('softmax_scale'), causal: g.flag('causal'), windowLeft: g.number('window_left', -1),
        windowRight: g.number('window_right', -1),
      },
    ),
  })),

  causal_conv1d: op((input, g) => {
    const { y, finalStates } = causalConv1d(
      { x: input('x')!, weight: input('weight')!, bias: input('bias'), initialStates: input('initial_states'), cuSeqlens: starts(g) },
      { activation: activation(g) },
    );
    return { y, final_states: finalStates };
  }),

  causal_conv1d_update: op((input, g) => {
    const convState = input('conv_state')!;
    const cacheSeqlens = g.flag('circular') ? need(input('cache_seqlens'), 'cache_seqlens') : null;
    const operands = { x: input('x')!, convState, weight: input('weight')!, bias: input('bias'), cacheSeqlens };
    const y = causalConv1dUpdate(operands, { activation: activation(g) });
    return { y, new_conv_state: convState };
  }),

  rmsnorm: op((input, g) => ({ y: rmsNorm({ x: input('x')!, weight: input('weight')! }, { eps: g.number('eps') }) })),

  gated_rmsnorm: op((input, g) => {
    g.only('norm_before_gate', true);
    return { y: gatedRmsNorm({ x: input('x')!, gate: input('gate')!, weight: input('weight')! }, { eps: g.number('eps') }) };
  }),

  rope: op((input, g) => {
    g.only('scaling', 'none', 'linear', 'dynamic');
    const { cos, sin } = ropeTable(
      {
        headDim: g.number('head_dim'), theta: g.number('theta'), scaling: g.text('scaling') as 'none' | 'linear' | 'dynamic',
        factor: g.number('factor', 1), maxPosition: g.number('max_position_embeddings'), seqLen: g.number('seq_len'),
      },
      g.options.device,
    );
    const { qEmbed, kEmbed } = rope({ q: input('q')!, k: input('k')!, cos, sin, positionIds: input('position_ids')! });
    const picked = g.has('out.rows') ? Int32Array.from(g.stored('out.rows').data) : null;
    const rows = picked && Tensor.from(picked, undefined, { device: g.options.device });
    g.seen('out.rows');
    return {
      q_embed: qEmbed,
      k_embed: kEmbed,
      cos_rows: rows && gatherRows({ x: cos, index: rows }),
      sin_rows: rows && gatherRows({ x: sin, index: rows }),
    };
  }),

  swiglu: op((input) => ({ y: swiglu({ a: input('a')!, b: input('b')! }) })),
  swiglu_mlp: op((input) => {
    const x = input('x')!;
    return { y: linear({ x: swiglu({ a: linear({ x, weight: input('w1')! }), b: linear({ x, weight: input('w3')! }) }), weight: input('w2')! }) };
  }),
  gelu: op((input) => ({ y: gelu({ x: input('x')! }) })),

  pixel_shuffle: op((input, g) => {
    g.only('scale_factor', 0.5);
    return { y: pixelShuffle({ x: input('x')! }) };
  }),
  pos_embed_bicubic: op((input, g) => ({
    y: posEmbedBicubic({ posEmbed: input('pos_embed')! }, { outH: g.number('out_h'), outW: g.number('out_w') }),
  })),
  patch_embed: op((input) => ({ y: patchEmbed({ x: input('x')!, weight: input('weight')!, bias: input('bias') }) })),
};
