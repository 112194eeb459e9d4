import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { packageRoot } from '../../lib/native/loader.js';
import { artists } from '../../lib/train/data/emoji/artists.js';
import { ended, type Ended } from '../core/support.js';

/*
 * The package as somebody has it who typed `npm install`: packed here, installed from the file into an empty project outside of this
 * checkout, with a PATH that holds node, npm and a shell and no compiler, and without a network.
 */

const npm = (args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env): string =>
  execFileSync('npm', args, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 });

const own = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string; devDependencies: Record<string, string> };
/** The drawings and their names are no dependencies of the package; the demo says to install them. */
const drawings = [...artists.map((artist) => `@iconify-json/${artist}`), 'emojibase-data'].map((name) => `${name}@${own.devDependencies[name]}`);

const hash = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex').slice(0, 16);

interface Project {
  /** the empty project, with node_modules */
  folder: string;
  /** node_modules/mmmamba in it */
  installed: string;
  tarball: string;
  version: string;
  /** environment of a user without a compiler */
  env: NodeJS.ProcessEnv;
}

/** What precedes a command that must not reach a network; nothing where the system does not allow that. */
export const offline: string[] = (() => {
  try {
    const unshare = execFileSync('which', ['unshare'], { encoding: 'utf8' }).trim();
    execFileSync(unshare, ['-rn', 'true'], { stdio: 'ignore' });
    return [unshare, '-rn'];
  } catch {
    return [];
  }
})();

/** Packs and installs, once for the files of a run: the same tarball is installed in the same place. */
function install(): Project {
  if (!existsSync(join(packageRoot, 'prebuilds'))) throw new Error('there are no prebuilt binaries to test: run npm run prebuild first');
  const base = join(tmpdir(), 'mmmamba-package');
  mkdirSync(base, { recursive: true });
  npm(['pack', '--silent', '--ignore-scripts', '--pack-destination', base], packageRoot);
  const tarball = join(base, `mmmamba-${own.version}.tgz`);
  const folder = join(base, hash(tarball));
  const [bin, done] = [join(folder, 'bin'), join(folder, 'done')];
  const { HOME, npm_config_cache } = process.env; // where npm keeps what it fetched
  const env: NodeJS.ProcessEnv = { HOME, npm_config_cache, PATH: bin, TMPDIR: tmpdir() };
  const project = { folder, installed: join(folder, 'node_modules', 'mmmamba'), tarball, version: own.version, env };
  if (existsSync(done)) return project;
  for (const name of readdirSync(base)) if (/^[0-9a-f]{16}$/.test(name)) rmSync(join(base, name), { recursive: true }); // of earlier packages
  mkdirSync(bin, { recursive: true });
  const npmCli = execFileSync('npm', ['root', '-g'], { encoding: 'utf8' }).trim();
  symlinkSync(process.execPath, join(bin, 'node'));
  symlinkSync('/bin/sh', join(bin, 'sh'));
  symlinkSync(join(npmCli, 'npm', 'bin', 'npx-cli.js'), join(bin, 'npx'));
  writeFileSync(join(folder, 'package.json'), '{"private":true}\n');
  // The registry answers what npm's cache lacks, for the dependencies; then all is done again with no network at all.
  const wanted = ['install', '--no-audit', '--no-fund', '--no-save', tarball, ...drawings];
  npm([...wanted, '--prefer-offline'], folder);
  rmSync(join(folder, 'node_modules'), { recursive: true });
  const [command, ...before] = [...offline, process.execPath];
  execFileSync(command!, [...before, join(npmCli, 'npm', 'bin', 'npm-cli.js'), ...wanted, '--offline'], { cwd: folder, env, stdio: ['ignore', 'ignore', 'inherit'] });
  writeFileSync(done, '');
  return project;
}

let made: Project | undefined;
export const project = (): Project => (made ??= install());

/** The same project with a package of its own, which may be damaged. */
export function copyOfProject(): Project & { remove(): void } {
  const from = project();
  const folder = mkdtempSync(join(dirname(from.folder), 'copy-'));
  const modules = join(folder, 'node_modules');
  mkdirSync(modules);
  for (const name of readdirSync(join(from.folder, 'node_modules')))
    if (name !== 'mmmamba' && !name.startsWith('.')) symlinkSync(join(from.folder, 'node_modules', name), join(modules, name));
  cpSync(from.installed, join(modules, 'mmmamba'), { recursive: true });
  return { ...from, folder, installed: join(modules, 'mmmamba'), remove: () => rmSync(folder, { recursive: true, force: true }) };
}

/** Runs node in the project as its user would: without network and compiler. */
export function node(args: string[], where: Pick<Project, 'folder' | 'env'> = project(), env: NodeJS.ProcessEnv = {}, executable = process.execPath): Promise<Ended> {
  const [command, ...before] = [...offline, executable];
  return ended(command!, [...before, ...args], { cwd: where.folder, env: { ...where.env, ...env } });
}

/** Writes a script into the project and runs it; its standard output as JSON. */
export async function evaluate(name: string, text: string, where: Pick<Project, 'folder' | 'env'> = project(), env: NodeJS.ProcessEnv = {}): Promise<unknown> {
  const file = join(where.folder, name);
  writeFileSync(file, text);
  const { code, signal, stdout, stderr } = await node([file], where, env);
  if (code !== 0) throw new Error(`${name} ended with ${code ?? signal}: ${stderr}`);
  return JSON.parse(stdout);
}
