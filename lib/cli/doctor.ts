import { constants, existsSync, readFileSync } from 'node:fs';
import { access, mkdir } from 'node:fs/promises';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { sep } from 'node:path';
import { Command } from 'commander';
import { reasonOf } from '../io/fail.js';
import { common } from './options.js';
import { exitCodes, runCommand } from './run-command.js';

interface Check {
  name: string;
  /** ok; warn: works, but slower or with less; fail: does not work */
  status: 'ok' | 'warn' | 'fail';
  found: string;
  remedy?: string;
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

/** Instruction sets that the kernels care about, as the system names them; empty where it does not say. */
function cpuFeatures(): string[] {
  const wanted = ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512vl', 'avx512_bf16', 'amx_bf16', 'asimd', 'sve'];
  if (!existsSync('/proc/cpuinfo')) return [];
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '';
  const present = new Set(line.split(' '));
  return wanted.filter((feature) => present.has(feature));
}

async function machine(): Promise<Check[]> {
  const { cLibrary } = await import('../native/backends.js');
  const [major, minor] = process.versions.node.split('.').map(Number) as [number, number];
  const recent = major > 20 || (major === 20 && minor >= 19);
  return [
    { name: 'platform', status: 'ok', found: `${process.platform}-${process.arch}, ${cLibrary()}` },
    { name: 'node', status: recent ? 'ok' : 'fail', found: process.version, remedy: recent ? undefined : 'install Node.js 20.19 or newer' },
    {
      name: 'processor',
      status: 'ok',
      found: `${cpus()[0]?.model.trim() ?? 'unknown'}, ${availableParallelism()} threads usable; ${cpuFeatures().join(' ') || 'features unknown'}`,
    },
    {
      name: 'memory',
      status: freemem() > 2 ** 30 ? 'ok' : 'warn',
      found: `${gib(freemem())} free of ${gib(totalmem())}`,
      remedy: freemem() > 2 ** 30 ? undefined : 'training the emoji task needs about 1 GiB',
    },
  ];
}

/** What a missing GPU needs, by what stands in the way. */
function cudaRemedy(library: string | null, addonPath: string): string {
  const use = 'only needed for --device cuda';
  if (process.platform !== 'linux') return `${use}, which runs on Linux`;
  if (library !== null) return use; // it loaded, and has said what it lacks
  if (process.env['MMMAMBA_CUDA_PATH']) return `${use}: correct MMMAMBA_CUDA_PATH, or unset it`;
  return `${use}: ${shipped(addonPath) ? `${reinstall}, or ` : ''}npx mmmamba build --cuda compiles the library where a CUDA toolkit is`;
}

/** Whether the addon is the package's own prebuilt one, beside which the other libraries belong. */
const shipped = (addonPath: string): boolean => addonPath.includes(`${sep}prebuilds${sep}`);
const reinstall = 'remove node_modules/mmmamba and install it again';

/** A GPU as backends() describes it, in a line. */
function gpuText(device: Record<string, unknown>, index: number, driver: string | null): string {
  const text = (key: string): string => String(device[key] ?? 'unknown');
  return [
    `cuda:${index} ${text('name')}`,
    `capability ${text('capability')}`,
    `${text('multiprocessors')} multiprocessors`,
    gib(Number(device['totalBytes'] ?? 0)),
    `CUDA ${text('cuda')}`,
    `driver ${driver ?? 'unknown'} for CUDA up to ${text('driverCuda')}`,
  ].join(', ');
}

async function native(): Promise<Check[]> {
  const { addon, backends, nvidiaDriver } = await import('../native/backends.js');
  let found: ReturnType<typeof backends>;
  try {
    found = backends();
  } catch (error) {
    return [{ name: 'addon', status: 'fail', found: reasonOf(error) }];
  }
  const { path, version, passedOver } = addon();
  const checks: Check[] = [
    {
      name: 'addon',
      status: passedOver.length === 0 ? 'ok' : 'warn',
      found: [`${version}, ${path}`, ...passedOver.map((attempt) => `passed over ${attempt.path}: ${attempt.reason}`)].join('\n'),
      remedy: passedOver[0]?.remedy,
    },
  ];
  for (const { name, available, reason, library, devices } of found) {
    const shown = devices.map((d, i) =>
      name === 'cuda'
        ? gpuText(d, i, nvidiaDriver())
        : Object.entries(d)
            .filter(([key]) => key !== 'gemm' && key !== 'cachedBytes')
            .map(([key, value]) => `${key} ${String(value)}`)
            .join(', '),
    );
    checks.push({
      name,
      // The GPU is a choice, the CPU is not.
      status: available ? 'ok' : name === 'cpu' ? 'fail' : 'warn',
      found: available ? [...shown, ...(library ? [library] : [])].join('\n') : `absent: ${reason ?? 'unknown reason'}${library ? ` (${library})` : ''}`,
      remedy: available || name === 'cpu' ? undefined : cudaRemedy(library, path),
    });
    if (name === 'cpu') for (const device of devices) checks.push(gemmCheck(String(device['gemm']), path));
  }
  return checks;
}

/** Large matrix products want oneDNN; without it they are right but slower. */
function gemmCheck(gemm: string, addonPath: string): Check {
  const fast = /^oneDNN [\d.]+ \(/.test(gemm); // else the text says what stands in the way
  const mend = shipped(addonPath) ? reinstall : 'apt-get install libdnnl-dev, then npx mmmamba build';
  return {
    name: 'oneDNN',
    status: fast ? 'ok' : 'warn',
    found: gemm,
    remedy: fast ? undefined : `matrix products run on the slower built-in code: ${/MMMAMBA_ONEDNN/.test(gemm) ? 'unset MMMAMBA_ONEDNN' : mend}`,
  };
}

async function packages(): Promise<Check[]> {
  const { packageVersion, artists } = await import('../train/data/emoji/artists.js');
  const checks: Check[] = [];
  try {
    const { default: sharp } = await import('sharp');
    checks.push({ name: 'sharp', status: 'ok', found: `${sharp.versions.sharp}, libvips ${sharp.versions.vips}` });
  } catch (error) {
    checks.push({ name: 'sharp', status: 'warn', found: reasonOf(error).split('\n')[0]!, remedy: 'needed for pictures: npm install sharp' });
  }
  const missing: string[] = [];
  for (const name of [...artists.map((artist) => `@iconify-json/${artist}`), 'emojibase-data']) {
    try {
      packageVersion(name);
    } catch {
      missing.push(name);
    }
  }
  checks.push({
    name: 'emoji drawings',
    status: missing.length === 0 ? 'ok' : 'warn',
    found: missing.length === 0 ? `${artists.length} artists` : `missing: ${missing.join(', ')}`,
    remedy: missing.length === 0 ? undefined : `needed for demo, train-teacher, distill and eval: npm install ${missing.join(' ')}`,
  });
  return checks;
}

async function cache(): Promise<Check> {
  const { defaultCacheDir } = await import('../train/data/emoji/render.js');
  const folder = defaultCacheDir();
  try {
    await mkdir(folder, { recursive: true });
    await access(folder, constants.W_OK);
    return { name: 'cache', status: 'ok', found: folder };
  } catch (error) {
    return { name: 'cache', status: 'warn', found: reasonOf(error), remedy: 'set XDG_CACHE_HOME to a folder that can be written' };
  }
}

export function doctor(): Command {
  return common(new Command('doctor'), 'has no effect here')
    .description('say what this machine offers, what is missing and how to mend it')
    .option('--json', 'results as JSON', false)
    .action((options: { json: boolean }) =>
      runCommand(async () => {
        const checks = [...(await machine()), ...(await native()), ...(await packages()), await cache()];
        if (options.json) process.stdout.write(`${JSON.stringify(checks, null, 1)}\n`);
        else {
          const width = Math.max(...checks.map(({ name }) => name.length));
          for (const { name, status, found, remedy } of checks) {
            const text = found.replaceAll('\n', `\n${' '.repeat(width + 8)}`);
            process.stdout.write(`${{ ok: 'ok  ', warn: 'warn', fail: 'FAIL' }[status]}  ${name.padEnd(width)}  ${text}\n`);
            if (remedy) process.stdout.write(`      ${' '.repeat(width)}  → ${remedy}\n`);
          }
        }
        if (checks.some(({ status }) => status === 'fail')) process.exitCode = exitCodes.failed;
      }),
    );
}
