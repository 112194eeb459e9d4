import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/**
 * Why a file must not be opened as a library, or null. One that was cut off has pages that are mapped but not there, and touching
 * them ends the process with SIGBUS, so that no error could be caught. 64-bit little-endian ELF only; others are left to the system.
 */
export function truncated(path: string): string | null {
  const file = openSync(path, 'r');
  try {
    const header = Buffer.alloc(64);
    const { size } = fstatSync(file);
    if (readSync(file, header, 0, 64, 0) < 64 || header.readUInt32BE(0) !== 0x7f454c46 || header[4] !== 2) return null;
    // The section headers stand at the end: their offset, size and number.
    const end = Number(header.readBigUInt64LE(0x28)) + header.readUInt16LE(0x3a) * header.readUInt16LE(0x3c);
    return size < end ? `the file is truncated: ${size} of ${end} bytes` : null;
  } finally {
    closeSync(file);
  }
}
