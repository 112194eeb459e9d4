import { InvalidArgumentError, Option, type Command } from 'commander';

function integer(low: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isSafeInteger(value) || value < low) throw new InvalidArgumentError(`expected an integer of at least ${low}`);
    return value;
  };
}
export const count = integer(1);
export const natural = integer(0);

export function number(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !(value >= low && value <= high)) throw new InvalidArgumentError(`expected a number from ${low} to ${high}`);
    return value;
  };
}

/** A number in (0, 1]. */
export function probability(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 1)) throw new InvalidArgumentError('expected a number above 0 and up to 1');
  return value;
}

/** `0,4` → [0, 4]; `linear` and `hybrid` as they are. */
export function layerChoice(text: string): 'linear' | 'hybrid' | number[] {
  if (text === 'linear' || text === 'hybrid') return text;
  if (!/^\d+(,\d+)*$/.test(text)) throw new InvalidArgumentError("expected 'linear', 'hybrid' or layer numbers such as 0,4");
  return text.split(',').map(Number);
}

/** `1,3` → [1, 3] */
export function stageList(text: string): (1 | 2 | 3)[] {
  const list = text.split(',').map(Number);
  if (list.some((s) => s !== 1 && s !== 2 && s !== 3)) throw new InvalidArgumentError('expected stages such as 1,2,3');
  return list as (1 | 2 | 3)[];
}

/** Options that every command has. */
export function common(command: Command, seedMeaning: string): Command {
  return command
    .addOption(new Option('--device <name>', 'where to compute').default('cpu').argParser(deviceName))
    .option('--seed <n>', seedMeaning, natural);
}

function deviceName(text: string): string {
  if (!/^(cpu|auto|cuda(:\d+)?)$/.test(text)) throw new InvalidArgumentError("expected 'cpu', 'cuda', 'cuda:<n>' or 'auto'");
  return text;
}

/** `--dtype`, of the forward passes. */
export function computeDtype(command: Command): Command {
  return command.addOption(new Option('--dtype <name>', 'what to compute in').choices(['f32', 'bf16', 'f16']).default('f32'));
}

/** Options of commands that train. */
export function training(command: Command): Command {
  return command
    .option('--config <file>', 'settings as YAML; without it the defaults')
    .requiredOption('--out <folder>', 'folder of metrics, checkpoints and the finished model')
    .option('--resume', 'continue the run in --out, bit for bit', false)
    .option('--steps <n>', 'updates, in place of those of the settings', count);
}
