import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError, Option } from 'commander';
import { MmError } from '../native/errors.js';
import { common, count } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

interface Options extends CommonOptions {
  teacher: string;
  out?: string;
  steps: number;
  batchSize: number;
  longestContext: number;
  dtype: 'f32' | 'bf16' | 'auto';
  json: boolean;
}

/** Fits 15 minutes on two cores without AMX; see the README for what longer runs reach. */
const defaultSteps = 800;
const defaultBatch = 64;

/** This file runs as dist/lib/cli/demo.js. */
const shippedTeacher = fileURLToPath(new URL('../../../models/emoji-teacher', import.meta.url));

function context(text: string): number {
  const tokens = Number(text);
  if (!Number.isInteger(Math.log2(tokens)) || tokens < 1024 || tokens > 2 ** 20)
    throw new InvalidArgumentError('expected a power of two from 1024 to 1048576');
  return tokens;
}

export function demo(): Command {
  return common(new Command('demo'), 'of seeding and data')
    .description('distil the shipped teacher into mmMamba-linear and mmMamba-hybrid on real pictures, and write a report')
    .option('--teacher <folder>', 'a teacher of the emoji task', shippedTeacher)
    .option('--out <folder>', 'for models, metrics and the report (default: mmmamba-demo-<time>)')
    .option('--steps <n>', 'updates of each stage', count, defaultSteps)
    .option('--batch-size <n>', 'pictures of one update', count, defaultBatch)
    .option('--longest-context <n>', 'tokens', context, 32_768)
    .addOption(
      new Option('--dtype <name>', 'what to compute in; auto: bf16 where the device has instructions for it')
        .choices(['auto', 'f32', 'bf16'])
        .default('auto'),
    )
    .option('--json', 'the table as JSON', false)
    .action((options: Options) =>
      runCommand(async (signal) => {
        const { runDemo } = await import('../train/demo.js');
        const { createProgress, clock } = await import('../train/progress.js');
        const { textTable } = await import('./scores.js');
        const { byteText, percent, tokenText } = await import('../train/report/index.js');
        if (!existsSync(join(options.teacher, 'config.json')))
          throw new MmError('ERR_FILE_IO', `there is no teacher in ${options.teacher}: give --teacher, or make one with mmmamba train-teacher`);
        const out = options.out ?? `mmmamba-demo-${new Date().toISOString().replaceAll(/[:.]/g, '-')}`;
        const {
          results,
          context: points,
          report,
          seconds,
        } = await runDemo({ ...options, seed: options.seed ?? 0, out, signal, progress: createProgress() });
        if (options.json) {
          process.stdout.write(`${JSON.stringify({ results, context: points, report, seconds })}\n`);
          return;
        }
        const teacher = results.find(({ model }) => model === 'teacher')!;
        const stages = [...new Set(results.filter((r) => r !== teacher).map(({ stage }) => stage))];
        const cell = (model: string, stage: string): string => {
          const found = results.find((r) => r.model === model && r.stage === stage);
          return found ? `${percent(found.name)} (${Math.round((100 * found.name) / teacher.name)} %)` : '';
        };
        process.stdout.write(`\nExact names of ${teacher.questions} drawings by an unseen artist (and as part of the teacher's)\n\n`);
        process.stdout.write(
          textTable([
            ['', 'teacher', ...stages],
            ...['linear', 'hybrid'].map((model) => [`mmMamba-${model}`, percent(teacher.name), ...stages.map((stage) => cell(model, stage))]),
          ]),
        );
        process.stdout.write(`\nNext token after a long context\n\n`);
        const lengths = points[0]!.points.map(({ tokens }) => tokens);
        process.stdout.write(
          textTable([
            ['', ...lengths.map(tokenText)],
            ...points.flatMap(({ model, points: list }) => [
              [`${model}, ms`, ...list.map(({ msPerToken }) => msPerToken.toFixed(2))],
              [`${model}, memory`, ...list.map(({ bytes }) => byteText(bytes))],
            ]),
          ]),
        );
        process.stdout.write(`\n${clock(seconds)} in all. Report: ${report}\n`);
      }),
    );
}
