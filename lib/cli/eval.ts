import { Command, Option } from 'commander';
import { common, computeDtype, count } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

interface Options extends CommonOptions {
  model: string;
  kinds: 'all' | 'name' | 'group' | 'yesno';
  batchSize: number;
  dtype: 'f32' | 'bf16' | 'f16';
  json: boolean;
}

export function evaluate(): Command {
  return computeDtype(common(new Command('eval'), 'of the yes/no questions; the same for all models by default'))
    .description('measure a teacher or a student on the drawings of the unseen artist')
    .requiredOption('--model <folder>', 'config.json, model.safetensors and vocabulary')
    .addOption(new Option('--kinds <kind>', 'which questions').choices(['all', 'name', 'group', 'yesno']).default('all'))
    .option('--batch-size <n>', 'questions answered at once', count, 128)
    .option('--json', 'results as JSON', false)
    .action((options: Options) =>
      runCommand(async (signal) => {
        const { loadTaskModel } = await import('../train/task-model.js');
        const { evaluate: run } = await import('../train/evaluate.js');
        const { evaluationSet } = await import('../train/data/emoji/index.js');
        const { createProgress } = await import('../train/progress.js');
        const { scoreLines } = await import('./scores.js');
        const progress = createProgress();
        const { model, task } = await loadTaskModel(options.model, { device: options.device, dtype: options.dtype, progress, signal });
        using _ = model;
        const set = options.seed === undefined ? task.test : evaluationSet(task.selection, task.images, options.seed);
        const kinds = options.kinds === 'all' ? undefined : [options.kinds];
        const { answers: __, ...scores } = await run(model, task, set, { kinds, batchSize: options.batchSize, progress, signal });
        process.stdout.write(options.json ? `${JSON.stringify(scores)}\n` : scoreLines(scores));
      }),
    );
}
