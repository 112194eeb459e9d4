import { Command } from 'commander';
import { systemCode } from '../io/fail.js';
import { MmError } from '../native/errors.js';
import { common } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

/** What dist/bench/main.js exports. */
interface BenchModule {
  main(args: string[]): Promise<void>;
}

/** The benchmarks are not part of the published package, so they are looked up when asked for. */
async function loadBench(): Promise<BenchModule> {
  try {
    return (await import(new URL('../../bench/main.js', import.meta.url).href)) as BenchModule;
  } catch (cause) {
    if (systemCode(cause) !== 'ERR_MODULE_NOT_FOUND') throw cause;
    throw new MmError(
      'ERR_ARGUMENT',
      'the benchmarks are not here: they come with the source repository, not with the package; clone it and run npm run build',
      { cause },
    );
  }
}

export function bench(): Command {
  return common(new Command('bench'), "of the kernels' operands")
    .description('measure kernels on this machine')
    .allowUnknownOption()
    .allowExcessArguments()
    .usage('[options] [options of the benchmarks]')
    .addHelpText('after', '\nAll other options go to the benchmarks; npm run bench -- --help lists them.')
    .action((options: CommonOptions, command: Command) =>
      runCommand(async () => {
        const { main } = await loadBench();
        const seed = options.seed === undefined ? [] : ['--seed', String(options.seed)];
        await main(['--device', options.device, ...seed, ...command.args]);
      }),
    );
}
