export { MmError, type ErrorCode } from './native/errors.js';
export { backends, type BackendInfo } from './native/backends.js';
export { memoryStats } from './tensor/memory.js';
export type { DeviceMemory, MemoryStats } from './native/binding.js';
export type { Dtype } from './tensor/dtype.js';
export { Scope, scope, untracked } from './tensor/scope.js';
export { sync, Tensor, type TensorData, type TensorOptions } from './tensor/tensor.js';
export * from './ops/index.js';
export { checkpoint, noGrad, Tape } from './autograd/tape.js';
