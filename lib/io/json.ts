/** Where and why a text is not JSON. `line` and `column` count from 1. */
export class JsonSyntaxError extends Error {
  readonly reason: string;
  readonly line: number;
  readonly column: number;
  constructor(text: string, offset: number, reason: string) {
    const before = text.slice(0, offset).split('\n');
    const line = before.length;
    const column = before[line - 1].length + 1;
    super(`line ${line}, column ${column}: ${reason}`);
    this.name = 'JsonSyntaxError';
    this.reason = reason;
    this.line = line;
    this.column = column;
  }
}

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const LITERALS: readonly (readonly [string, unknown])[] = [['true', true], ['false', false], ['null', null]];

/**
 * JSON as RFC 8259 has it, stricter than `JSON.parse` in what hostile files abuse: a key that appears twice is an error, and
 * nesting is limited. `__proto__` becomes an ordinary key. Errors carry line and column, which those of `JSON.parse` do not.
 * @throws JsonSyntaxError
 */
export function parseJson(text: string, maxDepth = 128): unknown {
  let at = 0;

  const fail = (reason: string, offset = at): never => {
    throw new JsonSyntaxError(text, offset, reason);
  };

  const found = (): string => {
    if (at >= text.length) return 'the end of the text';
    const character = String.fromCodePoint(text.codePointAt(at)!);
    return JSON.stringify(character);
  };

  const skipSpace = (): void => {
    for (; at < text.length; at++) {
      const c = text.charCodeAt(at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
    }
  };

  const parseString = (): string => {
    const start = at++;
    let escaped = false;
    for (; at < text.length; at++) {
      const c = text.charCodeAt(at);
      if (c === 0x22) {
        const literal = text.slice(start, ++at);
        if (!escaped) return literal.slice(1, -1);
        try {
          return JSON.parse(literal) as string;
        } catch {
          return fail('a string with a broken escape sequence', start);
        }
      }
      if (c < 0x20) return fail('a control character inside a string (it must be escaped)');
      if (c === 0x5c) {
        escaped = true;
        at++;
      }
    }
    return fail('a string that never ends', start);
  };

  const parseArray = (depth: number): unknown[] => {
    const items: unknown[] = [];
    at++;
    skipSpace();
    if (text[at] === ']') {
      at++;
      return items;
    }
    for (;;) {
      items.push(parseValue(depth + 1));
      skipSpace();
      const c = text[at];
      if (c !== ',' && c !== ']') fail(`expected "," or "]", found ${found()}`);
      at++;
      if (c === ']') return items;
    }
  };

  const parseObject = (depth: number): Record<string, unknown> => {
    const object: Record<string, unknown> = {};
    at++;
    skipSpace();
    if (text[at] === '}') {
      at++;
      return object;
    }
    for (;;) {
      skipSpace();
      if (text[at] !== '"') fail(`expected a key in double quotes, found ${found()}`);
      const keyAt = at;
      const key = parseString();
      if (Object.hasOwn(object, key)) fail(`the key ${JSON.stringify(key)} appears twice`, keyAt);
      skipSpace();
      if (text[at] !== ':') fail(`expected ":" after the key ${JSON.stringify(key)}, found ${found()}`);
      at++;
      // defineProperty, because `object['__proto__'] = value` would replace the prototype.
      Object.defineProperty(object, key, { value: parseValue(depth + 1), writable: true, enumerable: true, configurable: true });
      skipSpace();
      const c = text[at];
      if (c !== ',' && c !== '}') fail(`expected "," or "}", found ${found()}`);
      at++;
      if (c === '}') return object;
    }
  };

  const parseValue = (depth: number): unknown => {
    if (depth > maxDepth) fail(`nested deeper than ${maxDepth} levels`);
    skipSpace();
    const c = text[at];
    if (c === '{') return parseObject(depth);
    if (c === '[') return parseArray(depth);
    if (c === '"') return parseString();
    for (const [literal, value] of LITERALS) {
      if (text.startsWith(literal, at)) {
        at += literal.length;
        return value;
      }
    }
    NUMBER.lastIndex = at;
    const number = NUMBER.exec(text);
    if (number === null) return fail(`expected a value, found ${found()}`);
    at += number[0].length;
    return Number(number[0]);
  };

  const value = parseValue(0);
  skipSpace();
  if (at < text.length) fail(`expected the end of the text, found ${found()}`);
  return value;
}

/** Whether a parsed value is a JSON object, not an array or null. */
export function isJsonObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
