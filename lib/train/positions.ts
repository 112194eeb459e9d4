import type { Batch } from './data/emoji/index.js';

/** Flat positions (b * L + t) of a batch whose logits count: all (null), those of tokens, or those that predict the answer. */
export function countedPositions(
  { attentionMask, labels }: Pick<Batch, 'attentionMask' | 'labels'>,
  which: 'all' | 'tokens' | 'answer',
): Int32Array | null {
  if (which === 'all') return null;
  const counts = (i: number): boolean => (which === 'tokens' ? attentionMask[i] === 1 : labels[i + 1] !== undefined && labels[i + 1] !== -100);
  return Int32Array.from(attentionMask.keys()).filter(counts);
}

/**
 * `list` with `fill` behind it, up to a multiple of the batch's rows: what is computed at counted positions then seldom changes
 * its shape from batch to batch.
 */
export function padded(list: Int32Array, rows: number, fill: number): Int32Array<ArrayBuffer> {
  const all = new Int32Array(Math.ceil(list.length / rows) * rows).fill(fill);
  all.set(list);
  return all;
}

/** The answers' tokens, and the positions whose logits predict them: labels[t] is predicted at t - 1. */
export function answerTargets({ labels }: Pick<Batch, 'labels'>): { positions: Int32Array; targets: Int32Array } {
  const at = Int32Array.from(labels.keys()).filter((t) => labels[t] !== -100);
  return { positions: at.map((t) => t - 1), targets: at.map((t) => labels[t]!) };
}
