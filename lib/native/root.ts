import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The folder of the file that runs: this module's, or a bundle's. CommonJS bundles have no import.meta, ES modules no __dirname. */
export const ownFolder = typeof __dirname === 'string' ? __dirname : dirname(fileURLToPath(import.meta.url));

/** The package's folder: this file runs as dist/lib/native/root.js. */
export const packageRoot = join(ownFolder, '..', '..', '..');

/** Whether this code was bundled into another file, which then stands anywhere. */
export const bundled = !existsSync(join(ownFolder, 'loader.js'));
