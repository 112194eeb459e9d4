/** Warmup-stable-decay: how long each phase lasts, in updates. */
export interface WsdOptions {
  warmup: number;
  /** Infinity: never decays */
  stable: number;
  decay: number;
  /** multiplier at the first warmup step and after the decay; default 0 */
  minRatio?: number;
}

/** Multiplier of the base learning rate at update `step`, counted from 0. */
export type Schedule = (step: number) => number;

/**
 * Linear warmup, a constant phase, cosine decay (Hu et al. 2024, arXiv 2404.06395); numerically the defaults of
 * transformers' `get_wsd_schedule`. The first update of a warmup has the multiplier `minRatio`.
 */
export function wsd({ warmup, stable, decay, minRatio = 0 }: WsdOptions): Schedule {
  const between = (factor: number): number => Math.max(0, factor * (1 - minRatio) + minRatio);
  return (step) => {
    if (step < warmup) return between(step / warmup);
    if (step < warmup + stable) return 1;
    const progress = (step - warmup - stable) / decay;
    return progress < 1 ? between(0.5 * (1 + Math.cos(Math.PI * progress))) : minRatio;
  };
}

/** The schedule of a run of `steps` updates whose warmup and decay are parts of it (0 to 1 together); without a decay it ends constant. */
export function wsdOfRun(steps: number, shares: { warmup: number; decay: number }): Schedule {
  const warmup = Math.round(steps * shares.warmup);
  const decay = Math.min(Math.round(steps * shares.decay), steps - warmup);
  return wsd({ warmup, stable: decay > 0 ? steps - warmup - decay : Infinity, decay });
}
