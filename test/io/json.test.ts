import test from 'ava';
import fc from 'fast-check';
import { JsonSyntaxError, parseJson } from '../../lib/io/json.js';

test('agrees with JSON.parse on whatever JSON.stringify writes', (t) => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.constantFrom(undefined, 2), (value, indent) => {
      const text = JSON.stringify(value, null, indent);
      t.deepEqual(parseJson(text), JSON.parse(text));
    }),
  );
  t.pass();
});

test('refuses what JSON.parse refuses', (t) => {
  const accepts = (parse: (text: string) => unknown, text: string): boolean => {
    try {
      parse(text);
      return true;
    } catch {
      return false;
    }
  };
  const character = fc.constantFrom(...'{}[]",:0123456789.eE+-\\utrfalsen \n'.split(''));
  fc.assert(
    fc.property(fc.array(character, { maxLength: 12 }), (characters) => {
      const text = characters.join('');
      return accepts(parseJson, text) === accepts(JSON.parse, text);
    }),
    { numRuns: 5000 },
  );
  t.pass();
});

test('keys that name the prototype are ordinary keys', (t) => {
  const value = parseJson('{"__proto__": {"polluted": true}, "constructor": 1}') as Record<string, unknown>;
  t.deepEqual(Object.keys(value), ['__proto__', 'constructor']);
  t.is(Object.getPrototypeOf(value), Object.prototype);
  t.is(({} as Record<string, unknown>).polluted, undefined);
});

test('stops at deep nesting before the stack does', (t) => {
  for (const text of ['['.repeat(1e6), '{"a":'.repeat(1e6)]) {
    t.throws(() => parseJson(text), { instanceOf: JsonSyntaxError, message: /nested deeper than 128 levels/ });
  }
});
