/** The raw surface of the addon (csrc/napi/addon.cc). Only lib/native and lib/tensor touch it. */
declare const handleBrand: unique symbol;
declare const graphBrand: unique symbol;
export type GraphHandle = { readonly [graphBrand]: true };
export type Handle = { readonly [handleBrand]: true };

/** [handle, dtype code, shape, strides in elements, offset in elements] */
export type Wrapped = [Handle, number, number[], number[], number];

export interface InputSchema {
  name: string;
  doc: string;
  dtypes: number;
  optional: boolean;
  list: boolean;
  mutates: boolean;
}
export interface AttrSchema {
  name: string;
  doc: string;
  kind: 'number' | 'integer' | 'boolean' | 'enum';
  initial: number;
  required: boolean;
  choices: string | null;
}
/** One operator as csrc/ops declares it. */
export interface OpSchema {
  name: string;
  doc: string;
  backward: string | null;
  cpu: boolean;
  inputs: InputSchema[];
  attrs: AttrSchema[];
  outputs: { name: string; doc: string }[];
}

export type AttrValue = number | boolean | string;
export type Attrs = { readonly [name: string]: AttrValue | undefined };

export interface DeviceMemory {
  /** live storages: tensors, their views counted once */
  storages: number;
  /** bytes in use by live storages */
  bytes: number;
  peakBytes: number;
}
export interface MemoryStats {
  /** live tensor handles of this environment */
  tensors: number;
  devices: { [device: string]: DeviceMemory };
}
/** Time spent in one kernel on the executors. */
export interface KernelTime {
  op: string;
  variant: string;
  calls: number;
  /** milliseconds in all */
  ms: number;
}
export interface RawBackend {
  name: string;
  available: boolean;
  reason: string | null;
  library: string | null;
  devices: string[];
}

export interface Binding {
  /** of the package that it was built from */
  version?: string;
  abiVersion: number;
  schemas(): OpSchema[];
  run(op: number, inputs: (Handle | null | (Handle | null)[])[], attrs: Attrs | undefined, device: string | undefined): (Wrapped | Wrapped[] | null)[];
  fromBytes(bytes: Uint8Array | null, dtype: number, shape: readonly number[], device: string): Wrapped;
  view(handle: Handle, shape: readonly number[], strides: readonly number[], offset: number): Wrapped;
  read(handle: Handle): Promise<ArrayBuffer>;
  sync(device: string): Promise<void>;
  dispose(handle: Handle): void;
  memoryStats(): MemoryStats;
  resetPeak(): void;
  profile(on: boolean): KernelTime[];
  captureBegin(device: string): GraphHandle;
  captureEnd(graph: GraphHandle): Promise<void>;
  replay(graph: GraphHandle): void;
  disposeGraph(graph: GraphHandle): void;
  /** Drops what is queued and waits for what runs, for good. */
  stop(): void;
  backends(): RawBackend[];
  setSearch(backend: string, paths: string[]): void;
}
