import { realpath } from 'node:fs/promises';
import { isAbsolute, relative, resolve, sep } from 'node:path';
import { readJsonl } from '../../io/jsonl.js';
import type { BrokenLine } from '../../io/jsonl.js';
import { MmError } from '../../native/errors.js';

/**
 * Reader of InternVL's JSONL: one sample a line,
 * `{"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat …"}, {"from": "gpt", …}]}`.
 * `image` may be a path, a list of paths or absent; other keys are ignored.
 */
export interface InternvlSample {
  id: string | undefined;
  /** absolute paths below the image root, one for each `<image>` in the order of the placeholders */
  images: string[];
  /** an optional system turn, then human and gpt in turn; ends with gpt */
  turns: InternvlTurn[];
  /** 1-based line of the file */
  line: number;
}

export interface InternvlTurn {
  from: 'system' | 'human' | 'gpt';
  text: string;
}

export interface InternvlOptions {
  /** image paths are relative to this folder and may not leave it */
  imageRoot: string;
  /** a broken line: throw (default), or skip it */
  onError?: 'throw' | 'skip';
  /** hears of every skipped line */
  onSkip?: (error: MmError) => void;
  /** also demand that images exist and that no link leads out of the root; default false, as it costs a look-up each */
  checkImages?: boolean;
}

/**
 * Yields the samples of a file, line by line; empty lines are passed over. A broken line is an MmError
 * ERR_FILE_FORMAT whose message begins `file:line:`; a file that cannot be read throws ERR_FILE_IO in either mode.
 */
export async function* readInternvlJsonl(file: string, options: InternvlOptions): AsyncGenerator<InternvlSample> {
  const { imageRoot, onError = 'throw', onSkip, checkImages = false } = options;
  const skip = (line: number, reason: string) =>
    onSkip?.(new MmError('ERR_FILE_FORMAT', `${file}:${line}: ${reason}`));
  const onBroken = ({ line, reason }: BrokenLine) => skip(line, reason);
  for await (const { line, value } of readJsonl(file, { broken: onError, onBroken })) {
    let sample: InternvlSample;
    try {
      sample = parseSample(value, imageRoot, line);
      if (checkImages) for (const image of sample.images) await checkImage(image, imageRoot);
    } catch (cause) {
      if (!(cause instanceof Broken)) throw cause;
      if (onError === 'throw') throw new MmError('ERR_FILE_FORMAT', `${file}:${line}: ${cause.message}`);
      skip(line, cause.message);
      continue;
    }
    yield sample;
  }
}

/** A fault of one line, before it is known which file it is in. */
class Broken extends Error {}

function parseSample(json: unknown, imageRoot: string, line: number): InternvlSample {
  if (!isObject(json)) throw new Broken('expected a JSON object');
  const { id } = json;
  if (id !== undefined && typeof id !== 'string' && typeof id !== 'number') {
    throw new Broken('id: expected a string or a number');
  }
  const images = parseImages(json.image).map((name) => resolveImage(name, imageRoot));
  return { id: id === undefined ? undefined : String(id), images, turns: parseTurns(json, images.length), line };
}

function parseImages(image: unknown): string[] {
  if (image === undefined || image === null) return [];
  const list = Array.isArray(image) ? (image as unknown[]) : [image];
  for (const name of list) {
    if (typeof name !== 'string' || name === '') throw new Broken('image: expected a path or a list of paths');
  }
  return list as string[];
}

function resolveImage(name: string, imageRoot: string): string {
  // A backslash separates folders on Windows only, but a data set is to mean the same everywhere.
  if (isAbsolute(name) || /^[a-z]:|\0/i.test(name) || name.split(/[\\/]/).includes('..')) {
    throw new Broken(`image: "${name}" is not a path below the image root`);
  }
  const path = resolve(imageRoot, name);
  if (!isBelow(path, resolve(imageRoot))) throw new Broken(`image: "${name}" is not a path below the image root`);
  return path;
}

async function checkImage(path: string, imageRoot: string): Promise<void> {
  let real: string;
  try {
    real = await realpath(path);
  } catch (cause) {
    throw new Broken(`image: ${(cause as Error).message}`);
  }
  if (!isBelow(real, await realpath(imageRoot))) throw new Broken(`image: ${path} links out of the image root`);
}

function isBelow(path: string, root: string): boolean {
  const way = relative(root, path);
  return way !== '' && way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way);
}

function parseTurns(json: Record<string, unknown>, imageCount: number): InternvlTurn[] {
  const list = json.conversations;
  if (!Array.isArray(list) || list.length === 0) throw new Broken('conversations: expected a list of turns');
  const turns = list.map((turn: unknown, i): InternvlTurn => {
    if (!isObject(turn) || typeof turn.value !== 'string') {
      throw new Broken(`conversations[${i}]: expected {"from": …, "value": string}`);
    }
    const { from, value } = turn as { from: unknown; value: string };
    if (from !== 'human' && from !== 'gpt' && !(from === 'system' && i === 0)) {
      throw new Broken(`conversations[${i}].from: expected human or gpt, got ${JSON.stringify(from)}`);
    }
    return { from, text: value };
  });
  const dialogue = turns.filter(({ from }) => from !== 'system');
  dialogue.forEach(({ from, text }, i) => {
    const due = i % 2 === 0 ? 'human' : 'gpt';
    if (from !== due) throw new Broken(`conversations: turn ${i + 1} is ${from}, expected ${due}`);
    if (from === 'gpt' && text.trim() === '') throw new Broken(`conversations: turn ${i + 1}: the answer is empty`);
  });
  if (dialogue.length === 0 || dialogue.length % 2 === 1) {
    throw new Broken('conversations: expected pairs of a human and a gpt turn');
  }

  if (turns.some(({ from, text }) => from !== 'human' && text.includes('<image>'))) {
    throw new Broken('conversations: <image> outside a human turn');
  }
  const placeholders = turns.reduce((sum, { text }) => sum + text.split('<image>').length - 1, 0);
  // InternVL puts a lone image in front of the first question if no placeholder says where it goes.
  if (placeholders === 0 && imageCount === 1) dialogue[0].text = `<image>\n${dialogue[0].text}`;
  else if (placeholders !== imageCount) {
    throw new Broken(`${placeholders} <image> placeholders for ${imageCount} images`);
  }
  return turns;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
