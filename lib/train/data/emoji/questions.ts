import { MmError } from '../../../native/errors.js';
import type { Rng } from '../rng.js';
import type { EmojiSelection } from './names.js';

export const questionKinds = ['name', 'group', 'yesno'] as const;
export type QuestionKind = (typeof questionKinds)[number];

/** A question about one image and its answer, as words. */
export interface Question {
  kind: QuestionKind;
  /** the name that is in the image, index into `selection.names` */
  name: number;
  /** the name that is asked for; differs from `name` where the answer is "no" */
  asked: number;
  promptWords: string[];
  answerWords: string[];
}

const namePrompt = ['what', 'is', 'this', '?'];
const groupPrompt = ['what', 'group', '?'];
const yesNoPrompt = (words: readonly string[]) => ['is', 'there', 'a', ...words, '?'];

/** The questions that can be asked about a selection. */
export class EmojiQuestions {
  readonly #selection: EmojiSelection;
  /** name indices by group */
  readonly #members: number[][];

  constructor(selection: EmojiSelection) {
    this.#selection = selection;
    this.#members = selection.groups.map(() => []);
    selection.names.forEach((name, index) => this.#members[name.group].push(index));
  }

  /** One question of a kind; for `yesno` a fair coin chooses between a positive and a negative. */
  buildSample(nameIndex: number, kind: QuestionKind, rng: Rng): Question {
    if (kind === 'name') return this.name(nameIndex);
    if (kind === 'group') return this.group(nameIndex);
    return this.yesNo(nameIndex, rng.chance(0.5) ? nameIndex : this.negative(nameIndex, rng));
  }

  name(nameIndex: number): Question {
    const { words } = this.#name(nameIndex);
    return { kind: 'name', name: nameIndex, asked: nameIndex, promptWords: namePrompt, answerWords: words };
  }

  group(nameIndex: number): Question {
    const answerWords = this.#selection.groups[this.#name(nameIndex).group];
    return { kind: 'group', name: nameIndex, asked: nameIndex, promptWords: groupPrompt, answerWords };
  }

  yesNo(nameIndex: number, asked: number): Question {
    return {
      kind: 'yesno',
      name: nameIndex,
      asked,
      promptWords: yesNoPrompt(this.#name(asked).words),
      answerWords: [asked === nameIndex ? 'yes' : 'no'],
    };
  }

  /** Another name of the same group, and none that some artist draws exactly like this one. */
  negative(nameIndex: number, rng: Rng): number {
    const { group, twins } = this.#name(nameIndex);
    const members = this.#members[group];
    const choices = members.length - 1 - twins.filter((twin) => this.#name(twin).group === group).length;
    if (choices < 1) {
      throw new MmError('ERR_CONFIG', `group "${this.#selection.groups[group].join(' ')}" has no negative to ask for`);
    }
    for (;;) {
      const other = members[rng.int(members.length)];
      if (other !== nameIndex && !twins.includes(other)) return other;
    }
  }

  #name(index: number) {
    const name = this.#selection.names[index];
    if (!name) {
      throw new MmError('ERR_ARGUMENT', `name index ${index}: expected 0 to ${this.#selection.names.length - 1}`);
    }
    return name;
  }
}

/** Every word that a question or an answer can hold, as lines of words and single spaces to build a vocabulary from. */
export function emojiCorpus(selection: EmojiSelection): string[] {
  return [
    namePrompt.join(' '),
    groupPrompt.join(' '),
    yesNoPrompt([]).join(' '),
    'yes',
    'no',
    ...selection.groups.map((words) => words.join(' ')),
    ...selection.names.map(({ words }) => words.join(' ')),
  ];
}
