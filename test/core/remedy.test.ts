import test from 'ava';
import { remedyOf } from '../../lib/native/remedy.js';

// What dynamic linkers and Node really print, and a word of what helps.
const cases: [string, RegExp][] = [
  ["/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /x/mmmamba.glibc.node)", /^the C library is too old: this system has glibc .*, the binary needs 2\.38\. Compile it here: npx mmmamba build/],
  ["/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by /x/mmmamba.node)", /^the C\+\+ library is older/],
  ['Error loading shared library ld-linux-x86-64.so.2: No such file or directory (needed by /x/mmmamba.glibc.node)', /^it is for another C library/],
  ['Error relocating /x/mmmamba.glibc.node: __fprintf_chk: symbol not found', /^it is for another C library/],
  ['/x/mmmamba.node: invalid ELF header', /^the file is damaged or no binary/],
  ['/x/mmmamba.node: file too short', /^the file is damaged or no binary/],
  ['not a file', /^the file is damaged or no binary/],
  ['it is for another processor: arm64', /^remove node_modules\/mmmamba and install it again on this machine, or compile it here/],
  ['the file is truncated: 10 of 20 bytes', /^the file is damaged or no binary/],
  ['\\\\?\\C:\\x\\mmmamba.node is not a valid Win32 application.', /^the file is damaged or no binary/],
  ['/x/mmmamba.node: wrong ELF class: ELFCLASS32', /^it is for another processor than \w+-\w+/],
  ["dlopen(/x/mmmamba.node, 0x0001): tried: '/x/mmmamba.node' (mach-o file, but is an incompatible architecture (have 'x86_64', need 'arm64'))", /^it is for another processor/],
  ['/x/mmmamba.node: undefined symbol: napi_type_tag_object', /^Node v[\d.]+ does not offer Node-API 9/],
  ["Module did not self-register: '/x/mmmamba.node'.", /^Node v[\d.]+ does not offer Node-API 9/],
  ['/x/mmmamba.node: failed to map segment from shared object', /mounted noexec/],
  ['libgomp.so.1: cannot open shared object file: No such file or directory', /^install what contains libgomp\.so\.1, or compile it here/],
  ['built for mmmamba 0.0.9, and this is 0.1.0', /^build it again \(npx mmmamba build\), or remove it/],
  ['no such file', /^correct the path, or unset the variable/],
  ['something that no one has seen before', /^compile it here: npx mmmamba build/],
];

for (const [reason, remedy] of cases) test(reason, (t) => t.regex(remedyOf(reason), remedy));
