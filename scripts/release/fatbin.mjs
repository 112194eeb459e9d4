import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * Bytes of GPU code in a library by architecture, as they lie in the file: `sm_90`, or `compute_80` for PTX. The format is what nvcc
 * writes and cuobjdump reads: a header each (magic, version, own size, size of what follows), and behind it entries with a header of
 * their own (kind at 0, own size at 4, payload's size at 8, architecture at 28).
 */
export function gpuCode(library) {
  const folder = mkdtempSync(join(tmpdir(), 'mmmamba-fatbin-'));
  try {
    const section = join(folder, 'fatbin');
    execFileSync('objcopy', ['-O', 'binary', '--only-section=.nv_fatbin', library, section]);
    const bytes = readFileSync(section);
    const sizes = {};
    for (let at = 0; at + 16 <= bytes.length; ) {
      if (bytes.readUInt32LE(at) !== 0xba55ed50) {
        at += 8; // padding between two
        continue;
      }
      let entry = at + bytes.readUInt16LE(at + 6);
      const end = entry + Number(bytes.readBigUInt64LE(at + 8));
      while (entry < end) {
        const size = bytes.readUInt32LE(entry + 4) + Number(bytes.readBigUInt64LE(entry + 8));
        const name = `${bytes.readUInt16LE(entry) === 1 ? 'compute' : 'sm'}_${bytes.readUInt32LE(entry + 28)}`;
        sizes[name] = (sizes[name] ?? 0) + size;
        entry += size;
      }
      at = end;
    }
    return sizes;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
