import { readFileSync } from 'node:fs';
import { binding, bindingPath, passedOver, type Attempt } from './loader.js';
import { glibcVersion } from './remedy.js';

/** One device backend, as `backends()` reports it. */
export interface BackendInfo {
  name: 'cpu' | 'cuda';
  available: boolean;
  /** why it is not available; null when it is */
  reason: string | null;
  /** the shared library it was loaded from; null for the CPU */
  library: string | null;
  /** one object a device: for the CPU {isa, threads, gemm, cachedBytes} */
  devices: Record<string, unknown>[];
}

/** What this process can compute on, and why not on the rest. */
export function backends(): BackendInfo[] {
  return binding()
    .backends()
    .map((b) => ({ ...b, name: b.name as BackendInfo['name'], devices: b.devices.map((d) => JSON.parse(d) as Record<string, unknown>) }));
}

/** The binary that this process runs, and those that come before it in the loader's order and could not be used. */
export function addon(): { path: string; version: string; passedOver: readonly Attempt[] } {
  return { path: bindingPath(), version: binding().version ?? 'unknown', passedOver: passedOver() };
}

/** The C library that this process runs on, as `glibc 2.36`. */
export function cLibrary(): string {
  const version = glibcVersion();
  if (version !== null) return `glibc ${version}`;
  return process.platform === 'linux' ? 'no glibc (musl?)' : 'the system\'s C library';
}

/** Version of the NVIDIA kernel driver, such as '580.159.04'; null where there is none. */
export function nvidiaDriver(): string | null {
  try {
    return /Kernel Module\s+(?:for \S+\s+)?([\d.]+)/.exec(readFileSync('/proc/driver/nvidia/version', 'utf8'))?.[1] ?? null;
  } catch {
    return null;
  }
}

let told = false;

/** 'auto' becomes 'cuda:0' where it is available, else 'cpu' (said once on stderr); 'cuda' is 'cuda:0'; other names pass. */
export function resolveDevice(device: string): string {
  if (device !== 'auto') return device === 'cuda' ? 'cuda:0' : device;
  const cuda = backends().find((b) => b.name === 'cuda');
  if (cuda?.available) return 'cuda:0';
  if (!told) process.stderr.write(`mmmamba: running on the CPU (cuda: ${cuda?.reason ?? 'absent'})\n`);
  told = true;
  return 'cpu';
}
