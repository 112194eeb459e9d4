import test from 'ava';
import { scoreExact, scorePope } from '../../lib/train/data/emoji/index.js';
import type { Question } from '../../lib/train/data/emoji/index.js';

const question = (answer: string): Question => ({
  kind: 'name',
  name: 0,
  asked: 0,
  promptWords: [],
  answerWords: answer.split(' '),
});
const words = (answers: string[]) => answers.map((answer) => (answer === '' ? [] : answer.split(' ')));

test('a name counts only as a whole', (t) => {
  const questions = ['red apple', 'red apple', 'bear', 'dog'].map(question);
  const score = scoreExact(questions, words(['red apple', 'red', 'bear bear', '']));
  t.deepEqual(score, { correct: 1, total: 4, accuracy: 0.25 });
  t.is(scoreExact([], []).accuracy, NaN);
});

test('POPE on a hand-made confusion matrix: 3 hits, 1 false alarm, 2 right refusals, 2 misses', (t) => {
  const truth = ['yes', 'yes', 'yes', 'no', 'no', 'no', 'yes', 'yes'].map(question);
  const score = scorePope(truth, words(['yes', 'yes', 'yes', 'yes', 'no', 'no', 'no', 'no']));
  t.like(score, { truePositives: 3, falsePositives: 1, trueNegatives: 2, falseNegatives: 2, malformed: 0 });
  t.is(score.accuracy, 5 / 8);
  t.is(score.precision, 3 / 4);
  t.is(score.recall, 3 / 5);
  t.is(score.f1, 2 / 3);
  t.is(score.yesRatio, 1 / 2);
});

test('POPE without a single yes, and answers that are neither', (t) => {
  const truth = ['yes', 'no'].map(question);
  t.like(scorePope(truth, words(['no', 'no'])), { precision: 0, recall: 0, f1: 0, yesRatio: 0, accuracy: 0.5 });
  const odd = scorePope(truth, words(['red apple', 'there is no bear']));
  t.like(odd, { truePositives: 1, trueNegatives: 1, malformed: 2 });
  t.is(scorePope(truth, words(['', 'yes'])).malformed, 1);
});

test('as many answers as questions', (t) => {
  t.throws(() => scoreExact([question('bear')], []), { code: 'ERR_ARGUMENT', message: /1 questions but 0 answers/ });
  t.throws(() => scorePope([], [['yes']]), { code: 'ERR_ARGUMENT' });
});
