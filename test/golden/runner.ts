import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { memoryStats } from '../../lib/tensor/memory.js';
import { distill } from './families/distill.js';
import { image } from './families/image.js';
import { losses } from './families/losses.js';
import { models } from './families/models.js';
import { ops } from './families/ops.js';
import { optim } from './families/optim.js';
import { released } from './families/released.js';
import { students } from './families/students.js';
import { Golden, type Entry, type Handler, type Index, type RunOptions } from './golden.js';

/** How each op of index.json is judged. */
const handlers: Record<string, Handler> = { ...ops, ...losses, ...optim, ...image, ...models, ...students, ...distill, ...released };

export interface CaseResult {
  entry: Entry;
  /** what is wrong, the worst first; empty when the case passed */
  problems: string[];
}

export async function readIndex(root: string): Promise<Index> {
  const index = JSON.parse(await readFile(join(root, 'index.json'), 'utf8')) as Index;
  if (!Array.isArray(index.cases)) throw new Error(`${join(root, 'index.json')} has no list of cases`);
  return index;
}

/** Runs one case; whatever it throws is a problem of it. */
export async function runCase(entry: Entry, index: Index, options: RunOptions): Promise<CaseResult> {
  const before = memoryStats().tensors;
  const problems: string[] = [];
  try {
    const handler = handlers[entry.op];
    if (!handler) throw new Error(`unknown op '${entry.op}'`);
    using golden = await Golden.open(entry, index, options);
    await handler(golden);
    problems.push(...golden.verdict());
  } catch (error) {
    problems.push(error instanceof Error ? error.message : String(error));
  }
  const left = memoryStats().tensors - before;
  if (left !== 0 && problems.length === 0) problems.push(`${left} tensors were left behind`);
  return { entry, problems };
}
