import test from 'ava';
import { loadModel } from '../../lib/models/index.js';
import { measureContext } from '../../lib/train/longcontext.js';
import { golden, leakFree } from '../models/_golden.js';

const lengths = [64, 128, 256];

for (const name of ['mmmamba_tiny_linear', 'mmmamba_tiny_hybrid', 'hovle_tiny'])
  test.serial(`${name}: memory by length, and as many rounds as asked for`, (t) =>
    leakFree(t, async () => {
      using model = await loadModel(golden('models', name), { dtype: 'bf16' });
      const rounds: number[] = [];
      const points = await measureContext(model, { lengths, rounds: 2, onRound: (done) => rounds.push(done) });
      t.deepEqual(rounds, [1, 2]);
      t.deepEqual(points.map(({ tokens }) => tokens), lengths);
      t.true(points.every(({ msPerToken }) => msPerToken > 0));
      const [a, b, c] = points.map(({ bytes }) => bytes) as [number, number, number];
      const perToken = model.blocks.reduce((sum, { mixer, config }) => sum + (mixer.type === 'mha' ? 2 * 2 * config.kvHeads * config.headDim : 0), 0);
      t.is(perToken > 0, name !== 'mmmamba_tiny_linear');
      t.deepEqual([b - a, c - b], [64 * perToken, 128 * perToken]);
    }),
  );

test.serial('time that is over ends it after a round; a signal, at once', (t) =>
  leakFree(t, async () => {
    using model = await loadModel(golden('models/mmmamba_tiny_hybrid'));
    const rounds: number[] = [];
    t.is((await measureContext(model, { lengths, seconds: 0, onRound: (done) => rounds.push(done) })).length, 3);
    t.deepEqual(rounds, [1]);
    const stopped = measureContext(model, { lengths, signal: AbortSignal.abort() });
    await t.throwsAsync(stopped, { code: 'ERR_ABORTED', message: /measurement of long contexts was stopped/ });
  }),
);
