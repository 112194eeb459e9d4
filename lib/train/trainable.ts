import { presets, type Preset } from './config.js';

export type Stage = 1 | 2 | 3;

// What names the parameters of a mixer, as substrings (the reference's `trainable_weights`).
const introduced = ['dt_bias', 'A_log_bias', 'attention.D', 'conv1d', 'in_proj', 'g_norm', 'g_proj', 'q_norm', 'k_norm'];
const inherited = ['q_proj', 'k_proj', 'v_proj'];
const output = ['o_proj'];

/**
 * Which parameters a stage of the distillation trains, by their names: stage 1 what attention did not have, stage 2 also
 * the projections that came from it, stage 3 the whole mixer but `frozen` (ends of names).
 */
export function trainableIn(stage: Stage, frozen: readonly string[]): (name: string) => boolean {
  const parts = stage === 1 ? introduced : stage === 2 ? [...introduced, ...inherited] : [...introduced, ...inherited, ...output];
  const kept = stage === 3 ? frozen : [];
  return (name) => parts.some((p) => name.includes(p)) && !kept.some((end) => name.endsWith(end));
}

/** As {@link trainableIn} with what a preset freezes. The reference leaves dt_bias and A_log_bias out of stage 3. */
export function trainableByPreset(stage: Stage, preset: Preset): (name: string) => boolean {
  return trainableIn(stage, presets[preset].stage3.frozen);
}
