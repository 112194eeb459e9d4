import { wsd } from '../../../lib/train/schedule.js';
import { AdamW, type Optimised } from '../../../lib/train/optimizer.js';
import type { Golden, Handler } from '../golden.js';

async function adamw(g: Golden): Promise<void> {
  const names = g.names('in.').flatMap((n) => /^(.*)\.grad1$/.exec(n)?.[1] ?? []);
  const parameters = names.map((name): Optimised => {
    const master = g.tensor(`in.${name}`, true);
    return { name, master, value: master };
  });
  const clip = g.attrs['clip_grad_norm'] === null ? 0 : g.number('clip_grad_norm', 0);
  const without = g.number('weight_decay_nodecay_group', 0);
  if (without !== 0) throw new Error(`attrs.weight_decay_nodecay_group is ${without}; the group without decay has 0`);
  using optimizer = new AdamW(parameters, {
    betas: [g.number('beta1', 0.9), g.number('beta2', 0.999)],
    eps: g.number('eps', 1e-8),
    weightDecay: g.number('weight_decay_decay_group', 0),
    clip,
    decays: (name) => !/nodecay|bias/.test(name),
  });
  const steps = Math.max(...g.names('in.').map((n) => Number(/\.grad(\d+)$/.exec(n)?.[1] ?? 0)));
  for (let s = 1; s <= steps; s++) {
    const grads = names.map((name) => g.tensor(`in.${name}.grad${s}`));
    const norm = g.run(() => optimizer.step(grads, g.number('lr')));
    if (g.has(`out.grad_norm.step${s}`)) await g.judge(`out.grad_norm.step${s}`, norm);
    const state = g.run(() => optimizer.state());
    for (const { name, master } of parameters) {
      if (g.has(`out.${name}.step${s}`)) await g.judge(`out.${name}.step${s}`, master);
      for (const moment of ['exp_avg', 'exp_avg_sq'])
        if (g.has(`out.${name}.${moment}.step${s}`)) await g.judge(`out.${name}.${moment}.step${s}`, state.get(`${name}.${moment}`)!);
    }
  }
}

interface WsdTable {
  table: Record<string, { args: Record<string, number>; steps: number[]; multiplier: number[] }>;
}

async function schedule(g: Golden): Promise<void> {
  const limit = g.tolerance('absolute') ?? 1e-7;
  const known = ['num_warmup_steps', 'num_stable_steps', 'num_decay_steps', 'num_training_steps', 'min_lr_ratio'];
  for (const [name, { args, steps, multiplier }] of Object.entries(((await g.json()) as WsdTable).table)) {
    const unknown = Object.keys(args).filter((a) => !known.includes(a));
    if (unknown.length) {
      g.wrong(`${name}: the arguments ${unknown.join(', ')} are not understood`);
      continue;
    }
    const warmup = args['num_warmup_steps'] ?? 0;
    const decay = args['num_decay_steps'] ?? 0;
    const stable = args['num_stable_steps'] ?? args['num_training_steps']! - warmup - decay;
    const at = wsd({ warmup, stable, decay, minRatio: args['min_lr_ratio'] ?? 0 });
    steps.forEach((step, i) => {
      const error = Math.abs(at(step) - multiplier[i]!);
      if (!(error <= limit)) g.wrong(`${name}: ${at(step)} where ${multiplier[i]} was expected at step ${step}`, error / limit);
    });
  }
}

export const optim: Record<string, Handler> = { adamw, wsd_schedule: schedule };
