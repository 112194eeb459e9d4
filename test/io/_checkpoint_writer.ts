/** Child process: writes checkpoints without end, each of three files that bear the same number, until it is killed. */
import { writeFolderAtomic } from '../../lib/io/atomic.js';

const folder = process.argv[2];
for (let round = Number(process.argv[3]); ; round++) {
  const body = `${round}\n`.repeat(20_000);
  await writeFolderAtomic(folder, new Map([['a', body], ['b', body], ['c', body]]));
  if (process.send !== undefined) process.send(round);
}
