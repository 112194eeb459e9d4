import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { opSchemas } from '../../lib/tensor/run.js';
import type { OpCase, Reference } from './case.js';

export interface Catalogue {
  cases: OpCase[];
  /** by op name */
  references: Map<string, Reference>;
}

async function modules(folder: string): Promise<Record<string, unknown>[]> {
  const files = readdirSync(join(import.meta.dirname, folder)).filter((f) => f.endsWith('.js'));
  return Promise.all(files.sort().map((f) => import(`./${folder}/${f}`) as Promise<Record<string, unknown>>));
}

/** Every case and reference of test/ops, found by their files. */
export async function loadCatalogue(): Promise<Catalogue> {
  const cases = (await modules('cases')).flatMap((m) => (m['cases'] ?? []) as OpCase[]);
  const names = new Set(opSchemas().map((s) => s.name));
  const references = new Map<string, Reference>();
  for (const m of await modules('reference'))
    for (const [name, value] of Object.entries(m)) if (names.has(name) && typeof value === 'function') references.set(name, value as Reference);
  return { cases, references };
}

/** Names of the ops that compute gradients of others. */
export function backwardOps(): Set<string> {
  return new Set(opSchemas().map((s) => s.name).filter((name) => name.endsWith('Backward')));
}

const numel = (c: OpCase): number => Object.values(c.inputs).flat().reduce((sum, d) => sum + d.shape.reduce((a, b) => a * b, 1), 0);

/** The smallest first. */
export function bySize(cases: readonly OpCase[]): OpCase[] {
  return [...cases].sort((a, b) => numel(a) - numel(b));
}

/** Rows as wide as the kernels for tensor cores ask for. */
const isWide = (c: OpCase): boolean => Object.values(c.inputs).flat().some(({ shape }) => shape.length > 2 && shape.at(-1)! % 64 === 0);

/**
 * Of one op's cases the two smallest that hold anything, two of some thousand elements, and the three smallest that tensor cores take:
 * enough for a sanitizer.
 */
export function smallestCases(cases: readonly OpCase[]): OpCase[] {
  const list = bySize(cases).filter((c) => numel(c) > 0 || Object.keys(c.inputs).length === 0);
  const more = list.slice(2).filter((c) => numel(c) >= 2000);
  return [...new Set([...list.slice(0, 2), ...(more.length ? more.slice(0, 2) : list.slice(2).slice(-2)), ...list.filter(isWide).slice(0, 3)])];
}

/** Small cases of every op, a few each: what child processes run. */
export function compactCases(cases: readonly OpCase[]): OpCase[] {
  const byOp = new Map<string, OpCase[]>();
  for (const c of cases) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);
  return [...byOp.values()].flatMap((list) => bySize(list).filter((c, i) => i < 4 || numel(c) < 2000).slice(0, 8));
}
