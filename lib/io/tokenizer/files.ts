import { readFile } from 'node:fs/promises';
import { MmError } from '../../native/errors.js';
import { fileError, reasonOf, systemCode } from '../fail.js';
import { isJsonObject, parseJson } from '../json.js';

/** A tokenizer's JSON file as an object. @throws MmError ERR_FILE_IO, ERR_FILE_FORMAT naming file, line and column */
export async function readJsonObject(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw fileError('read', path, cause);
  }
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (cause) {
    throw new MmError('ERR_FILE_FORMAT', `${path} is not JSON: ${reasonOf(cause)}`, { cause });
  }
  if (!isJsonObject(value)) throw new MmError('ERR_FILE_FORMAT', `${path} is not a JSON object`);
  return value;
}

/** As `readJsonObject`; an empty object where there is no such file. */
export async function readOptionalJsonObject(path: string): Promise<Record<string, unknown>> {
  try {
    return await readJsonObject(path);
  } catch (cause) {
    if (cause instanceof MmError && systemCode(cause.cause) === 'ENOENT') return {};
    throw cause;
  }
}

/** A token in Hugging Face's files is a string or an object with `content`. */
export function tokenContent(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  return isJsonObject(value) && typeof value.content === 'string' ? value.content : undefined;
}

export function optionalString(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}
