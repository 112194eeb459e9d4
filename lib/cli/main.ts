#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { bench } from './bench.js';
import { build } from './build.js';
import { demo } from './demo.js';
import { distill } from './distill.js';
import { doctor } from './doctor.js';
import { evaluate } from './eval.js';
import { generate } from './generate.js';
import { exitCodes } from './run-command.js';
import { trainTeacher } from './train-teacher.js';

const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as { version: string };

const program = new Command('mmmamba')
  .description('Linear-time vision-language models: distil a Transformer into mmMamba, and run both.')
  .version(version)
  .addHelpText(
    'after',
    `\nExit codes: ${exitCodes.ok} success, ${exitCodes.failed} failure, ${exitCodes.usage} wrong usage or settings, ` +
      `${exitCodes.aborted} stopped by Ctrl-C.`,
  );
for (const command of [demo, trainTeacher, distill, evaluate, generate, bench, doctor, build]) program.addCommand(command());
for (const command of [program, ...program.commands]) command.exitOverride().showHelpAfterError('(run with --help for all options)');

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Help and version end with 0, all else that commander reports is wrong usage.
  process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
}
