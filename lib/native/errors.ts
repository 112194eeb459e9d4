/** What went wrong, for programs. The message says it for people. */
export type ErrorCode =
  | 'ERR_SHAPE' // shapes do not fit together or an axis is out of range
  | 'ERR_DTYPE' // an operand's dtype is not one that the op accepts
  | 'ERR_DEVICE' // mixed devices, an unknown device, or a backend that is absent
  | 'ERR_ARGUMENT' // an attribute, option or argument out of range or of the wrong type
  | 'ERR_DISPOSED' // a tensor, tape, scope or model was used after dispose()
  | 'ERR_UNSUPPORTED' // no kernel of the device takes these operands
  | 'ERR_KERNEL' // a kernel failed while running; the message names the op
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_NATIVE_LOAD' // the addon could not be loaded
  | 'ERR_FILE_FORMAT' // a file is truncated, malformed or not what it claims to be
  | 'ERR_FILE_IO' // a file could not be read or written
  | 'ERR_CONFIG' // a configuration has unknown, missing or contradictory keys
  | 'ERR_IMAGE' // an image that cannot be decoded or used
  | 'ERR_ABORTED'; // stopped by an AbortSignal or Ctrl-C

/** The one error class of the library: `code` is for programs, `message` names what was wrong and what would be right. */
export class MmError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'MmError';
    this.code = code;
  }
}
