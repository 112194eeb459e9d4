import { closeSync, existsSync, fsyncSync, openSync, statSync, truncateSync } from 'node:fs';
import { fileError } from '../io/fail.js';
import { JsonlWriter } from '../io/jsonl.js';
import { MmError } from '../native/errors.js';

/** One update. `step` counts from 1: the updates done. */
export interface StepRecord {
  readonly stage: string;
  readonly step: number;
  readonly loss: number;
  readonly lr: number;
  /** before clipping */
  readonly gradNorm: number;
  readonly tokensPerSecond: number;
  /** wall clock since the update before */
  readonly ms: number;
}

/**
 * metrics.jsonl of a run: one line an update, and one an evaluation. A checkpoint notes how long the file was; to resume
 * is to cut it there, so that the file of a run that was killed and resumed reads as if nothing had happened.
 */
export class MetricsFile implements Disposable {
  private readonly writer: JsonlWriter;

  /**
   * @param keep bytes that stay, 0 for a new run
   * @throws MmError ERR_FILE_FORMAT where the file is shorter than the checkpoint says; ERR_FILE_IO
   */
  constructor(
    readonly path: string,
    keep: number,
  ) {
    try {
      const size = existsSync(path) ? statSync(path).size : 0;
      if (size < keep)
        throw new MmError('ERR_FILE_FORMAT', `${path} has ${size} bytes; the checkpoint was written when it had ${keep}: part of it is lost`);
      if (size > keep) truncateSync(path, keep);
    } catch (cause) {
      throw fileError('cut', path, cause);
    }
    this.writer = new JsonlWriter(path);
  }

  write(record: StepRecord | Readonly<Record<string, unknown>>): void {
    this.writer.write(record as Readonly<Record<string, unknown>>);
  }

  /** Bytes in the file, which are on the disk when this returns. */
  flush(): number {
    try {
      const file = openSync(this.path, 'r+');
      try {
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      return statSync(this.path).size;
    } catch (cause) {
      throw fileError('flush', this.path, cause);
    }
  }

  close(): void {
    this.writer.close();
  }
  [Symbol.dispose](): void {
    this.close();
  }
}
