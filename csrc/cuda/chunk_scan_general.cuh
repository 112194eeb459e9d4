// The chunk engine (chunk_scan.cuh has the formulas) for any shape and dtype, with f32 products on the CUDA cores.
//
// A block of 256 threads works on tiles of C x C, C = 16 R: the chunk is C steps long and key and value channels are taken in
// slices of C. R = 4 in general, R = 2 where N and P are at most 32, so that small heads do not multiply zeros. Thread
// (tx, ty) holds the elements (ty + 16 i, tx + 16 j), so that register (i, j) is one 16 x 16 block of the tile: blocks above
// the diagonal are left out at compile time, and with a decay per channel a block is a pair of sub-chunks. Tiles in shared
// memory have rows of C + 1 floats: rows and columns are both read without bank conflicts, so no operand is ever transposed.
// A kernel needs at most five tiles, 83 KB, which fits every device from sm_80 on.
//
// The chunks' states are computed in parallel, passed on in a short sequential scan and read by the chunks' outputs. Where no
// sequence is longer than a chunk, the first kernel writes the final states itself and there is no scan.
//
// A decay per channel (gla) cannot be split off the products as a mask. Within sub-chunks of 16 steps the decay is multiplied
// up step by step on k (never divided); between sub-chunks r > c the products are
// (q_t prod_{start of r..t} e^g) . (k_s prod_{s+1..end of c} e^g) prod_{c<m<r} (decay of m): all factors are at most 1.
//
// What its kernels share stands here; they are in chunk_scan_general_{forward,head,channel}.cuh.
#pragma once
#include "cuda/chunk_scan_general_decay.cuh"

namespace mm::cuda::chunk_scan {

// The decayed triangle of q and k in att (C, C); blocks above the diagonal are not written. a, b: tiles; more: for a decay per
// channel one tile and R * C floats. Begins and ends with a barrier.
template <class T, int R, Decay KIND>
__device__ __forceinline__ void scores(float* att, float* a, float* b, float* more, const Scan& s, const Place& at, int head,
                                       const Steps<16 * R>* st) {
  const int group = head / s.share();
  float raw[R][R] = {};
  for (int n0 = 0; n0 < s.n; n0 += 16 * R) {
    __syncthreads();
    loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
    loadTile<R, T>(b, s.k, at, group, n0, s.n);
    if (KIND == Decay::Channel) {
      loadDecay<R, T>(more, more + kTile<R>, s, at, head, n0);
      channelScores<R>(att, raw, a, b, more, more + kTile<R>, min(16 * R, s.n - n0), n0 == 0);
    } else {
      __syncthreads();
      productRowsRows<Part::Triangle, R>(raw, a, b, s.n - n0);
    }
  }
  forTile<R>([&](int i, int j, int t, int u) {
    if (KIND == Decay::Channel) {
      if (j < i) att[t * kPitch<R> + u] = raw[i][j];
    } else if (j <= i) att[t * kPitch<R> + u] = u <= t ? raw[i][j] * decayBetween(*st, t, u) : 0.f;
  });
  __syncthreads();
}

// ---- kernels. Blocks are numbered slot by slot, heads and then slices innermost.

struct Task {
  float *states = nullptr, *dstates = nullptr;  // (slots, heads, size) before and behind a chunk; null when `single`
  float* totals = nullptr;                      // (slots, heads), or (slots, heads, N)
  bool single = false;                          // no sequence is longer than a chunk: states are those of the call
  int valueTiles = 1;                           // slices of value channels that a block takes one after the other
};

// The state before a chunk (behind it, of the gradient), null when it is zero.
__device__ __forceinline__ const float* stateBefore(const Scan& s, const Task& task, const Place& at, int head, int64_t index) {
  if (at.first && !s.hasInitial) return nullptr;
  return task.single ? s.initial + (int64_t(at.sequence) * s.heads + head) * s.stateSize() : task.states + index * s.stateSize();
}
__device__ __forceinline__ const float* gradientBehind(const Scan& s, const Gradient& g, const Task& task, const Place& at, int head,
                                                       int64_t index) {
  if (at.last && !g.hasFinal) return nullptr;
  return task.single ? g.dFinal + (int64_t(at.sequence) * s.heads + head) * s.stateSize() : task.dstates + index * s.stateSize();
}

// dq or dk of the rows of this thread, into the gradient or into the part of its head.
template <class T, int R>
__device__ __forceinline__ void storeKeys(const float (&acc)[R][R], const Scan& s, const Gradient& g, const Place& at, int head, int n0,
                                          const Operand& result, float* heads, float factor) {
  forTile<R>([&](int i, int j, int row, int col) {
    const int n = n0 + col;
    if (row >= at.length || n >= s.n) return;
    const int64_t t = at.start + row;
    const float x = acc[i][j] * factor;
    if (g.sharers > 1) heads[((at.batch * s.length + t) * s.heads + head) * s.n + n] = x;
    else result.at<T>(at.batch, t, head)[n] = fromFloat<T>(x);
  });
}

}  // namespace mm::cuda::chunk_scan
