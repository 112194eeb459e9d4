import { Command } from 'commander';
import { common, computeDtype, count, natural, number, probability } from './options.js';
import { runCommand, type CommonOptions } from './run-command.js';

interface Options extends CommonOptions {
  model: string;
  image?: string;
  prompt: string;
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  dtype: 'f32' | 'bf16' | 'f16';
  json: boolean;
}

export function generate(): Command {
  return computeDtype(common(new Command('generate'), 'of the samples, with --temperature above 0'))
    .description('answer a question, about a picture or without one, word by word')
    .requiredOption('--model <folder>', 'config.json, model.safetensors and vocabulary')
    .requiredOption('--prompt <text>', 'the question, e.g. "what is this ?"')
    .option('--image <file>', 'JPEG, PNG, WebP, GIF, TIFF or AVIF')
    .option('--max-tokens <n>', 'new tokens at most', count, 256)
    .option('--temperature <t>', '0: the most likely token; above: samples', number(0, 100), 0)
    .option('--top-k <n>', 'sample from so many most likely tokens; 0: from all', natural, 0)
    .option('--top-p <p>', 'then from the fewest that reach this probability', probability, 1)
    .option('--json', 'the text with its token ids and times as JSON', false)
    .action((options: Options) =>
      runCommand(async (signal) => {
        const { loadModel } = await import('../models/load.js');
        const { generate: run } = await import('../models/generate.js');
        const { loadTokenizer } = await import('../io/tokenizer/load.js');
        const { buildPrompt } = await import('./prompt.js');
        const tokenizer = await loadTokenizer(options.model);
        using model = await loadModel(options.model, { device: options.device, dtype: options.dtype });
        const { batch, stopTokens } = await buildPrompt(model.config, tokenizer, options.prompt, options.image);
        const { maxTokens, temperature, topK, topP, seed = 0 } = options;
        const ids: number[] = [];
        const start = performance.now();
        let first = 0;
        let shown = '';
        for await (const { tokens } of run(model, batch, { maxTokens, temperature, topK, topP, seed, signal, stopTokens })) {
          first ||= performance.now() - start;
          if (stopTokens.includes(tokens[0]!)) break;
          ids.push(tokens[0]!);
          const text = tokenizer.decode(ids, { skipSpecialTokens: true });
          // An unfinished character waits for its last bytes.
          if (options.json || text.endsWith('\ufffd')) continue;
          process.stdout.write(text.slice(shown.length));
          shown = text;
        }
        const text = tokenizer.decode(ids, { skipSpecialTokens: true });
        if (options.json) {
          process.stdout.write(
            `${JSON.stringify({ text, ids, promptTokens: batch.length, firstTokenMs: first, totalMs: performance.now() - start })}\n`,
          );
        } else process.stdout.write(`${text.slice(shown.length)}\n`);
      }),
    );
}
