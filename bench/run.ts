import { main } from './main.js';

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`mmmamba bench: ${(error as Error).message}\n`);
  process.exitCode = 1;
}
