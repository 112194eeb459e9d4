import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { MmError } from '../native/errors.js';
import { runCommand } from './run-command.js';

interface Options {
  cuda: boolean;
  arch?: string;
}

/** Runs a script of the package's folder; this file runs as dist/lib/cli/build.js. */
function script(name: string, args: string[]): void {
  const path = fileURLToPath(new URL(`../../../scripts/${name}`, import.meta.url));
  if (!existsSync(path)) throw new MmError('ERR_FILE_IO', `${path} is missing: install mmmamba again`);
  // What it prints says what was wrong and what helps.
  const { status } = spawnSync(process.execPath, [path, ...args], { stdio: 'inherit' });
  if (status !== 0) throw new MmError('ERR_NATIVE_LOAD', `${name} failed`);
}

export function build(): Command {
  return new Command('build')
    .description('compile the addon from the sources that the package carries, for a system that no prebuilt binary fits')
    .option('--cuda', 'also the CUDA library, which needs nvcc and cmake; takes minutes', false)
    .option('--arch <list>', 'GPU architectures of the CUDA library, such as 90a or 80,89 (default: of the GPUs that are here)')
    .action((options: Options) =>
      runCommand(async () => {
        script('build-native.mjs', []);
        if (options.cuda) script('build-cuda.mjs', options.arch === undefined ? [] : ['--arch', options.arch]);
        process.stdout.write('mmmamba: built; it is used from now on, before the prebuilt one\n');
      }),
    );
}
