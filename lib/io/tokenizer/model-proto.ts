/*
 * The vocabulary inside a SentencePiece `tokenizer.model`, a protocol buffer: ModelProto.pieces = field 1, repeated
 * SentencePiece { piece = 1: string, score = 2: float, type = 3: enum }. The WebAssembly wrapper does not give it out.
 */

/** SentencePiece.Type */
export const PIECE_TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface Piece {
  readonly text: string;
  readonly type: number;
}

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

interface Field {
  readonly number: number;
  /** Of a varint. */
  readonly value: number;
  /** Of a string or message. */
  readonly bytes: Uint8Array;
}

function* fields(buffer: Uint8Array): Generator<Field> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= buffer.length) throw new Error('truncated');
      if (scale > 128 ** 9) throw new Error('a number is too long');
      const byte = buffer[at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  while (at < buffer.length) {
    const key = varint();
    const wire = key % 8;
    const number = Math.floor(key / 8);
    const value = wire === VARINT ? varint() : 0;
    const lengths: Record<number, () => number> = { [VARINT]: () => 0, [FIXED64]: () => 8, [BYTES]: varint, [FIXED32]: () => 4 };
    const length = lengths[wire]?.();
    if (length === undefined) throw new Error(`field ${number} has the unknown wire type ${wire}`);
    if (at + length > buffer.length) throw new Error(`truncated: field ${number} needs ${length} bytes, ${buffer.length - at} are left`);
    yield { number, value, bytes: buffer.subarray(at, at + length) };
    at += length;
  }
}

/** The pieces in the order of their ids. @throws Error where the buffer is no ModelProto */
export function readPieces(model: Uint8Array): Piece[] {
  const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const pieces: Piece[] = [];
  for (const { number, bytes } of fields(model)) {
    if (number !== 1) continue;
    let text = '';
    let type: number = PIECE_TYPE.normal;
    for (const field of fields(bytes)) {
      if (field.number === 1) text = utf8.decode(field.bytes);
      if (field.number === 3) type = field.value;
    }
    pieces.push({ text, type });
  }
  if (pieces.length === 0) throw new Error('it holds no pieces');
  return pieces;
}
