import test from 'ava';
import { wsd, wsdOfRun } from '../../lib/train/schedule.js';

test('linear warmup, constant, cosine decay', (t) => {
  const at = wsd({ warmup: 2, stable: 3, decay: 4, minRatio: 0.1 });
  t.deepEqual([0, 1, 2, 3, 4, 5].map(at), [0.1, 0.55, 1, 1, 1, 1]);
  t.true(Math.abs(at(7) - 0.55) < 1e-12);
  t.deepEqual([9, 1000].map(at), [0.1, 0.1]);
});

test('without phases', (t) => {
  t.is(wsd({ warmup: 0, stable: 0, decay: 0 })(0), 0);
  t.is(wsd({ warmup: 0, stable: Infinity, decay: 0 })(1e9), 1);
});

test('a run by shares ends with its decay, or never decays', (t) => {
  const decaying = wsdOfRun(1000, { warmup: 0.1, decay: 0.1 });
  t.is(decaying(0), 0);
  t.is(decaying(100), 1);
  t.is(decaying(900), 1);
  t.true(decaying(999) > 0 && decaying(999) < 1e-3);
  t.is(decaying(1000), 0);
  const constant = wsdOfRun(20_000, { warmup: 0.25, decay: 0 });
  t.is(constant(2500), 0.5);
  t.is(constant(19_999), 1);
  t.is(wsdOfRun(3, { warmup: 0.5, decay: 0.5 })(2), 1); // rounding never makes the phases longer than the run
});
