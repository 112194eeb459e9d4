// gla on Hopper (bf16, K and V from 40 to 128, no packed sequences): the chunk engine (chunk_scan.cuh) with wgmma.
//
// A decay per channel splits between the factors of a product, exp(c_t - c_s) = exp(c_t - c_T) exp(c_T - c_s), c the sum of the
// log-decays since the chunk's start and T its last step. So with
//
//   q' = scale q exp(c - c_T)    k' = k exp(c_T - c)    S' = exp(c_T) S
//
// a chunk is one of plain linear attention: y = tril(q' k'^T) v + q' S', S_out = S' + k'^T v. The first factor grows as far as a chunk
// decays; bf16 has the exponents of f32, the products lose no accuracy and what lies above the diagonal is thrown away, so this holds for
// decays down to 2^-90 over the 64 steps of a chunk. In a chunk of a head that decays further than that in any channel, the products
// of queries and keys of the same chunk are summed in f32 on the CUDA cores, with exp(c_t - c_s) for each pair and channel; queries then
// take the state as it is, with exp(c_t).
//
// Forward: what the segments add to the state, then the outputs. Backward: the first of these for the state and its gradient at once,
// leaving decayed keys; the states before all chunks; then a walk backwards with the gradient of the state in registers. Elementwise work
// stands between a chunk's arrival and its products, the next chunks arrive meanwhile; a producer warp would have nothing to hide.
//
// H100, B1 H16 K = V = 128, gates f32, forward / backward: 1.40 / 3.78 ms at L = 103424, 0.15 / 0.36 at L = 8192; by kernel at L = 103424
// 0.50, 0.90 / 1.02, 0.62, 2.14, which is 2.8 to 3 TB/s of the chip's 3 but for the last, 2.6. With every chunk beyond the split, at
// L = 32768, 0.92 / 2.8 instead of 0.47 / 1.24. By halving on mma.sync (chunk_scan_mma_channel.cuh): 2.70 / 7.53 and 0.31 / 0.77.
// K = V = 64, padded with zeros, at L = 32768: 0.37 / 0.91, by halving 0.44 / 1.21.
// Gradients of all chunks in parallel, from states and their gradients in memory: 4.88 ms backward at 2.9 TB/s.
#pragma once
#include "cuda/chunk_scan_mma_walk.cuh"
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"
#include "cuda/half_math.cuh"

namespace mm::cuda::gla {

using chunk_scan::Gradient;
using chunk_scan::Operand;
using chunk_scan::Scan;
using chunk_scan::unpack2;

constexpr int kSteps = 64, kWidth = 128, kThreads = 256;  // of a chunk; channels of keys and of values; of a block, two warpgroups
constexpr float kLeastGate = -40.f;   // a step's log-decay counts as at least that: 4e-18
constexpr float kLeastTotal = -90.f;  // log2 of the decay of a chunk, for the split above

using Rows = SlabTile<kSteps, kWidth>;    // 64 steps of q, k, v or dO
using State = SlabTile<kWidth, kWidth>;   // transposed: (value channel, key channel)
using Square = SlabTile<kSteps, kSteps>;  // 64 x 64 steps

// Elementwise work on a chunk: a thread has the steps 8 warp .. 8 warp + 7 of the four channels from 4 lane.
constexpr int kOwnSteps = 8, kOwnChannels = 4;
__device__ __forceinline__ int ownStep() { return threadIdx.x / 32 * kOwnSteps; }
__device__ __forceinline__ int ownChannel() { return threadIdx.x % 32 * kOwnChannels; }

using Own = float[kOwnSteps][kOwnChannels];

template <class G>
struct RawGates;
template <>
struct RawGates<float> {
  using Piece = float4;
  Piece v[kOwnSteps];
  __device__ __forceinline__ float at(int r, int c) const { return c == 0 ? v[r].x : c == 1 ? v[r].y : c == 2 ? v[r].z : v[r].w; }
};
template <>
struct RawGates<bf16> {
  using Piece = uint2;
  Piece v[kOwnSteps];
  __device__ __forceinline__ float at(int r, int c) const {
    const float2 x = unpack2<bf16>(c < 2 ? v[r].x : v[r].y);
    return c % 2 ? x.y : x.x;
  }
};

// Of the chunk from `start`, the thread's first channel of its first step, and how many of its steps there are.
template <class T>
__device__ __forceinline__ T* ownRows(const Operand& o, int batch, int64_t start, int head) {
  return o.at<T>(batch, start + ownStep(), head) + ownChannel();
}
__device__ __forceinline__ int ownCount(const Scan& s, int64_t start) {
  const int64_t left = s.length - start;
  return ownChannel() >= s.n ? 0 : int(left < kSteps ? left : kSteps) - ownStep();
}

// Log-decays of the thread's steps of the chunk from `start`; zero outside.
template <class G>
__device__ __forceinline__ void loadGates(RawGates<G>& raw, const Scan& s, int batch, int64_t start, int head) {
  const G* from = ownRows<const G>(s.gate, batch, start, head);
  const int count = ownCount(s, start);
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++, from += s.gate.time) {
    raw.v[r] = {};
    if (r < count) raw.v[r] = *reinterpret_cast<const typename RawGates<G>::Piece*>(from);
  }
}
// Brings them to the L2 cache, where registers are too few to load them early.
template <class G>
__device__ __forceinline__ void prefetchGates(const Scan& s, int batch, int64_t start, int head) {
  const G* from = ownRows<const G>(s.gate, batch, start, head);
  const int count = ownChannel() % (128 / sizeof(G)) ? 0 : ownCount(s, start);
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++, from += s.gate.time)
    if (r < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// c = log2 of the decays from the chunk's start to the thread's steps, those included; `before`: to the first of them.
template <class G>
__device__ __forceinline__ void sumGates(Own& c, const float (&before)[kOwnChannels], const RawGates<G>& raw) {
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) {
      const float x = raw.at(r, j);
      c[r][j] = fmaf(x < kLeastGate ? kLeastGate : x, kLog2e, r ? c[r - 1][j] : before[j]);
    }
}
// The same with what is before, and the total over the chunk. parts (8, 128) is free again behind the next barrier; one goes within.
template <class G>
__device__ __forceinline__ void accumulate(Own& c, float (&before)[kOwnChannels], float (&total)[kOwnChannels], const RawGates<G>& raw,
                                           float* parts) {
#pragma unroll
  for (int j = 0; j < kOwnChannels; j++) before[j] = 0.f;
  sumGates(c, before, raw);
  float4* mine = reinterpret_cast<float4*>(parts) + threadIdx.x % 32;
  const float(&last)[kOwnChannels] = c[kOwnSteps - 1];
  mine[threadIdx.x / 32 * 32] = {last[0], last[1], last[2], last[3]};
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kOwnChannels; j++) total[j] = 0.f;
#pragma unroll
  for (int w = 0; w < kThreads / 32; w++) {
    const float4 x = mine[w * 32];
    const float sums[kOwnChannels] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) {
      if (w == threadIdx.x / 32) before[j] = total[j];
      total[j] += sums[j];
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) c[r][j] += before[j];
}
// The same for all warps, which have all channels.
__device__ __forceinline__ bool beyondSplit(const float (&total)[kOwnChannels]) {
  bool beyond = false;
#pragma unroll
  for (int j = 0; j < kOwnChannels; j++) beyond |= fabsf(total[j]) > -kLeastTotal;
  return __any_sync(0xffffffffu, beyond);
}

// The thread's four channels of its r-th step, in a tile of rows.
__device__ __forceinline__ uint2* ownPiece(char* tile, int r) {
  const int lane = threadIdx.x % 32;
  return reinterpret_cast<uint2*>(tile + Rows::offset(ownStep() + r, lane / 2) + lane % 2 * 8);
}
__device__ __forceinline__ void unpack4(float (&x)[kOwnChannels], uint2 v) {
  const float2 a = unpack2<bf16>(v.x), b = unpack2<bf16>(v.y);
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
}
__device__ __forceinline__ uint2 pack4(const float (&x)[kOwnChannels]) { return {pack2<bf16>(x[0], x[1]), pack2<bf16>(x[2], x[3])}; }
// Multiplies the thread's elements of a tile by factor(r, channel).
template <class F>
__device__ __forceinline__ void scaleOwn(char* tile, F&& factor) {
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++) {
    uint2* at = ownPiece(tile, r);
    float x[kOwnChannels];
    unpack4(x, *at);
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) x[j] *= factor(r, j);
    *at = pack4(x);
  }
}

// Four channels of a row of a tile, from 4 piece.
__device__ __forceinline__ void readPiece(float (&x)[4], const char* tile, int row, int piece) {
  unpack4(x, *reinterpret_cast<const uint2*>(tile + Rows::offset(row, piece / 2) + piece % 2 * 8));
}
__device__ __forceinline__ void readPiece(float (&x)[4], const float* c, int row, int piece) {
  *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(c + row * kWidth + piece * 4);
}

// tril(q k^T exp(c_t - c_s)) scale into the square tile, for decays beyond the split, with c (64, 128) in shared memory and q and k as they
// came. By tiles of 4 x 4 steps, two threads each; below the diagonal decays split at the first step of the queries. A tile on the
// diagonal has 16 threads.
__device__ __forceinline__ void sumScores(char* square, const float* c, const char* q, const char* k, float scale) {
  const auto store = [&](int t, int column, const float (&x)[4]) {  // columns from 4 column
    *reinterpret_cast<uint2*>(square + Square::offset(t, column / 2) + column % 2 * 8) = pack4(x);
  };
  {
    constexpr int kTiles = 16 * 15 / 2;
    const int id = threadIdx.x / 2, half = threadIdx.x % 2;
    int i = 1, j = id;
    while (j >= i && i < 16) j -= i++;
    const bool works = id < kTiles;
    float acc[4][4] = {};
#pragma unroll 1
    for (int step = 0; step < 16; step++) {
      if (!works) break;
      const int piece = half * 16 + (step + id + 4 * half) % 16;  // threads side by side read different banks
      float first[4], queries[4][4], x[4];
      readPiece(first, c, 4 * i, piece);
#pragma unroll
      for (int a = 0; a < 4; a++) {
        readPiece(queries[a], q, 4 * i + a, piece);
        if (!a) continue;
        readPiece(x, c, 4 * i + a, piece);
#pragma unroll
        for (int e = 0; e < 4; e++) queries[a][e] *= exp2Approximate(x[e] - first[e]);
      }
#pragma unroll
      for (int b = 0; b < 4; b++) {
        float key[4];
        readPiece(key, k, 4 * j + b, piece);
        readPiece(x, c, 4 * j + b, piece);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          key[e] *= exp2Approximate(first[e] - x[e]);
#pragma unroll
          for (int a = 0; a < 4; a++) acc[a][b] = fmaf(queries[a][e], key[e], acc[a][b]);
        }
      }
    }
    const float zeros[4] = {};
#pragma unroll
    for (int a = 0; a < 4; a++) {
#pragma unroll
      for (int b = 0; b < 4; b++) acc[a][b] = (acc[a][b] + __shfl_xor_sync(0xffffffffu, acc[a][b], 1)) * scale;
      if (works && half) store(4 * i + a, j, acc[a]);
      else if (works) store(4 * j + a, i, zeros);
    }
  }
  const int i = threadIdx.x / 16, part = threadIdx.x % 16;
  float acc[4][4] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int piece = part + 16 * h;
    float ck[4][4], key[4][4], query[4];
#pragma unroll
    for (int a = 0; a < 4; a++) {
      readPiece(ck[a], c, 4 * i + a, piece), readPiece(key[a], k, 4 * i + a, piece), readPiece(query, q, 4 * i + a, piece);
#pragma unroll
      for (int b = 0; b <= a; b++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[a][b] = fmaf(query[e] * key[b][e], b < a ? exp2Approximate(ck[a][e] - ck[b][e]) : 1.f, acc[a][b]);
    }
  }
#pragma unroll
  for (int a = 0; a < 4; a++) {
#pragma unroll
    for (int b = 0; b <= a; b++) {
#pragma unroll
      for (int d = 1; d < 16; d *= 2) acc[a][b] += __shfl_xor_sync(0xffffffffu, acc[a][b], d);
      acc[a][b] *= scale;
    }
    if (part == 0) store(4 * i + a, i, acc[a]);
  }
}

// A warpgroup's 64 x N accumulator of scores, queries by keys from `column`, rounded into a square tile with zeros above the diagonal.
template <int R>
__device__ __forceinline__ void storeTriangle(char* square, const float (&d)[R], int column) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < R / 4; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int t = row + 8 * half, u = column + 8 * j + pair;
      const float x = u <= t ? d[4 * j + 2 * half] : 0.f, y = u + 1 <= t ? d[4 * j + 2 * half + 1] : 0.f;
      *reinterpret_cast<uint32_t*>(square + Square::offset(t, column / 8 + j) + pair * 2) = pack2<bf16>(x, y);
    }
}

// How the sequences are walked: in segments of so many chunks.
struct Walk {
  int chunks = 0, segment = 0, segments = 0;  // chunks of a sequence, of a segment; segments of a sequence
  // (segments, heads, 128, 128) f32: what a segment adds, or once `passed` the states before (behind) it; null: one segment
  float *states = nullptr, *gradients = nullptr;
  float* totals = nullptr;  // (segments, heads, K): decays of the segments
  bool passed = false;
};
// The segment of this block, with the heads innermost.
struct Segment {
  int head, batch, number, first, count;  // its first chunk, and how many
  int64_t slot;
  __device__ __forceinline__ Segment(const Scan& s, const Walk& walk) {
    head = int(blockIdx.x % s.heads), slot = blockIdx.x / s.heads;
    number = int(slot % walk.segments), batch = int(slot / walk.segments);
    first = number * walk.segment, count = min(walk.segment, walk.chunks - first);
  }
};
// The state of a walk, transposed: a warpgroup has 64 value channels of all key channels, its warps 16 each.
using StateTile = float[kWidth / 8][4];
__device__ __forceinline__ float (&asProduct(StateTile& state))[kWidth / 2] { return reinterpret_cast<float(&)[kWidth / 2]>(state); }
__device__ __forceinline__ int stateRow() { return threadIdx.x / 32 * 16; }
// Over segment `number` of the same sequence and head: state = decay state + what the segment adds.
__device__ __forceinline__ void addSegment(StateTile& state, const Scan& s, const Walk& walk, const Segment& at, float* states,
                                           int number) {
  const int64_t index = (at.slot + number - at.number) * s.heads + at.head;
#pragma unroll
  for (int j = 0; j < kWidth / 8; j++) {
    const int n = 8 * j + threadIdx.x % 4 * 2;
    const float2 decay = n < s.n ? *reinterpret_cast<const float2*>(walk.totals + index * s.n + n) : float2{};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float2 x = *chunk_scan::tiledPair<kWidth>(states + index * (kWidth * kWidth), stateRow(), j, h);
      state[j][2 * h] = fmaf(decay.x, state[j][2 * h], x.x), state[j][2 * h + 1] = fmaf(decay.y, state[j][2 * h + 1], x.y);
    }
  }
}
// The state before a segment or (BACKWARDS) its gradient behind it. `ends`: that of the call, null for zero.
template <bool BACKWARDS>
__device__ __forceinline__ void readFirst(StateTile& state, const Scan& s, const Walk& walk, const Segment& at, const float* ends) {
  float* const states = BACKWARDS ? walk.gradients : walk.states;
#pragma unroll
  for (int j = 0; j < kWidth / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) state[j][i] = 0.f;
  if (states && walk.passed) {
    chunk_scan::readTiled<kWidth>(state, states + (at.slot * s.heads + at.head) * (kWidth * kWidth), stateRow());
    return;
  }
  const int64_t pair = int64_t(at.batch) * s.heads + at.head;
  if (ends) chunk_scan::readState<kWidth>(state, s, ends + pair * s.stateSize(), stateRow(), s.p);
  if (!states) return;
  const int others = BACKWARDS ? walk.segments - 1 - at.number : at.number;
#pragma unroll 1
  for (int i = 0; i < others; i++) addSegment(state, s, walk, at, states, BACKWARDS ? walk.segments - 1 - i : i);
}
__device__ __forceinline__ void decayState(StateTile& state, const float* decay) {
#pragma unroll
  for (int j = 0; j < kWidth / 8; j++) {
    const float2 x = *reinterpret_cast<const float2*>(decay + 8 * j + threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) state[j][i] *= i % 2 ? x.y : x.x;
  }
}
// state += v^T k over the steps of a chunk, to be waited for.
__device__ __forceinline__ void issueAdvance(StateTile& state, uint32_t values, uint32_t keys) {
  const uint64_t v = tileDescriptor(values + threadIdx.x / 128 * Rows::slabBytes), k = tileDescriptor(keys, Rows::slabBytes);
#pragma unroll
  for (int i = 0; i < kSteps / 16; i++)
    multiply<bf16, true, true>(asProduct(state), shifted(v, Rows::rowOffset(16 * i)), shifted(k, Rows::rowOffset(16 * i)), true);
  commitProducts();
}

inline MMTensorView viewOf(const Operand& o, const Scan& s, int heads, int width) {
  MMTensorView v{};
  v.data = o.data, v.dtype = o.dtype, v.ndim = 4;
  v.shape[0] = s.batch, v.shape[1] = s.length, v.shape[2] = heads, v.shape[3] = width;
  v.stride[0] = o.batch, v.stride[1] = o.time, v.stride[2] = o.head, v.stride[3] = 1;
  return v;
}

}  // namespace mm::cuda::gla
