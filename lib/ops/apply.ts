import { activeTape } from '../autograd/tape.js';
import type { Attrs } from '../native/binding.js';
import { run, type Operands, type Results } from '../tensor/run.js';

/** Runs an operator and shows it to the tape that records, if any. */
export function apply(op: string, operands: Operands, attrs?: Attrs, device?: string): Results {
  activeTape()?.refuseWrite(op, operands);
  const results = run(op, operands, attrs, device);
  activeTape()?.recordOp(op, operands, results, attrs);
  return results;
}
