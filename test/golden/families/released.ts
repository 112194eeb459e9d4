import { noGrad, Tape } from '../../../lib/autograd/tape.js';
import { RotaryTables } from '../../../lib/models/hovle/rotary.js';
import type { SequenceContext } from '../../../lib/models/context.js';
import { concat, reshape } from '../../../lib/ops/index.js';
import { Tensor } from '../../../lib/tensor/tensor.js';
import type { Golden, Handler } from '../golden.js';
import { judgeSteps } from './models.js';
import { batchOf, judgeLogits, judgeState, kept, withModel } from './support.js';

const seeAll = (g: Golden): void => g.names('out.').forEach((name) => g.seen(`out.${name}`));

/** Prompt at once: logits of all positions and the states behind the last. */
const prefill: Handler = (g) =>
  withModel(g, g.text('model'), async (model) => {
    const { logits, state } = g.run(() => model.prefill(model.prepare(batchOf(g)), { logits: 'all' }));
    using states = state;
    await judgeLogits(g, 'out.logits', logits);
    if (g.options.dtype === 'f32') await judgeState(g, 'out.state.', model, states);
    else seeAll(g);
  });

/** Token by token from the empty state. */
const decode: Handler = (g) =>
  withModel(g, g.text('model'), async (model) => {
    const { data, shape } = g.stored('in.input_ids');
    const [batch, length] = shape as [number, number];
    using state = model.state(batch);
    const rows: Tensor[] = [];
    for (let t = 0; t < length; t++) {
      const tokens = Array.from({ length: batch }, (_, b) => data[b * length + t]!);
      rows.push(g.run(() => reshape(model.step(tokens, state), [batch, 1, -1])));
      if (g.options.dtype === 'f32') await judgeState(g, `out.state${t + 1}.`, model, state);
    }
    await judgeLogits(g, 'out.logits', g.run(() => concat({ x: rows }, { axis: 1 })), false);
    if (g.options.dtype !== 'f32') seeAll(g);
  });

/** Prompt at once, then greedy recurrent steps; the last token is consumed too. */
const generate: Handler = (g) =>
  withModel(g, g.text('model'), async (model) => {
    const expected = g.stored('out.tokens');
    const [batch, steps] = expected.shape as [number, number];
    const { logits, state } = g.run(() => model.prefill(model.prepare(batchOf(g))));
    using states = state;
    const rows = [logits];
    for (let t = 0; t < steps; t++) {
      const tokens = Array.from({ length: batch }, (_, b) => expected.data[b * steps + t]!);
      rows.push(g.run(() => model.step(tokens, states)));
    }
    await judgeSteps(g, rows.slice(0, steps));
    if (g.options.dtype === 'f32') await judgeState(g, 'out.state_final.', model, states);
    else seeAll(g);
  });

/** One mixer with its intermediates, state and all gradients. */
const mixer: Handler = (g) =>
  withModel(g, g.text('model'), async (model) => {
    const block = model.blocks.find((b) => b.label === g.text('layer'));
    if (block?.mixer.type !== 'mamba2') throw new Error(`attrs.layer is '${g.text('layer')}', which is no layer with a mixer`);
    const { mixer: m } = block;
    for (const p of m.parameters()) p.trainable = true;
    const hidden = g.tensor('in.hidden');
    hidden.requiresGrad = true;
    const [batch, length] = hidden.shape as [number, number];
    using rotary = new RotaryTables(block.config.rope, block.config.headDim, model.placement.device);
    const positions = g.run(() => Tensor.from(new Int32Array(length).map((_, i) => i), [1, length], { device: model.placement.device }));
    const context: SequenceContext = { batch, length, positions, rotary, span: length, lengths: null, padding: null };

    const taps = new Map<string, Tensor>();
    using tape = new Tape();
    const tap = (name: string, t: Tensor): void => void taps.set(name, kept(g, t));
    const out = g.run(() => tape.record(() => m.output.forward(reshape(m.heads(hidden, context, tap), [batch, length, -1]))));
    const { state } = g.run(() => noGrad(() => m.prefill(hidden, context)));
    const grads = g.run(() => tape.backwardAll([[out, g.tensor('dout.out')]]));
    await g.judge('out.out', out);
    for (const [name, t] of taps) if (g.has(`out.${name}`)) await g.judge(`out.${name}`, t);
    if (state.conv) await g.judge('out.state.conv', state.conv);
    await g.judge('out.state.ssm', state.ssm);
    for (const t of Object.values(state)) if (t instanceof Tensor) t.dispose();
    const leaves = new Map<string, Tensor>([['hidden', hidden], ...m.parameters().map((p) => [p.name.slice(m.path.length + 1), p.value] as const)]);
    for (const name of g.names('grad.')) {
      const grad = leaves.has(name) ? grads.get(leaves.get(name)!) : undefined;
      if (grad) await g.judge(`grad.${name}`, grad);
      else g.wrong(`grad.${name}: there is no gradient of it`);
    }
  });

export const released: Record<string, Handler> = {
  released_forward: prefill,
  recurrent_decode: decode,
  recurrent_generate: generate,
  mmmamba_mixer: mixer,
};
