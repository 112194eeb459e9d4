import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** The folder of the CUDA toolkit, or undefined where there is none. */
export function cudaToolkit() {
  return [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean).find((folder) => existsSync(join(folder, 'bin', 'nvcc')));
}
