/**
 * The public surface of mmmamba: tensors and ops, the tape, models, files, and the training recipe.
 * @packageDocumentation
 */
export { MmError, type ErrorCode } from './native/errors.js';
export { backends, type BackendInfo } from './native/backends.js';
export { memoryStats, resetPeak } from './tensor/memory.js';
export type { DeviceMemory, KernelTime, MemoryStats } from './native/binding.js';
export { startProfile, stopProfile } from './native/profile.js';
export type { Dtype } from './tensor/dtype.js';
export { Random } from './tensor/random.js';
export { Graph } from './tensor/graph.js';
export { Captured, type CapturedOptions, type Held } from './nn/captured.js';
export { Scope, scope, untracked } from './tensor/scope.js';
export { sync, Tensor, type TensorData, type TensorOptions } from './tensor/tensor.js';
export * from './ops/index.js';
export { checkpoint, noGrad, Tape } from './autograd/tape.js';
export * as nn from './nn/index.js';
export * from './models/index.js';
export { loadTokenizer } from './io/tokenizer/load.js';
export type { Tokenizer } from './io/tokenizer/tokenizer.js';
export { encodeChat, renderChat, stopIds, type ChatMessage } from './io/tokenizer/chat.js';
export { decodeImage } from './io/images/decode.js';
export { preprocessImage } from './io/images/preprocess.js';
export { openSafetensors, openSharded, readSafetensors, readSharded, writeSafetensors } from './io/safetensors.js';
export { AdamW } from './train/optimizer.js';
export { distillSchema, presets, trainTeacherSchema } from './train/config.js';
export { distill } from './train/distill.js';
export { trainTeacher } from './train/teacher.js';
