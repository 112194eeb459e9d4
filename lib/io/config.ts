import { readFile } from 'node:fs/promises';
import { isAlias, isMap, isPair, isScalar, isSeq, LineCounter, parseDocument, type Document, type Node } from 'yaml';
import { z } from 'zod';
import { MmError } from '../native/errors.js';
import { fileError, reasonOf } from './fail.js';
import { JsonSyntaxError, parseJson } from './json.js';
import { unknownKeys } from './unknown-keys.js';

type Path = readonly PropertyKey[];

const MOST_PROBLEMS = 20;

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw fileError('read', path, cause);
  }
}

/** A YAML document (JSON is one, too) that knows where its keys stand. */
class Source {
  private readonly counter = new LineCounter();
  readonly document: Document.Parsed;

  constructor(
    readonly path: string,
    text: string,
  ) {
    this.document = parseDocument(text, { lineCounter: this.counter, prettyErrors: false });
  }

  /** `file:line:column`, both from 1. */
  at(offset: number): string {
    const { line, col } = this.counter.linePos(offset);
    return `${this.path}:${line}:${col}`;
  }

  /** Where the key at `path` stands, or the nearest key above it that is there. */
  locate(path: Path): string {
    let node: unknown = this.document.contents;
    let offset = (node as Node | null)?.range?.[0] ?? 0;
    for (const step of path) {
      if (isAlias(node)) node = node.resolve(this.document);
      if (isMap(node)) {
        const pair: unknown = node.items.find(({ key }) => isScalar(key) && String(key.value) === String(step));
        if (!isPair(pair)) break;
        offset = (pair.key as Node).range?.[0] ?? offset;
        node = pair.value;
      } else if (isSeq(node)) {
        node = node.items[Number(step)];
        offset = (node as Node | undefined)?.range?.[0] ?? offset;
      } else break;
    }
    return this.at(offset);
  }
}

const spell = (path: Path): string =>
  path.reduce<string>((text, step) => (typeof step === 'number' ? `${text}[${step}]` : text === '' ? String(step) : `${text}.${String(step)}`), '');

/** zod's issues, one for each key that is wrong. */
function flatten(issues: readonly z.core.$ZodIssue[], prefix: Path = []): { path: Path; message: string; code: string }[] {
  return issues.flatMap((issue) => {
    const path = [...prefix, ...issue.path];
    if (issue.code === 'invalid_union' && issue.errors.length === 1) return flatten(issue.errors[0], path);
    if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => ({ path: [...path, key], message: 'unknown key', code: issue.code }));
    return [{ path, message: issue.message, code: issue.code ?? 'custom' }];
  });
}

/** Checks `value`; every problem becomes a line `file:line:column: key.path: what is wrong`. */
function check<S extends z.ZodType>(schema: S, value: unknown, source: () => Source, strict: boolean): z.output<S> {
  const unknown = strict ? unknownKeys(schema, value) : [];
  const result = schema.safeParse(value);
  const issues = result.success ? [] : flatten(result.error.issues);
  // A strict schema reports unknown keys itself, but suggests nothing.
  const others = unknown.length > 0 ? issues.filter(({ code }) => code !== 'unrecognized_keys') : issues;
  const problems = [...unknown, ...others];
  if (problems.length === 0 && result.success) return result.data;
  const place = source();
  const lines = problems.slice(0, MOST_PROBLEMS).map(({ path, message }) => {
    const key = spell(path);
    return `${place.locate(path)}: ${key === '' ? '' : `${key}: `}${message}`;
  });
  if (problems.length > lines.length) lines.push(`... and ${problems.length - lines.length} more`);
  throw new MmError('ERR_CONFIG', lines.join('\n'), { cause: result.error });
}

/**
 * Reads a YAML configuration. Keys that the schema does not name are errors, at any depth, strict schema or not. An empty file
 * counts as an empty object, so that a schema of defaults accepts it.
 * @throws MmError ERR_FILE_IO; ERR_CONFIG with one line a problem: file, line, column, key path, and the nearest known key
 */
export async function loadYaml<S extends z.ZodType>(path: string, schema: S): Promise<z.output<S>> {
  const source = new Source(path, await readText(path));
  const [error] = source.document.errors;
  if (error !== undefined) throw new MmError('ERR_CONFIG', `${source.at(error.pos[0])}: not YAML: ${error.message}`, { cause: error });
  let value: unknown;
  try {
    value = source.document.toJS() ?? {};
  } catch (cause) {
    // Aliases that multiply without end, or that lead nowhere.
    throw new MmError('ERR_CONFIG', `${path}: not usable YAML: ${reasonOf(cause)}`, { cause });
  }
  return check(schema, value, () => source, true);
}

/**
 * Reads a JSON configuration such as a model's config.json. Keys that the schema does not name are passed over: such files carry
 * many that concern others (use z.strictObject to refuse them). A key that appears twice is an error.
 * @throws MmError ERR_FILE_IO; ERR_CONFIG with file, line and column of broken JSON, or one line a problem as `loadYaml`
 */
export async function loadJsonConfig<S extends z.ZodType>(path: string, schema: S): Promise<z.output<S>> {
  return (await loadJsonConfigAndRaw(path, schema)).config;
}

/** As `loadJsonConfig`, with what the file holds: all its keys in its order, without defaults. */
export async function loadJsonConfigAndRaw<S extends z.ZodType>(path: string, schema: S): Promise<{ config: z.output<S>; raw: unknown }> {
  const text = await readText(path);
  let raw: unknown;
  try {
    raw = parseJson(text);
  } catch (cause) {
    if (!(cause instanceof JsonSyntaxError)) throw cause;
    throw new MmError('ERR_CONFIG', `${path}:${cause.line}:${cause.column}: not JSON: ${cause.reason}`, { cause });
  }
  return { config: check(schema, raw, () => new Source(path, text), false), raw };
}
