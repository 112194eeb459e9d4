import test from 'ava';
import { cast, Tensor } from '../../lib/index.js';
import { memoryStats } from '../../lib/tensor/memory.js';
import { AdamW, type Optimised } from '../../lib/train/optimizer.js';
import { balanced, fails } from '../core/support.js';

const list = async (t: Tensor): Promise<number[]> => [...(await t.toFloat32())];

/** torch.optim.AdamW after clip_grad_norm_, in float64. */
function reference(p: number[], grads: number[][], lr: number, decay: number, scales: number[]): number[] {
  const m = p.map(() => 0);
  const v = p.map(() => 0);
  const out = [...p];
  grads.forEach((g, s) => {
    for (let i = 0; i < p.length; i++) {
      const x = g[i]! * scales[s]!;
      m[i] = 0.9 * m[i]! + 0.1 * x;
      v[i] = 0.999 * v[i]! + 0.001 * x * x;
      out[i] = out[i]! * (1 - lr * decay) - (lr * (m[i]! / (1 - 0.9 ** (s + 1)))) / (Math.sqrt(v[i]! / (1 - 0.999 ** (s + 1))) + 1e-8);
    }
  });
  return out;
}

const near = (actual: number[], expected: number[], limit = 1e-6): boolean => actual.every((a, i) => Math.abs(a - expected[i]!) <= limit);

test.serial('two groups: what bears bias in its name does not decay; gradients are clipped together', async (t) => {
  await balanced(t, async () => {
    const start = [0.5, -1, 2];
    const parameters = ['mixer.conv1d.weight', 'mixer.conv1d.bias', 'mixer.A_log_bias'].map((name): Optimised => {
      const master = Tensor.from(start);
      return { name, master, value: master };
    });
    const optimizer = new AdamW(parameters, { weightDecay: 0.5, clip: 1 });
    const gradients = [[3, 0, -4], [0.1, 0.2, 0.3]];
    for (const g of gradients) {
      const tensors = parameters.map(() => Tensor.from(g));
      const norm = optimizer.step(tensors, 0.01);
      t.true(Math.abs((await norm.item()) - Math.sqrt(3 * g.reduce((s, x) => s + x * x, 0))) < 1e-5);
      for (const x of [...tensors, norm]) x.dispose();
    }
    const scales = gradients.map((g) => Math.min(1, 1 / (Math.sqrt(3 * g.reduce((s, x) => s + x * x, 0)) + 1e-6)));
    t.true(near(await list(parameters[0]!.master), reference(start, gradients, 0.01, 0.5, scales)));
    for (const p of parameters.slice(1)) t.true(near(await list(p.master), reference(start, gradients, 0.01, 0, scales)));
    t.is(optimizer.updates, 2);
    optimizer.dispose();
    for (const p of parameters) p.master.dispose();
  });
});

test.serial('low-precision copies follow their f32 masters; a null gradient leaves a parameter alone', async (t) => {
  await balanced(t, async () => {
    const master = Tensor.from([1, 2, 3]);
    const value = cast({ x: master }, { dtype: 'bf16' });
    const other = Tensor.from([7]);
    using optimizer = new AdamW([{ name: 'w', master, value }, { name: 'u', master: other, value: other }], { weightDecay: 0 });
    using g = Tensor.from([1, -1, 0.5], undefined, { dtype: 'bf16' });
    for (let i = 0; i < 3; i++) optimizer.step([g, null], 1e-3).dispose();
    using rounded = cast({ x: master }, { dtype: 'bf16' });
    t.deepEqual(await list(value), await list(rounded));
    t.true(near(await list(master), [0.997, 2.003, 2.997], 1e-5));
    t.deepEqual(await list(other), [7]);
    for (const x of [master, value, other]) x.dispose();
  });
});

test.serial('a saved state continues bit for bit', async (t) => {
  await balanced(t, async () => {
    const run = async (steps: number, resumeAt: number): Promise<number[]> => {
      const master = Tensor.from([0.3, -0.7]);
      const parameters = [{ name: 'w', master, value: master }];
      let optimizer = new AdamW(parameters, { weightDecay: 0.1 });
      for (let s = 0; s < steps; s++) {
        if (s === resumeAt) {
          const state = optimizer.state();
          const { updates } = optimizer;
          optimizer.dispose();
          optimizer = new AdamW(parameters, { weightDecay: 0.1 });
          optimizer.load(state, updates);
          for (const x of state.values()) x.dispose();
        }
        using g = Tensor.from([Math.sin(s), Math.cos(s)]);
        optimizer.step([g], 1e-2).dispose();
      }
      const out = await list(master);
      optimizer.dispose();
      master.dispose();
      return out;
    };
    t.deepEqual(await run(5, 3), await run(5, -1));
  });
});

test.serial('states and gradients that do not fit', async (t) => {
  await balanced(t, async () => {
    using master = Tensor.from([1, 2]);
    using low = Tensor.from([1], undefined, { dtype: 'bf16' });
    await fails(t, () => new AdamW([{ name: 'w', master: low, value: low }]), 'ERR_DTYPE', /parameter w has a bf16 master/);
    for (const betas of [[0.9, 1], [-0.1, 0.9], [NaN, 0.9]] as const)
      await fails(t, () => new AdamW([{ name: 'w', master, value: master }], { betas }), 'ERR_ARGUMENT', /betas: expected two numbers in \[0, 1\), got/);
    using optimizer = new AdamW([{ name: 'w', master, value: master }]);
    await fails(t, () => optimizer.step([], 1), 'ERR_ARGUMENT', /0 gradients for 1 parameters/);
    await fails(t, () => optimizer.load(new Map(), 1), 'ERR_ARGUMENT', /lacks w\.exp_avg/);
    const state = optimizer.state();
    using stray = Tensor.from([1]);
    const more = new Map([...state, ['v.exp_avg', stray]]);
    await fails(t, () => optimizer.load(more, 1), 'ERR_ARGUMENT', /has v\.exp_avg, which no optimised parameter has/);
    await fails(t, () => optimizer.load(new Map([...state, ['w.exp_avg', stray]]), 1), 'ERR_SHAPE', /\[1\].*\[2\]|\[2\].*\[1\]/);
    for (const x of state.values()) x.dispose();
    t.true(memoryStats().tensors > 0);
  });
});
