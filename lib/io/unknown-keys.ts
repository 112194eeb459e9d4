import type { z } from 'zod';
import { isJsonObject } from './json.js';
import { didYouMean } from './names.js';

/** A key that a schema does not name. */
export interface UnknownKey {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

type Schema = z.core.$ZodType;

/** The schema that `wrapper` (optional, default, pipe, ...) puts round, or undefined. */
function unwrap(wrapper: Schema): Schema | undefined {
  const { def } = (wrapper as z.core.$ZodTypes)._zod;
  switch (def.type) {
    case 'optional':
    case 'nullable':
    case 'default':
    case 'prefault':
    case 'nonoptional':
    case 'readonly':
    case 'catch':
      return def.innerType;
    case 'pipe':
      return def.in;
    case 'lazy':
      return def.getter();
    default:
      return undefined;
  }
}

/**
 * All keys of `value`, at any depth, that `schema` does not name, each with the nearest known key. zod's own objects drop such
 * keys in silence, and its strict objects do not say what may have been meant.
 */
export function unknownKeys(schema: Schema, value: unknown, path: readonly PropertyKey[] = []): UnknownKey[] {
  const inner = unwrap(schema);
  if (inner !== undefined) return unknownKeys(inner, value, path);
  const { def } = (schema as z.core.$ZodTypes)._zod;
  switch (def.type) {
    case 'object': {
      if (!isJsonObject(value)) return [];
      const rest = def.catchall;
      const open = rest !== undefined && (rest as z.core.$ZodTypes)._zod.def.type !== 'never';
      return Object.entries(value).flatMap(([key, item]) => {
        const here = [...path, key];
        if (Object.hasOwn(def.shape, key)) return unknownKeys(def.shape[key], item, here);
        if (open) return unknownKeys(rest, item, here);
        const known = Object.keys(def.shape);
        const hint = didYouMean(key, known) || `; known are ${known.join(', ')}`;
        return [{ path: here, message: `unknown key${hint}` }];
      });
    }
    case 'record':
      if (!isJsonObject(value)) return [];
      return Object.entries(value).flatMap(([key, item]) => unknownKeys(def.valueType, item, [...path, key]));
    case 'array':
      if (!Array.isArray(value)) return [];
      return value.flatMap((item, i) => unknownKeys(def.element, item, [...path, i]));
    case 'tuple':
      if (!Array.isArray(value)) return [];
      return value.flatMap((item, i) => {
        const element = def.items[i] ?? def.rest;
        return element ? unknownKeys(element, item, [...path, i]) : [];
      });
    case 'union': {
      // The option meant is the one that the value names by its discriminator, or else the one with the fewest unknown keys.
      const name = (def as { discriminator?: string }).discriminator;
      const meant = def.options.filter((option) => name === undefined || !isJsonObject(value) || namedBy(option, name, value[name]));
      const found = meant.map((option) => unknownKeys(option, value, path));
      return found.sort((a, b) => a.length - b.length)[0] ?? [];
    }
    default:
      return [];
  }
}

/** Whether `option`, an object schema, takes `value` for its key `name`. */
function namedBy(option: Schema, name: string, value: unknown): boolean {
  const { def } = (option as z.core.$ZodTypes)._zod;
  if (def.type !== 'object' || !Object.hasOwn(def.shape, name)) return true;
  return (def.shape[name] as z.ZodType).safeParse(value).success;
}
