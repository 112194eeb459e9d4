#!/usr/bin/env node
// Stands in for node-gyp when prebuildify builds: its `rebuild` throws all objects away, and only the link differs from a local
// build. What sees oneDNN's headers is compiled anew, as those differ too.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..');
rmSync(join(root, 'build', 'Release', 'obj.target', 'mmmamba', 'csrc', 'cpu', 'onednn.o'), { force: true });
process.exit(spawnSync(process.execPath, [join(root, 'scripts', 'build-native.mjs')], { stdio: 'inherit' }).status ?? 1);
