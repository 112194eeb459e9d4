import { Command } from 'commander';
import { common, training } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

interface Options extends CommonOptions {
  config?: string;
  out: string;
  resume: boolean;
  steps?: number;
}

export function trainTeacher(): Command {
  const command = new Command('train-teacher').description('train a small HoVLE-shaped teacher to name emoji');
  return training(common(command, 'of initial weights and data, in place of that of the settings')).action((options: Options) =>
    runCommand(async (signal) => {
      const { loadTrainTeacherConfig } = await import('../train/config.js');
      const { trainTeacher: train } = await import('../train/teacher.js');
      const { createProgress } = await import('../train/progress.js');
      const { scoreLines } = await import('./scores.js');
      const config = await loadTrainTeacherConfig(options.config);
      if (options.seed !== undefined) config.seed = options.seed;
      if (options.steps !== undefined) config.optim.steps = options.steps;
      const { folder, scores } = await train(config, { ...options, signal, progress: createProgress() });
      process.stdout.write(`${scoreLines(scores)}${folder}\n`);
    }),
  );
}
