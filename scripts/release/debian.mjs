import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** An apt-get that knows one suite of Debian and nothing else, with its lists in a folder: it touches no setting of the machine. */
export function debian(folder, { suite, type }) {
  const lists = join(folder, 'apt');
  mkdirSync(join(lists, 'lists', 'partial'), { recursive: true });
  const keys = '/usr/share/keyrings/debian-archive-keyring.gpg';
  if (!existsSync(keys)) throw new Error(`${keys} is missing: this needs Debian or a system that has its keys`);
  writeFileSync(join(lists, `${suite}.sources`), `Types: ${type}\nURIs: http://deb.debian.org/debian\nSuites: ${suite}\nComponents: main\nSigned-By: ${keys}\n`);
  const options = {
    'Dir::Etc::sourcelist': '/dev/null',
    'Dir::Etc::sourceparts': lists,
    'Dir::State::lists': join(lists, 'lists'),
    'Dir::State::status': '/dev/null', // what is installed here does not matter
    'APT::Sandbox::User': 'root',
  };
  const apt = (...args) =>
    execFileSync('apt-get', ['-qq', ...Object.entries(options).flatMap(([key, value]) => ['-o', `${key}=${value}`]), ...args], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  apt('update');
  return apt;
}
