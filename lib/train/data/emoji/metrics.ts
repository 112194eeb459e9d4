import { MmError } from '../../../native/errors.js';
import type { Question } from './questions.js';

/** Share of right answers, with the counts behind it. */
export interface Score {
  correct: number;
  total: number;
  /** correct / total; NaN if nothing was asked */
  accuracy: number;
}

/** POPE's figures; "yes" is the positive class. A share whose denominator is 0 is 0, as in POPE's own script. */
export interface PopeScore extends Score {
  truePositives: number;
  falsePositives: number;
  trueNegatives: number;
  falseNegatives: number;
  /** answers that are neither "yes" nor "no"; they are judged by POPE's rule, so counted above as well */
  malformed: number;
  precision: number;
  recall: number;
  f1: number;
  /** share of questions answered yes; 0.5 where the model has no leaning */
  yesRatio: number;
}

/**
 * Right only if the whole answer is right, word by word. Serves names and groups.
 * @param answers generated words, without `<eos>`, in the order of the questions
 */
export function scoreExact(questions: readonly Question[], answers: readonly (readonly string[])[]): Score {
  checkCounts(questions, answers);
  const correct = questions.filter(({ answerWords }, i) => answerWords.join(' ') === answers[i].join(' ')).length;
  return { correct, total: questions.length, accuracy: correct / questions.length };
}

/** Scores yes/no answers. POPE's rule for free text: an answer with "no" or "not" in it means no, all else yes. */
export function scorePope(questions: readonly Question[], answers: readonly (readonly string[])[]): PopeScore {
  checkCounts(questions, answers);
  const counts = { truePositives: 0, falsePositives: 0, trueNegatives: 0, falseNegatives: 0, malformed: 0 };
  questions.forEach((question, i) => {
    const words = answers[i];
    const said = !words.includes('no') && !words.includes('not');
    const truth = question.answerWords[0] === 'yes';
    if (words.length !== 1 || (words[0] !== 'yes' && words[0] !== 'no')) counts.malformed++;
    if (said) counts[truth ? 'truePositives' : 'falsePositives']++;
    else counts[truth ? 'falseNegatives' : 'trueNegatives']++;
  });
  const { truePositives, falsePositives, trueNegatives, falseNegatives } = counts;
  const total = questions.length;
  const correct = truePositives + trueNegatives;
  const share = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);
  return {
    ...counts,
    correct,
    total,
    accuracy: correct / total,
    precision: share(truePositives, truePositives + falsePositives),
    recall: share(truePositives, truePositives + falseNegatives),
    f1: share(2 * truePositives, 2 * truePositives + falsePositives + falseNegatives),
    yesRatio: (truePositives + falsePositives) / total,
  };
}

function checkCounts(questions: readonly unknown[], answers: readonly unknown[]): void {
  if (questions.length !== answers.length) {
    throw new MmError('ERR_ARGUMENT', `${questions.length} questions but ${answers.length} answers`);
  }
}
