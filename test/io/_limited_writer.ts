/** Child process under a limit on file size: tries to write more than fits and says what came of it. */
import { writeFileAtomic, writeFolderAtomic } from '../../lib/io/atomic.js';
import { JsonlWriter } from '../../lib/io/jsonl.js';

const [, , kind, path] = process.argv;
const big = new Uint8Array(4 * 2 ** 20);
const results: string[] = [];
const attempt = async (action: () => unknown): Promise<void> => {
  try {
    await action();
    results.push('written');
  } catch (cause) {
    results.push(`${(cause as { code: string }).code} ${(cause as Error).message}`);
  }
};

if (kind === 'file') await attempt(() => writeFileAtomic(path, [new Uint8Array(10), big]));
if (kind === 'folder') await attempt(() => writeFolderAtomic(path, [['small', 'new'], ['big', big]]));
if (kind === 'jsonl') {
  const writer = new JsonlWriter(path);
  await attempt(() => writer.write({ text: 'x'.repeat(big.length) }));
  await attempt(() => writer.write({ small: 1 }));
  writer.close();
}
process.stdout.write(results.join('\n'));
