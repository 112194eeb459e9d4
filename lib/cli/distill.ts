import { Command, Option } from 'commander';
import { common, layerChoice, stageList, training } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

interface Options extends CommonOptions {
  teacher: string;
  config?: string;
  preset?: 'paper' | 'reference' | 'emoji';
  out: string;
  resume: boolean;
  steps?: number;
  student?: 'linear' | 'hybrid' | number[];
  stages?: (1 | 2 | 3)[];
  from?: string;
}

export function distill(): Command {
  const command = new Command('distill').description('distil a teacher into mmMamba in three stages');
  return training(common(command, 'of seeding and data, in place of that of the settings'))
    .requiredOption('--teacher <folder>', 'the trained teacher')
    .addOption(new Option('--preset <name>', 'recipe, in place of that of the settings').choices(['paper', 'reference', 'emoji']))
    .option('--student <layers>', "'linear', 'hybrid' or the layers that stay attention, such as 0,4", layerChoice)
    .option('--stages <list>', 'stages to run, such as 1,3', stageList)
    .option('--from <folder>', "a student to begin with, such as another run's stage2, in place of seeding one")
    .action((options: Options) =>
      runCommand(async (signal) => {
        const { loadDistillConfig } = await import('../train/config.js');
        const { distill: run } = await import('../train/distill.js');
        const { createProgress } = await import('../train/progress.js');
        const { scoreLines } = await import('./scores.js');
        const { seed, preset, student, stages, steps, from } = options;
        const config = await loadDistillConfig(options.config, { seed, preset, student, run: stages, steps, from });
        const { folder, scores } = await run(config, options.teacher, { ...options, signal, progress: createProgress() });
        process.stdout.write(`${scoreLines(scores)}${folder}\n`);
      }),
    );
}
