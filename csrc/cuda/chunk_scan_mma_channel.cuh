// The tensor-core chunk engine with a decay per channel (gla). Its walks (chunk_scan_mma.cuh) take q and k decayed to the ends of
// the chunks, and the triangle ready made; the gradients of a chunk are one kernel.
//
// A decay per channel cannot be split off a product as a mask, but it can be split between its factors wherever there is a step that
// lies between all t and all s: exp(c_t - c_s) = exp(c_t - c_m) exp(c_m - c_s), both at most 1 for s <= m <= t. So the triangle is
// halved: for blocks of h = 1, 2, 4, .. 32 steps the tile W has q_t exp(c_t - c_m) in the rows of every second block and
// k_s exp(c_m - c_s) in those of every first one, m the step between the two, and the pairs (second, first) of W W^T are that part of
// the triangle. With M the same pairs of R, (M + M^T) W gives dq in the second and dk in the first rows, but for the factors of W.
//
// The factors are products of exp(g): no sum of log-decays is ever exponentiated, nothing is divided and nothing can overflow,
// however strong the decays are. Up to h = 8 W lives in the registers of the warp that has the 16 steps: an A fragment of W is its own
// B fragment. A doubling costs an element one shuffle and three products. Blocks of 16 and 32 steps go through shared memory.
//
// What each pair of steps adds to the gradient of the log-decays it crosses is formed from the rounded W on both sides, so that
// it cancels behind the pair as it should: a sum of crossings is not a difference of roundings.
//
// On an H100, B1 H16 N = P = 128 bf16, forward / backward: 2.70 / 7.53 ms at L = 103424, 0.32 / 0.78 ms at L = 8192 (fla 5.99 / 23.7 ms at
// L = 103424). Before, with triangle and key gradients as sums on the CUDA cores in f32: 6.00 / 15.3 and 0.59 / 1.43 ms. Halving takes 90
// instructions an element of q forward and 300 backward, loads, stores and the products with the states included; the mma among them,
// 320 for a triangle of N = 128, are few.
#pragma once
#include "cuda/chunk_scan_mma_tiles.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kSubSteps = 16, kSubs = kChunk / kSubSteps;

// The factors of 16 steps, which a warp has: its rows are lane / 4 and 8 more, and C channels a lane. For blocks of h steps, `up` is
// the decay from the start of a row's block to the row, `down` from behind the row to the block's end.
template <int C>
struct Halves {
  float up[2][C], down[2][C];

  __device__ __forceinline__ explicit Halves(const float (&decay)[2][C]) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int c = 0; c < C; c++) up[r][c] = decay[r][c], down[r][c] = 1.f;
  }
  // Whether a row is in a second block of H steps.
  template <int H>
  __device__ __forceinline__ static bool second(int row) {
    return H < 8 ? threadIdx.x % 32 / 4 & H : row;
  }
  // This lane's part of W.
  template <class T, int H>
  __device__ __forceinline__ void weigh(uint32_t (&w)[2][C / 2], const uint32_t (&q)[2][C / 2], const uint32_t (&k)[2][C / 2]) const {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int i = 0; i < C / 2; i++) {
        const float2 x = unpack2<T>(second<H>(r) ? q[r][i] : k[r][i]);
        w[r][i] = pack2<T>(x.x * factor<H>(r, 2 * i), x.y * factor<H>(r, 2 * i + 1));
      }
  }
  template <int H>
  __device__ __forceinline__ float factor(int r, int c) const {
    return second<H>(r) ? up[r][c] : down[r][c];
  }
  // From blocks of H steps to blocks of 2 H.
  template <int H>
  __device__ __forceinline__ void widen() {
#pragma unroll
    for (int c = 0; c < C; c++) {
      const float all[2] = {up[0][c] * down[0][c], up[1][c] * down[1][c]};
      float other[2] = {all[1], all[0]};
      if (H < 8)
#pragma unroll
        for (int r = 0; r < 2; r++) other[r] = __shfl_xor_sync(kAllLanes, all[r], 4 * H);
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (second<H>(r)) up[r][c] *= other[r];
        else down[r][c] *= other[r];
    }
  }
};

template <class T>
__device__ __forceinline__ uint32_t scaled2(uint32_t x, float a, float b) {
  const float2 v = unpack2<T>(x);
  return pack2<T>(v.x * a, v.y * b);
}

}  // namespace mm::cuda::chunk_scan
