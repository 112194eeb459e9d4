// gla on Hopper (bf16, K and V from 72 to 128, no packed sequences): the chunk engine (chunk_scan.cuh) with wgmma.
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
// Three walks, all bound by memory. Forward: what the segments add, a scan over the segments (chunk_scan.cu), then the outputs. Backward:
// the first of these for the state and its gradient, leaving decayed keys and queries; the states before and behind all chunks; then
// the gradients, all chunks in parallel. Elementwise work stands between a chunk's arrival and its products, the next chunks arrive
// meanwhile; a producer warp would have nothing to hide.
//
// H100, B1 H16 K = V = 128, gates f32, forward / backward: 1.42 / 4.88 ms at L = 103424 (2.9 TB/s of 3.0; the kernels in order 0.50, 0.01,
// 0.91 / 1.43, 0.03, 1.21, 2.21), 0.15 / 0.47 at L = 8192. By halving on mma.sync (chunk_scan_mma_channel.cuh): 2.70 / 7.53 and 0.31 / 0.77.
#pragma once
#include "cuda/chunk_scan_mma_walk.cuh"
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"

namespace mm::cuda::gla {

using chunk_scan::Gradient;
using chunk_scan::Operand;
using chunk_scan::Scan;
using chunk_scan::unpack2;

constexpr int kSteps = 64, kWidth = 128, kThreads = 256;  // of a chunk; channels of keys and of values; of a block, two warpgroups
constexpr float kLog2e = 1.44269504f;
constexpr float kLeastGate = -40.f;   // a step's log-decay counts as at least that: 4e-18
constexpr float kLeastTotal = -90.f;  // log2 of the decay of a chunk, for the split above

using Rows = SlabTile<kSteps, kWidth>;    // 64 steps of q, k, v or dO
using State = SlabTile<kWidth, kWidth>;   // transposed: (value channel, key channel)
using Square = SlabTile<kSteps, kSteps>;  // 64 x 64 steps

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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

// Log-decays of the thread's steps of the chunk from `start`; zero outside.
template <class G>
__device__ __forceinline__ void loadGates(RawGates<G>& raw, const Scan& s, int batch, int64_t start, int head) {
  using Piece = typename RawGates<G>::Piece;
  const int64_t left = s.length - start - ownStep();
  const G* from = s.gate.at<const G>(batch, start + ownStep(), head) + ownChannel();
  const bool hasChannels = ownChannel() < s.n;
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++) {
    raw.v[r] = {};
    if (hasChannels && r < left) raw.v[r] = *reinterpret_cast<const Piece*>(from + r * s.gate.time);
  }
}

// c = log2 of the decays from the chunk's start to the thread's steps, those included; total: over the chunk. parts (8, 128) is free again
// behind the next barrier; one goes within.
template <class G>
__device__ __forceinline__ void accumulate(Own& c, float (&total)[kOwnChannels], const RawGates<G>& raw, float* parts) {
  float run[kOwnChannels] = {}, before[kOwnChannels] = {};
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) {
      const float x = raw.at(r, j);
      c[r][j] = run[j] = fmaf(x < kLeastGate ? kLeastGate : x, kLog2e, run[j]);
    }
  float4* mine = reinterpret_cast<float4*>(parts) + threadIdx.x % 32;
  mine[threadIdx.x / 32 * 32] = {run[0], run[1], run[2], run[3]};
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
__device__ __forceinline__ bool beyondSplit(const float (&total)[kOwnChannels]) {
  bool beyond = false;
#pragma unroll
  for (int j = 0; j < kOwnChannels; j++) beyond |= fabsf(total[j]) > -kLeastTotal;
  return beyond;
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

// tril(q k^T exp(c_t - c_s)) scale into the square tile, for decays beyond the split: 4 x 4 steps a thread. c (64, 128) in shared memory, q
// and k as they came.
__device__ __forceinline__ void sumScores(char* square, const float* c, char* q, char* k, float scale) {
  const int i = threadIdx.x / 16, j = threadIdx.x % 16;
  float acc[4][4] = {};
  if (j <= i)
#pragma unroll 1
    for (int step = 0; step < kWidth / 4; step++) {
      const int piece = (step + j) % (kWidth / 4);  // threads side by side read different banks
      const auto read = [&](char* tile, int row, float (&x)[4]) {
        unpack4(x, *reinterpret_cast<const uint2*>(tile + Rows::offset(row, piece / 2) + piece % 2 * 8));
      };
      float ck[4][4], keys[4][4];
#pragma unroll
      for (int b = 0; b < 4; b++) {
        *reinterpret_cast<float4*>(ck[b]) = *reinterpret_cast<const float4*>(c + (4 * j + b) * kWidth + piece * 4);
        read(k, 4 * j + b, keys[b]);
      }
#pragma unroll
      for (int a = 0; a < 4; a++) {
        float cq[4], queries[4];
        *reinterpret_cast<float4*>(cq) = *reinterpret_cast<const float4*>(c + (4 * i + a) * kWidth + piece * 4);
        read(q, 4 * i + a, queries);
#pragma unroll
        for (int b = 0; b < 4; b++)
#pragma unroll
          for (int e = 0; e < 4; e++) acc[a][b] = fmaf(queries[e] * keys[b][e], exp2Fast(cq[e] - ck[b][e]), acc[a][b]);
      }
    }
#pragma unroll
  for (int a = 0; a < 4; a++) {
    float x[4];
#pragma unroll
    for (int b = 0; b < 4; b++) x[b] = 4 * j + b <= 4 * i + a ? acc[a][b] * scale : 0.f;
    *reinterpret_cast<uint2*>(square + Square::offset(4 * i + a, j / 2) + j % 2 * 8) = pack4(x);
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
  // (segments, heads, 128, 128) f32: what a segment adds, then the states before (behind) it; null: one segment
  float *states = nullptr, *gradients = nullptr;
  float* totals = nullptr;  // (segments, heads, K): decays of the segments
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
