import type { Attrs } from '../lib/native/binding.js';

/** One operand of a benchmark: uniform values in [low, high), or integers when `ints` is given. */
export interface BenchInput {
  shape: number[];
  low?: number;
  high?: number;
  /** i32 values in [0, ints) */
  ints?: number;
  /** exact i32 values */
  values?: number[];
  /** fixed f32, whatever the dtype of the run (states, A, dt) */
  f32?: boolean;
  /** memory order of the axes, e.g. [0, 2, 1] for a channel-last (B, D, L) */
  order?: number[];
}

/** One shape of one op. `flops` counts multiplications and additions; bytes are those of all operands and results, unless `moves` says less. */
export interface BenchCase {
  op: string;
  name: string;
  inputs: Record<string, BenchInput | BenchInput[]>;
  attrs?: Attrs;
  /** elements of the run's dtype read and written, where most of an operand is not touched */
  moves?: number;
  flops?: number;
  /** flops of the backward op, when it is to be timed too */
  backwardFlops?: number;
  /** time the backward op as well */
  backward?: boolean;
  /** a row for forward and backward together, as some peers are timed */
  together?: boolean;
}

const t = (...shape: number[]): BenchInput => ({ shape });
const decay = (...shape: number[]): BenchInput => ({ shape, low: -1.5, high: -0.5, f32: true });
const small = (...shape: number[]): BenchInput => ({ shape, low: 0.001, high: 0.1, f32: true });

function ssd(B: number, L: number, H: number, P: number, N: number, G: number, name = `L${L} H${H} P${P} N${N} G${G}`): BenchCase {
  const chunk = 64; // operations of the chunked form at this chunk length; the state pass is small beside it
  const flops = 2 * B * H * L * ((chunk / 2) * N + (chunk / 2) * P + 2 * P * N);
  return {
    op: 'ssd',
    name,
    inputs: { x: t(B, L, H, P), dt: small(B, L, H), A: decay(H), B: t(B, L, G, N), C: t(B, L, G, N) },
    flops,
    backward: true,
    backwardFlops: 2.5 * flops,
  };
}

function linearFamily(op: string, B: number, T: number, H: number, K: number, V: number): BenchCase {
  const flops = 2 * B * H * T * (32 * K + 32 * V + 2 * K * V);
  const gates: Record<string, BenchInput> =
    op === 'simpleGla' ? { g: { shape: [B, T, H], low: -0.1, high: 0, f32: true } } : op === 'gla' ? { gk: { shape: [B, T, H, K], low: -0.1, high: 0, f32: true } } : {};
  return {
    op,
    name: `B${B} T${T} H${H} K${K} V${V}`,
    inputs: { q: t(B, T, H, K), k: t(B, T, H, K), v: t(B, T, H, V), ...gates },
    attrs: { scale: K ** -0.5 },
    flops,
    backward: true,
    backwardFlops: 2.5 * flops,
  };
}

function attention(B: number, Lq: number, Lk: number, H: number, Hk: number, D: number, causal: boolean): BenchCase {
  const flops = 4 * B * H * Lq * Lk * D * (causal && Lq === Lk ? 0.5 : 1);
  return {
    op: 'attention',
    name: `B${B} Lq${Lq} Lk${Lk} H${H} Hk${Hk} D${D}${causal ? ' causal' : ''}`,
    inputs: { q: t(B, Lq, H, D), k: t(B, Lk, Hk, D), v: t(B, Lk, Hk, D) },
    attrs: { causal },
    flops,
    backward: Lq > 1,
    backwardFlops: 2.5 * flops,
  };
}

function linear(M: number, K: number, N: number): BenchCase {
  return { op: 'linear', name: `${M}x${K}x${N}`, inputs: { x: t(M, K), weight: t(N, K) }, flops: 2 * M * K * N, backward: M > 1, backwardFlops: 4 * M * K * N };
}

/** One query over a cache that is full. */
function decode(keys: number, H: number, Hk: number, D: number): BenchCase {
  return {
    op: 'attentionKvCache',
    name: `one query over ${keys} keys, H${H} Hk${Hk} D${D}`,
    inputs: { q: t(1, 1, H, D), kCache: t(1, keys, Hk, D), vCache: t(1, keys, Hk, D), lengths: { shape: [1], values: [keys] } },
    flops: 4 * H * keys * D,
  };
}

function stateUpdate(B: number, H: number, P: number, N: number, G: number): BenchCase {
  return {
    op: 'selectiveStateUpdate',
    name: `B${B} H${H} P${P} N${N} G${G}`,
    inputs: { state: { shape: [B, H, P, N], f32: true }, x: t(B, H, P), dt: small(B, H), A: decay(H), B: t(B, G, N), C: t(B, G, N) },
    flops: 6 * B * H * P * N,
  };
}

function conv(D: number, L: number, W: number, last: boolean): BenchCase {
  return {
    op: 'causalConv1d',
    name: `channel-${last ? 'last' : 'first'} B1 D${D} L${L} W${W} silu`,
    inputs: { x: { shape: [1, D, L], ...(last && { order: [0, 2, 1] }) }, weight: t(D, W), bias: t(D) },
    attrs: { activation: 'silu' },
    backward: true,
  };
}

function convUpdate(B: number, D: number, W: number): BenchCase {
  return { op: 'causalConv1dUpdate', name: `B${B} D${D} W${W}`, inputs: { x: t(B, D), convState: t(B, D, W - 1), weight: t(D, W), bias: t(D) }, attrs: { activation: 'silu' } };
}

function norm(rows: number): BenchCase {
  return { op: 'rmsNorm', name: `${rows} x 2048`, inputs: { x: t(rows, 2048), weight: t(2048) }, backward: true };
}

function layerNorm(rows: number): BenchCase {
  return { op: 'layerNorm', name: `${rows} x 2048`, inputs: { x: t(rows, 2048), weight: t(2048), bias: t(2048) }, backward: true };
}

function rope(L: number): BenchCase {
  const heads = (H: number): BenchInput => ({ shape: [1, H, L, 128], order: [0, 2, 1, 3] });
  const table: BenchInput = { shape: [L, 128], f32: true };
  return {
    op: 'rope',
    name: `B1 H16 Hk8 L${L} D128`,
    inputs: { q: heads(16), k: heads(8), cos: table, sin: table, positionIds: { shape: [1, L], ints: L } },
  };
}

function swiglu(rows: number): BenchCase {
  return { op: 'swiglu', name: `${rows} x 8192`, inputs: { a: t(rows, 8192), b: t(rows, 8192) }, backward: true };
}

function unaryOp(op: 'gelu' | 'silu', rows: number, columns: number): BenchCase {
  return { op, name: `${rows} x ${columns}`, inputs: { x: t(rows, columns) }, backward: true };
}

function mse(rows: number): BenchCase {
  return { op: 'mse', name: `${rows} x 2048`, inputs: { pred: t(rows, 2048), target: t(rows, 2048) }, backward: true };
}

function add(mebi: number): BenchCase {
  return { op: 'add', name: `${mebi} Mi elements`, inputs: { a: t(mebi * 2 ** 20), b: t(mebi * 2 ** 20) } };
}

function adamW(mebi: number): BenchCase {
  const [wide, square]: BenchInput[] = [{ shape: [mebi * 2 ** 20], f32: true }, { shape: [mebi * 2 ** 20], low: 0, high: 1, f32: true }];
  return {
    op: 'adamW',
    name: `${mebi} Mi parameters, bf16 copies`,
    inputs: { params: [wide!], grads: [wide!], expAvg: [wide!], expAvgSq: [square!] },
    attrs: { lr: 1e-6, step: 1 },
  };
}

function gradNorm(mebi: number): BenchCase {
  return { op: 'gradNorm', name: `${mebi} Mi elements`, inputs: { grads: [{ shape: [mebi * 2 ** 20], f32: true }] } };
}

function gatedNorm(rows: number): BenchCase {
  return {
    op: 'gatedRmsNorm',
    name: `${rows} x 16 heads of 128`,
    inputs: { x: t(1, rows, 16, 128), gate: t(1, rows, 16, 128), weight: t(128) },
    backward: true,
  };
}

function scan(B: number, D: number, L: number, N: number): BenchCase {
  return {
    op: 'selectiveScan',
    name: `B${B} D${D} N${N} L${L} gated`,
    inputs: {
      u: t(B, D, L), delta: { shape: [B, D, L], low: 0.001, high: 0.1 }, A: decay(D, N), B: t(B, N, L), C: t(B, N, L), z: t(B, D, L),
      D: { shape: [D], f32: true },
    },
    flops: 6 * B * D * N * L,
    backward: true,
    backwardFlops: 18 * B * D * N * L,
  };
}

/** Every op at shapes that models use; the first of each op is small enough for `--quick`. */
const usual: BenchCase[] = [
  ssd(128, 32, 6, 32, 32, 6, 'train B128 L32 H6 P32 N32'),
  ssd(1, 8192, 16, 128, 128, 16),
  ssd(1, 8192, 80, 64, 128, 1),
  linearFamily('linearAttention', 1, 4096, 16, 128, 128),
  linearFamily('simpleGla', 1, 4096, 16, 128, 128),
  linearFamily('gla', 1, 4096, 16, 128, 128),
  {
    op: 'selectiveScan',
    name: 'B1 D1024 N16 L2048',
    inputs: { u: t(1, 1024, 2048), delta: { shape: [1, 1024, 2048], low: 0.001, high: 0.1 }, A: decay(1024, 16), B: t(1, 16, 2048), C: t(1, 16, 2048) },
    flops: 6 * 1024 * 16 * 2048,
    backward: true,
    backwardFlops: 18 * 1024 * 16 * 2048,
  },
  stateUpdate(1, 16, 128, 128, 16),
  attention(128, 32, 32, 6, 3, 32, true),
  attention(1, 2048, 2048, 16, 8, 128, true),
  attention(1, 8192, 8192, 4, 2, 128, true),
  decode(32768, 16, 8, 128),
  { op: 'kvCacheAppend', name: '64 rows of 8 x 128', inputs: { cache: t(64, 1024, 8, 128), x: t(64, 1, 8, 128), positions: { shape: [64], ints: 1024 } }, moves: 2 * 64 * 8 * 128 },
  { op: 'posEmbedBicubic', name: '32 x 32 to 64 x 64, 1024 wide', inputs: { posEmbed: t(1, 1024, 1024) }, attrs: { outH: 64, outW: 64 } },
  { op: 'ropeTable', name: '4096 x 128', inputs: {}, attrs: { headDim: 128, length: 4096, theta: 1e6 } },
  conv(2048, 4096, 2, true),
  conv(2048, 4096, 4, true),
  convUpdate(64, 6144, 2),
  norm(8192),
  gatedNorm(8192),
  layerNorm(8192),
  rope(4096),
  swiglu(8192),
  unaryOp('gelu', 8192, 4096),
  unaryOp('silu', 8192, 4096),
  linear(4096, 192, 512),
  linear(4096, 512, 192),
  linear(4096, 2048, 2048),
  linear(1, 2048, 8192),
  { op: 'matmul', name: '16 x 512x128x512', inputs: { a: t(16, 512, 128), b: t(16, 128, 512) }, flops: 2 * 16 * 512 * 128 * 512, backward: true, backwardFlops: 4 * 16 * 512 * 128 * 512 },
  { op: 'embedding', name: '8192 of 92553 x 2048', inputs: { weight: t(92553, 2048), ids: { shape: [8192], ints: 92553 } }, moves: 2 * 8192 * 2048 },
  { op: 'patchEmbed', name: '12 tiles 448, patch 14, 1024 wide', inputs: { x: t(12, 3, 448, 448), weight: t(1024, 3, 14, 14), bias: t(1024) }, flops: 2 * 12 * 1024 * 1024 * 588 },
  { op: 'pixelShuffle', name: '12 x 1024 x 1024', inputs: { x: t(12, 1024, 1024) } },
  add(64),
  { op: 'sub', name: 'column broadcast 16384 x 4096', inputs: { a: t(16384, 4096), b: t(16384, 1) } },
  { op: 'div', name: '16384 x 4096', inputs: { a: t(16384, 4096), b: { shape: [16384, 4096], low: 1, high: 2 } } },
  { op: 'scale', name: '64 Mi elements', inputs: { x: t(1 << 26) }, attrs: { factor: 0.5, shift: 1 } },
  { op: 'cast', name: '64 Mi elements to f32', inputs: { x: t(1 << 26) }, attrs: { dtype: 'f32' } },
  { op: 'fill', name: '64 Mi elements', inputs: { x: t(1 << 26) }, attrs: { value: 1 } },
  { op: 'copyInto', name: '64 Mi elements', inputs: { dst: t(1 << 26), src: t(1 << 26) } },
  { op: 'concat', name: 'columns of two 8192 x 4096', inputs: { x: [t(8192, 4096), t(8192, 4096)] }, attrs: { axis: 1 } },
  { op: 'mul', name: 'row broadcast 16384 x 4096', inputs: { a: t(16384, 4096), b: t(4096) } },
  { op: 'unary', name: 'exp, 64 Mi elements', inputs: { x: t(1 << 26) }, attrs: { kind: 'exp' } },
  { op: 'copy', name: 'transpose 8192 x 8192', inputs: { x: { shape: [8192, 8192], order: [1, 0] } } },
  { op: 'sum', name: 'last axis of 16384 x 4096', inputs: { x: t(16384, 4096) }, attrs: { axis: -1 } },
  { op: 'mean', name: 'first axis of 16384 x 4096', inputs: { x: t(16384, 4096) }, attrs: { axis: 0 } },
  { op: 'max', name: 'last axis of 16384 x 4096', inputs: { x: t(16384, 4096) }, attrs: { axis: -1 } },
  { op: 'scatterRows', name: '8192 of 65536 x 512', inputs: { x: t(65536, 512), index: { shape: [8192], ints: 65536 }, src: t(8192, 512) } },
  { op: 'scatterAddRows', name: '8192 of 65536 x 512', inputs: { x: t(65536, 512), index: { shape: [8192], ints: 65536 }, src: t(8192, 512) } },
  { op: 'gatherRows', name: '65536 of 92553 x 512', inputs: { x: t(92553, 512), index: { shape: [65536], ints: 92553 } }, moves: 2 * 65536 * 512 },
  { op: 'crossEntropy', name: '1024 x 92553', inputs: { logits: t(1024, 92553), labels: { shape: [1024], ints: 92553 } } },
  { op: 'klDiv', name: '512 x 92553', inputs: { student: t(512, 92553), teacher: t(512, 92553) } },
  mse(8192),
  adamW(16),
  gradNorm(16),
  { op: 'argmax', name: '64 x 92553', inputs: { x: t(64, 92553) } },
  { op: 'sample', name: '16 x 92553, top-k 50, top-p 0.9', inputs: { logits: t(16, 92553) }, attrs: { temperature: 0.8, topK: 50, topP: 0.9 } },
];

const lengths = [2048, 8192, 32768, 103424];
const together = (c: BenchCase): BenchCase => ({ ...c, together: true });

/** The shapes of the mmMamba-2.7B model and its peers, up to a context of 103,424 tokens, and what bounds them. For GPUs. */
const large: BenchCase[] = [
  { op: 'copy', name: '2^30 elements', inputs: { x: t(1 << 30) } },
  ...[[8192, 8192, 8192], [8192, 2048, 6160], [8192, 2048, 8192], [8192, 8192, 2048], [1, 2048, 8192], [1, 2048, 92553]].map(([m, k, n]) => linear(m!, k!, n!)),
  ...lengths.flatMap((L) => [attention(1, L, L, 16, 8, 128, true), attention(1, L, L, 16, 16, 128, true)]),
  ...lengths.slice(1).flatMap((keys) => [decode(keys, 16, 8, 128), decode(keys, 16, 16, 128)]),
  ...lengths.flatMap((L) => [ssd(1, L, 16, 128, 128, 16), ssd(1, L, 16, 128, 128, 8), ssd(1, L, 80, 64, 128, 1)]).map(together),
  ...lengths.flatMap((L) => ['linearAttention', 'simpleGla', 'gla'].map((op) => linearFamily(op, 1, L, 16, 128, 128))).map(together),
  ...[1, 8].flatMap((B) => lengths.slice(0, 3).map((L) => scan(B, 4096, L, 16))),
  ...[1, 8, 64].flatMap((B) => [stateUpdate(B, 16, 128, 128, 16), stateUpdate(B, 16, 128, 128, 8)]),
  ...[8192, 103424].flatMap((L) => [2, 4].flatMap((W) => [conv(4096, L, W, true), conv(4096, L, W, false)])),
  ...[1, 8, 64].flatMap((B) => [convUpdate(B, 4096, 2), convUpdate(B, 4096, 4)]),
  ...lengths.slice(1).flatMap((rows) => [norm(rows), gatedNorm(rows), layerNorm(rows), rope(rows), mse(rows)]),
  swiglu(103424),
  unaryOp('gelu', 103424, 4096),
  add(1024),
  adamW(128),
  gradNorm(512),
];

export const benchCases = { usual, large };
export type Shapes = keyof typeof benchCases;
