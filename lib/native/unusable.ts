import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/** e_machine of the processors that Node runs on, by Node's names; others are left to the system. */
const machines: Record<string, number> = { ia32: 0x03, ppc64: 0x15, s390x: 0x16, arm: 0x28, x64: 0x3e, arm64: 0xb7, riscv64: 0xf3, loong64: 0x102 };

/**
 * Why a file must not be opened as a library, or null. One that was cut off has pages that are mapped but not there, and touching
 * them ends the process with SIGBUS, so that no error could be caught; of one for another processor or system the linker says that it
 * does not exist or is damaged. On Linux, and 64-bit little-endian ELF, only; all else is left to the system.
 */
export function unusable(path: string): string | null {
  if (process.platform !== 'linux') return null;
  const file = openSync(path, 'r');
  try {
    const header = Buffer.alloc(64);
    const status = fstatSync(file);
    if (!status.isFile()) return 'not a file';
    const read = readSync(file, header, 0, 64, 0);
    const magic = header.readUInt32BE(0);
    if (magic >>> 16 === 0x4d5a) return 'it is for another system: Windows';
    if ([0xcffaedfe, 0xcafebabe].includes(magic)) return 'it is for another system: macOS';
    if (read < 64 || magic !== 0x7f454c46 || header[4] !== 2 || header[5] !== 1) return null;
    const machine = header.readUInt16LE(0x12);
    const name = Object.keys(machines).find((arch) => machines[arch] === machine);
    if (name !== undefined && process.arch in machines && name !== process.arch) return `it is for another processor: ${name}`;
    // The section headers stand at the end: their offset, size and number.
    const end = Number(header.readBigUInt64LE(0x28)) + header.readUInt16LE(0x3a) * header.readUInt16LE(0x3c);
    return status.size < end ? `the file is truncated: ${status.size} of ${end} bytes` : null;
  } finally {
    closeSync(file);
  }
}
