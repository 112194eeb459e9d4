import { MmError } from '../native/errors.js';
import { argmax, sample } from '../ops/index.js';
import { scope, untracked } from '../tensor/scope.js';
import type { Held } from '../nn/captured.js';
import type { Tensor } from '../tensor/tensor.js';
import { Decoder } from './decoder.js';
import type { Batch } from './inputs.js';
import type { VisionLanguageModel } from './model.js';
import type { RecurrentState } from './state.js';

export interface GenerateOptions {
  /** new tokens a row at most */
  maxTokens: number;
  /** ids that end a row; default the configuration's eos_token_id, all of them */
  stopTokens?: readonly number[];
  /** 0 (default): the most likely token; above: sampled from softmax(logits / temperature) */
  temperature?: number;
  /** sample from this many most likely tokens; 0 (default): all */
  topK?: number;
  /** then from the fewest most likely ones that reach this probability; default 1 */
  topP?: number;
  /** of the samples; the same seed gives the same text on one device. Default 0 */
  seed?: number;
  /** stops between two tokens with ERR_ABORTED */
  signal?: AbortSignal;
}

/** One step of generation. */
export interface Generated {
  /** counted from 0 */
  index: number;
  /** (B): the new tokens, stop tokens included; -1 in rows that had ended before */
  tokens: Int32Array;
}

function check({ maxTokens, temperature = 0, topK = 0, topP = 1, seed = 0 }: GenerateOptions): void {
  const bad = (name: string, want: string, got: number): MmError => new MmError('ERR_ARGUMENT', `${name}: expected ${want}, got ${got}`);
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 0) throw bad('maxTokens', 'a non-negative integer', maxTokens);
  if (!(temperature >= 0 && Number.isFinite(temperature))) throw bad('temperature', 'a number of at least 0', temperature);
  if (!Number.isSafeInteger(topK) || topK < 0) throw bad('topK', 'a non-negative integer', topK);
  if (!(topP > 0 && topP <= 1)) throw bad('topP', 'a number in (0, 1]', topP);
  if (!Number.isSafeInteger(seed) || seed < 0) throw bad('seed', 'a non-negative integer', seed);
}

/**
 * Generates token by token: one prefill of the prompts, then recurrent steps. The device computes the next step while the
 * host looks at the last token. Ends when every row has met a stop token, or after maxTokens.
 * @throws MmError ERR_ARGUMENT; ERR_ABORTED when `signal` fires
 */
export async function* generate(model: VisionLanguageModel, prompt: Batch, options: GenerateOptions): AsyncGenerator<Generated, void, void> {
  check(options);
  const { maxTokens, temperature = 0, topK = 0, topP = 1, seed = 0, signal } = options;
  const stops = new Set(options.stopTokens ?? model.config.endTokens);
  const alive = (): void => {
    if (signal?.aborted) throw new MmError('ERR_ABORTED', 'generation was aborted', { cause: signal.reason });
  };
  const pick = (logits: Tensor, offset: number): Tensor =>
    temperature === 0 ? argmax({ x: logits }) : sample({ logits }, { temperature, topK, topP, seed, offset });

  alive();
  if (maxTokens === 0) return;
  const ended = new Array<boolean>(prompt.size).fill(false);
  let decoder: Decoder | undefined;
  let state: RecurrentState | undefined;
  let logits: Held<Tensor> | undefined;
  try {
    const prefilled = untracked(() => scope(() => model.prefill(model.prepare(prompt))));
    state = prefilled.state;
    logits = { value: prefilled.logits, [Symbol.dispose]: () => prefilled.logits.dispose() };
    decoder = new Decoder(model, state);
    for (let index = 0; index < maxTokens; index++) {
      const source = logits!;
      using next: Tensor = untracked(() => pick(source.value, index));
      source[Symbol.dispose]();
      const pending = next.data();
      pending.catch(() => undefined); // awaited below, unless the step throws first
      if (index + 1 < maxTokens) logits = await decoder.step(next);
      const tokens = Int32Array.from(await pending, (token, b) => (ended[b] ? -1 : token));
      tokens.forEach((token, b) => (ended[b] ||= stops.has(token)));
      alive();
      yield { index, tokens };
      if (ended.every((e) => e)) return;
      alive();
    }
  } finally {
    logits?.[Symbol.dispose]();
    decoder?.dispose();
    state?.dispose();
  }
}

/** All new tokens of every row, without the stop token. See generate(). */
export async function generateTokens(model: VisionLanguageModel, prompt: Batch, options: GenerateOptions): Promise<number[][]> {
  const stops = new Set(options.stopTokens ?? model.config.endTokens);
  const rows: number[][] = Array.from({ length: prompt.size }, () => []);
  for await (const { tokens } of generate(model, prompt, options))
    tokens.forEach((token, b) => {
      if (token >= 0 && !stops.has(token)) rows[b]!.push(token);
    });
  return rows;
}
