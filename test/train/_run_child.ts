/**
 * Child process that trains: `teacher|distill <out> [teacher folder] [options]`. Options: --resume; --kill <n> and
 * --interrupt <n> send SIGKILL or SIGINT to itself when the n-th update of this process is done; --kill-renaming <name>, while
 * it saves a later checkpoint than the first, just before a folder gets that name.
 */
import promises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { basename } from 'node:path';
import { runCommand } from '../../lib/cli/run-command.js';
import { distill } from '../../lib/train/distill.js';
import { silentProgress } from '../../lib/train/progress.js';
import { trainTeacher } from '../../lib/train/teacher.js';
import { tinyDistill, tinyTask, tinyTeacher } from './tiny.js';

const [kind, out, teacher, ...flags] = process.argv.slice(2) as [string, string, string, ...string[]];
const at = (flag: string): number => (flags.includes(flag) ? Number(flags[flags.indexOf(flag) + 1]) : Infinity);

let updates = 0;
let title = '';
const progress = {
  ...silentProgress,
  start: (name: string) => void (title = name),
  update: () => {
    if (!/^(teacher|stage \d)$/.test(title)) return;
    updates++;
    if (updates === at('--kill')) process.kill(process.pid, 'SIGKILL');
    if (updates === at('--interrupt')) process.kill(process.pid, 'SIGINT');
  },
};

const { rename } = promises;
promises.rename = (from, to) => {
  if (updates > 2 && flags.includes('--kill-renaming') && basename(String(to)) === flags[flags.indexOf('--kill-renaming') + 1])
    process.kill(process.pid, 'SIGKILL');
  return rename(from, to);
};
syncBuiltinESMExports();

await runCommand(async (signal) => {
  const run = { out, device: 'cpu', resume: flags.includes('--resume'), signal, progress };
  if (kind === 'teacher') await trainTeacher(tinyTeacher({}, { dtype: 'bf16' }), run, tinyTask);
  else await distill(tinyDistill({}, {}, { dtype: 'bf16' }), teacher, run, tinyTask);
});
