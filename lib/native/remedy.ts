import { compile, platform } from './candidates.js';

/** The C library of this process as Node reports it; null for others than glibc. Takes some milliseconds: only for messages. */
export function glibcVersion(): string | null {
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime ?? null;
}

const reinstall = 'remove node_modules/mmmamba and install it again';

/** What the dynamic linkers of glibc, musl, macOS and Windows say, and what helps. The first that matches counts. */
const known: readonly (readonly [RegExp, (match: RegExpExecArray) => string])[] = [
  [
    /version `GLIBC_([\d.]+)' not found/,
    ([, needed]) => `the C library is too old: this system has glibc ${glibcVersion() ?? 'unknown'}, the binary needs ${needed}. Compile it here: ${compile}`,
  ],
  [/version `(?:GLIBCXX|CXXABI)_[\d.]+' not found/, () => `the C++ library is older than the one it was built with. Compile it here: ${compile}`],
  [/Error loading shared library ld-linux|Error relocating|libc\.musl/, () => `it is for another C library than this system's. Compile it here: ${compile}`],
  [/^it is for another (?:processor|system)/, () => `${reinstall} on this machine, or compile it here: ${compile}`],
  [/^not a file$|invalid ELF header|file too short|file truncated|truncated|not a valid Win32|not a mach-o/i, () => `the file is damaged or no binary: ${reinstall}`],
  [/wrong ELF class|incompatible architecture|cannot open shared object file: Exec format/, () => `it is for another processor than ${platform}: ${reinstall}`],
  [/undefined symbol: napi_|NODE_MODULE_VERSION|did not self-register/, () => `Node ${process.version} does not offer Node-API 9: use Node 20.19 or newer`],
  [/failed to map segment|Operation not permitted|Permission denied/, () => 'the file may not be run: check its permissions, and that its disk is not mounted noexec'],
  [/^(\S+): cannot open shared object file: No such file/, ([, library]) => `install what contains ${library}, or compile it here: ${compile}`],
  [/^built for mmmamba/, () => 'build it again (npx mmmamba build), or remove it'],
  [/^no such file$/, () => 'correct the path, or unset the variable'],
];

/** What to do about a binary that did not load, by the error's text. */
export function remedyOf(reason: string): string {
  for (const [pattern, remedy] of known) {
    const match = pattern.exec(reason);
    if (match) return remedy(match);
  }
  return `compile it here: ${compile}`;
}
