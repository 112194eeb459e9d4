import { MmError } from '../native/errors.js';

export type Dtype = 'f32' | 'bf16' | 'f16' | 'i32' | 'u8';

const names: readonly Dtype[] = ['f32', 'bf16', 'f16', 'i32', 'u8'];
const sizes: Record<Dtype, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1 };

export function dtypeCode(dtype: Dtype): number {
  const code = names.indexOf(dtype);
  if (code < 0) throw new MmError('ERR_DTYPE', `unknown dtype '${String(dtype)}'; expected one of ${names.join(', ')}`);
  return code;
}
export function dtypeName(code: number): Dtype {
  return names[code]!;
}
/** Bytes of one element. */
export function dtypeSize(dtype: Dtype): number {
  return sizes[dtype];
}
export function isFloat(dtype: Dtype): boolean {
  return dtype === 'f32' || dtype === 'bf16' || dtype === 'f16';
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** f32 -> bf16 bits, round to nearest even. */
export function bf16Bits(x: number): number {
  f32[0] = x;
  const u = u32[0]!;
  if ((u & 0x7fffffff) > 0x7f800000) return ((u >>> 16) | 64) & 0xffff;
  return ((u + 0x7fff + ((u >>> 16) & 1)) >>> 16) & 0xffff;
}
export function bf16Value(bits: number): number {
  u32[0] = bits << 16;
  return f32[0]!;
}

/** f32 -> f16 bits, round to nearest even. */
export function f16Bits(x: number): number {
  f32[0] = x;
  const u = u32[0]!;
  const sign = (u >>> 16) & 0x8000;
  const a = u & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;
  if (a >= 0x477ff000) return sign | 0x7c00;
  if (a < 0x38800000) {
    u32[0] = a;
    f32[0] = f32[0]! + 0.5; // adding 0.5 rounds at 2^-24, the step of subnormals
    return sign | (u32[0]! - 0x3f000000);
  }
  return sign | ((a - 0x38000000 + 0xfff + ((a >>> 13) & 1)) >>> 13);
}
export function f16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + mantissa / 1024) : sign * 2 ** -24 * mantissa;
}
