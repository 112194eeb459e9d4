import { MmError } from '../native/errors.js';

/** Where a generator stands; plain numbers, so that it can be written to a checkpoint. */
export interface RandomState {
  seed: number;
  stream: number;
  /** numbers of 32 bits drawn so far */
  drawn: number;
}

/** High 32 bits of the product of two unsigned 32-bit numbers. */
function mulHigh(a: number, b: number): number {
  const a1 = a >>> 16;
  const a0 = a & 0xffff;
  const b1 = b >>> 16;
  const b0 = b & 0xffff;
  const low = a0 * b0;
  const middle = a1 * b0 + (low >>> 16) + ((a0 * b1) & 0xffff);
  return a1 * b1 + Math.floor(middle / 65536) + Math.floor((a0 * b1) / 65536);
}

const low32 = (x: number): number => x >>> 0;
const high32 = (x: number): number => Math.floor(x / 2 ** 32) >>> 0;

/**
 * Seeded random numbers from a counter: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
 * Number n of a (seed, stream) is a pure function of n, so that a generator is saved and restored as three integers, and
 * streams of one seed never meet.
 */
export class Random {
  readonly seed: number;
  readonly stream: number;
  #drawn = 0;
  readonly #block = new Uint32Array(4);
  #blockIndex = -1;

  /** `seed` and `stream` are integers from 0 to 2^53 - 1. @throws MmError ERR_ARGUMENT */
  constructor(seed: number, stream = 0) {
    for (const [name, value] of [['seed', seed], ['stream', stream]] as const)
      if (!Number.isSafeInteger(value) || value < 0)
        throw new MmError('ERR_ARGUMENT', `${name}: expected an integer from 0 to 2^53 - 1, got ${value}`);
    this.seed = seed;
    this.stream = stream;
  }

  /** A generator that goes on where `state` was taken. */
  static restore(state: RandomState): Random {
    const random = new Random(state.seed, state.stream);
    if (!Number.isSafeInteger(state.drawn) || state.drawn < 0)
      throw new MmError('ERR_ARGUMENT', `drawn: expected a non-negative integer, got ${state.drawn}`);
    random.#drawn = state.drawn;
    return random;
  }
  get state(): RandomState {
    return { seed: this.seed, stream: this.stream, drawn: this.#drawn };
  }

  /** 32 random bits as an integer in [0, 2^32). */
  bits(): number {
    const index = Math.floor(this.#drawn / 4);
    if (index !== this.#blockIndex) this.#fill(index);
    return this.#block[this.#drawn++ % 4]!;
  }

  #fill(index: number): void {
    let c0 = low32(index);
    let c1 = high32(index);
    let c2 = low32(this.stream);
    let c3 = high32(this.stream);
    let k0 = low32(this.seed);
    let k1 = high32(this.seed);
    for (let round = 0; round < 10; round++) {
      const x0 = mulHigh(0xd2511f53, c0);
      const y0 = Math.imul(0xd2511f53, c0);
      const x1 = mulHigh(0xcd9e8d57, c2);
      const y1 = Math.imul(0xcd9e8d57, c2);
      c0 = (x1 ^ c1 ^ k0) >>> 0;
      c1 = y1 >>> 0;
      c2 = (x0 ^ c3 ^ k1) >>> 0;
      c3 = y0 >>> 0;
      k0 = (k0 + 0x9e3779b9) >>> 0;
      k1 = (k1 + 0xbb67ae85) >>> 0;
    }
    this.#block.set([c0, c1, c2, c3]);
    this.#blockIndex = index;
  }

  /** A number in [low, high), a multiple of 2^-24 of the span (exact in f32 for [0, 1)). */
  uniform(low = 0, high = 1): number {
    return low + (high - low) * ((this.bits() >>> 8) / 2 ** 24);
  }
  /** A normally distributed number (Box-Muller; two draws). */
  normal(mean = 0, std = 1): number {
    const radius = Math.sqrt(-2 * Math.log((this.bits() + 1) / 2 ** 32));
    return mean + std * radius * Math.cos(2 * Math.PI * (this.bits() / 2 ** 32));
  }
  /** An integer in [low, high), each equally likely. @throws MmError ERR_ARGUMENT for an empty range or one above 2^32 */
  int(low: number, high: number): number {
    const span = high - low;
    if (!Number.isSafeInteger(low) || !Number.isSafeInteger(high) || span < 1 || span > 2 ** 32)
      throw new MmError('ERR_ARGUMENT', `int: expected integers with low < high <= low + 2^32, got [${low}, ${high})`);
    const limit = 2 ** 32 - (2 ** 32 % span); // above it, the first values would come more often
    for (;;) {
      const x = this.bits();
      if (x < limit) return low + (x % span);
    }
  }
  /** `size` numbers of `draw`, rounded to f32. */
  fill(size: number, draw: (random: this) => number): Float32Array {
    const out = new Float32Array(size);
    for (let i = 0; i < size; i++) out[i] = draw(this);
    return out;
  }
}
