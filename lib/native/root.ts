import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * The folder of the file that runs: this module's, or a bundle's. import.meta is empty in a CommonJS bundle, which has __dirname; the
 * other way round it would be wrong, as `node -e` makes __dirname global, with '.' in it.
 */
export const ownFolder = import.meta.url ? dirname(fileURLToPath(import.meta.url)) : __dirname;

/** The package's folder: this file runs as dist/lib/native/root.js. */
export const packageRoot = join(ownFolder, '..', '..', '..');

/** Whether this code was bundled into another file, which then stands anywhere. */
export const bundled = !existsSync(join(ownFolder, 'loader.js'));
