// Kernels beside cuBLASLt: the epilogues that it lacks, and the product of one row with a matrix.
#pragma once
#include "cuda/common/reduce.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/gemm.h"
#include "cuda/kernel.cuh"

namespace mm::cuda {

// act(z), or its derivative
template <bool gradient>
__device__ __forceinline__ float activated(Activation f, float z) {
  switch (f) {
    case Activation::Gelu: {
      const float cdf = 0.5f * (1.f + erff(z * 0.70710678f));
      return gradient ? cdf + z * 0.39894228f * expf(-0.5f * z * z) : z * cdf;
    }
    case Activation::Silu: {
      const float s = 1.f / (1.f + expf(-z));
      return gradient ? s * (1.f + z * (1.f - s)) : z * s;
    }
    default: return gradient ? 1.f : z;
  }
}

// What is applied to each element of a product.
struct Epilogue {
  const void* bias = nullptr;  // (n)
  int32_t biasDtype = MM_F32;
  Activation activation = Activation::None;
  bool gradient = false;
  const void* other = nullptr;
};

__device__ __forceinline__ float loadAs(const void* p, int32_t dtype, int64_t i) {
  if (dtype == MM_BF16) return toFloat(static_cast<const bf16*>(p)[i]);
  if (dtype == MM_F16) return toFloat(static_cast<const f16*>(p)[i]);
  return static_cast<const float*>(p)[i];
}

template <class T>
__device__ __forceinline__ float finished(const Epilogue& e, float z, int64_t column, int64_t at) {
  if (e.bias) z += loadAs(e.bias, e.biasDtype, column);
  const float other = e.other ? toFloat(static_cast<const T*>(e.other)[at]) : 0.f;
  return e.gradient ? activated<true>(e.activation, z) * other : activated<false>(e.activation, z) + other;
}

// z (m, n) f32 -> y (m, n), dense
template <class T>
__global__ void epilogueKernel(const float* z, T* y, int64_t count, int64_t n, Epilogue e) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) y[i] = fromFloat<T>(finished<T>(e, z[i], i % n, i));
}

// y (n) = act(W (n, k) x (k) + b) + r: S of the block's four warps share a row of W, 16 bytes a lane, U loads of W under way. Their
// sums are added in order. The first `early` blocks ask for their first loads of W while the kernel before ends. With two of them a
// multiprocessor, on an H100, k x n: 2048 x 2048 in 4.0 us instead of 4.4, 4096 x 2048 6.6 instead of 7.0, 2048 x 8192 12.3 as without;
// with 16: 4.2, 7.0, 12.8.
template <class T, class Y, int S, int U = 8>
__global__ void __launch_bounds__(128) gemvKernel(const T* __restrict__ x, const T* __restrict__ w, Y* __restrict__ y, int64_t n, int64_t k,
                                                  int64_t ld, Epilogue e, unsigned early) {
  constexpr int V = kVector<T>, STEP = S * 32 * V;
  __shared__ float sums[4];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = int64_t(blockIdx.x) * (4 / S) + warp / S;
  const T* wr = w + row * ld;
  if (row >= n) k = 0;
  const int64_t first = (warp % S * 32 + lane) * V;
  if (blockIdx.x < early && lane % 8 == 0)
#pragma unroll
    for (int u = 0; u < U; u++)
      if (first + u * STEP < k) prefetchLine(wr + first + u * STEP);
  awaitEarlierKernels();
  float sum = 0.f;
  for (int64_t j = first; j < k; j += U * STEP) {
    Words<T> a[U], b[U];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (j + u * STEP < k) a[u] = loadWords(wr + j + u * STEP);
#pragma unroll
    for (int u = 0; u < U; u++)
      if (j + u * STEP < k) b[u] = loadWords(x + j + u * STEP);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (j + u * STEP >= k) break;
      float p[V], q[V];
      unpack(a[u], p);
      unpack(b[u], q);
#pragma unroll
      for (int i = 0; i < V; i++) sum = fmaf(p[i], q[i], sum);
    }
  }
  sum = warpReduce(sum);
  if (S > 1) {
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (warp % S) return;
    for (int i = 1; i < S; i++) sum += sums[warp + i];
  }
  if (lane == 0 && row < n) y[row] = fromFloat<Y>(finished<Y>(e, sum, row, row));
}

}  // namespace mm::cuda
