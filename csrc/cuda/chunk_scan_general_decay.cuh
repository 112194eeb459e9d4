// The general chunk engine with a decay per channel: its factors within a chunk, and the triangle of a slice of channels.
#pragma once
#include "cuda/chunk_scan_general_tiles.cuh"

namespace mm::cuda::chunk_scan {

// ---- decay per channel: factors of a slice of C channels. Thread (n, sub) has channel n of one sub-chunk.
//
// Loops over a sub-chunk count from 0 to kSub and are unrolled. Written as t = sub * kSub; t < (sub + 1) * kSub, ptxas 13.0 (sm_90a)
// made 16 rounds of some, and then a loop of 21 more that it enters without asking whether any is left.

template <int R>
struct ChannelThread {
  int n = threadIdx.x % (16 * R), sub = threadIdx.x / (16 * R);
  __device__ bool works() const { return sub < R; }
};

// eg[t][n] = exp(gk), 1 behind the end; total[sub][n] = decay of a sub-chunk, (R, C). Ends with a barrier.
template <int R, class T>
__device__ __forceinline__ void loadDecay(float* eg, float* total, const Scan& s, const Place& at, int head, int n0) {
  constexpr int C = 16 * R;
  const int col = threadIdx.x % C;
#pragma unroll 8
  for (int i = 0; i < C * C / kGeneralThreads; i++) {
    const int row = threadIdx.x / C + i * (kGeneralThreads / C);
    float v = 1.f;
    if (row < at.length && n0 + col < s.n) {
      const int64_t t = at.start + row;
      v = expf(s.gate.dtype == MM_F32 ? s.gate.at<const float>(at.batch, t, head)[n0 + col]
                                      : toFloat(s.gate.at<const T>(at.batch, t, head)[n0 + col]));
    }
    eg[row * kPitch<R> + col] = v;
  }
  __syncthreads();
  const ChannelThread<R> me;
  if (me.works()) {
    const float* steps = eg + me.sub * kSub * kPitch<R> + me.n;
    float run = 1.f;
#pragma unroll
    for (int t = 0; t < kSub; t++) run *= steps[t * kPitch<R>];
    total[me.sub * C + me.n] = run;
  }
  __syncthreads();
}

enum class From { Chunk, Sub };  // what a factor is counted from: the ends of the chunk or those of the sub-chunk

// f(t, prod of e^g from the start to t) for the steps of this thread
template <int R, From FROM, class F>
__device__ __forceinline__ void forUp(const float* eg, const float* total, F&& f) {
  const ChannelThread<R> me;
  if (!me.works()) return;
  float run = 1.f;
  if (FROM == From::Chunk)
    for (int m = 0; m < me.sub; m++) run *= total[m * 16 * R + me.n];
  int at = me.sub * kSub * kPitch<R> + me.n;
#pragma unroll
  for (int m = 0; m < kSub; m++, at += kPitch<R>) {
    run *= eg[at];
    f(at, run);
  }
}
// f(s, prod of e^g behind s up to the end)
template <int R, From FROM, class F>
__device__ __forceinline__ void forDown(const float* eg, const float* total, F&& f) {
  const ChannelThread<R> me;
  if (!me.works()) return;
  float run = 1.f;
  if (FROM == From::Chunk)
    for (int m = R - 1; m > me.sub; m--) run *= total[m * 16 * R + me.n];
  int at = ((me.sub + 1) * kSub - 1) * kPitch<R> + me.n;
#pragma unroll
  for (int m = 0; m < kSub; m++, at -= kPitch<R>) {
    f(at, run);
    run *= eg[at];
  }
}

// att += the decayed triangle of one slice of channels; q and k are left decayed within their sub-chunks. `off` keeps the
// blocks below the diagonal across slices, att the blocks on it.
template <int R>
__device__ __forceinline__ void channelScores(float* att, float (&off)[R][R], float* q, float* k, const float* eg,
                                              const float* total, int channels, bool firstSlice) {
  // on the diagonal: thread (u, lane) takes key u of a sub-chunk and every 16th channel
  const int u = threadIdx.x / 16, lane = threadIdx.x % 16;
#pragma unroll 1
  for (int sub = 0; sub < R; sub++) {
    float acc[kSub] = {};
    for (int n = lane; n < channels; n += 16) {
      const float key = k[(sub * kSub + u) * kPitch<R> + n];
      float x = 0.f;
#pragma unroll
      for (int t = 0; t < kSub; t++) {
        const int at = (sub * kSub + t) * kPitch<R> + n;
        x = t > u ? x * eg[at] : t == u ? key : 0.f;
        acc[t] = fmaf(q[at], x, acc[t]);
      }
    }
    // lane t gets the sum over the lanes of acc[t]: halves are exchanged. All indices of acc must be known when compiled, also of what
    // is chosen between, or it lies in memory.
#pragma unroll
    for (int d = kSub / 2; d > 0; d /= 2)
#pragma unroll
      for (int t = 0; t < kSub / 2; t++) {
        if (t >= d) continue;
        const bool upper = lane & d;
        const float low = acc[t], high = acc[t + d];
        acc[t] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, d);
      }
    float* to = att + (sub * kSub + lane) * kPitch<R> + sub * kSub + u;
    *to = firstSlice ? acc[0] : *to + acc[0];
  }
  __syncthreads();
  forUp<R, From::Sub>(eg, total, [&](int at, float f) { q[at] *= f; });
  forDown<R, From::Sub>(eg, total, [&](int at, float f) { k[at] *= f; });
  __syncthreads();
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  for (int n = 0; n < channels; n++) {
    float x[R];
#pragma unroll
    for (int c = 0; c < R - 1; c++) x[c] = k[(tx + 16 * c) * kPitch<R> + n];
#pragma unroll
    for (int r = 1; r < R; r++) {
      const float y = q[(ty + 16 * r) * kPitch<R> + n], passed = total[r * 16 * R + n];
#pragma unroll
      for (int c = 0; c < r; c++) {
        off[r][c] = fmaf(y, x[c], off[r][c]);
        x[c] *= passed;
      }
    }
  }
}

}  // namespace mm::cuda::chunk_scan
