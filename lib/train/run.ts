import type { Progress } from './progress.js';

/** What a run is told beside its configuration. */
export interface RunOptions {
  /** folder of metrics, checkpoints and models */
  readonly out: string;
  /** 'cpu', 'cuda', 'cuda:1' or 'auto' */
  readonly device: string;
  /** continue the run in `out`, bit for bit */
  readonly resume?: boolean;
  /** stops after the update at hand, with a checkpoint */
  readonly signal?: AbortSignal;
  readonly progress: Progress;
}

/** Streams of a run's seed that must not meet: one a stage. */
export const dataSeed = (seed: number, stage: 0 | 1 | 2 | 3): number => 4 * seed + stage;
