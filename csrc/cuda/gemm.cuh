// Kernels beside cuBLASLt: the epilogues that it lacks, and the product of one row with a matrix.
#pragma once
#include "cuda/common/reduce.cuh"
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

// y (n) = act(W (n, k) x (k) + b) + r: a warp a row of W, 16 bytes a lane, four loads in flight.
template <class T, class Y>
__global__ void __launch_bounds__(128) gemvKernel(const T* __restrict__ x, const T* __restrict__ w, Y* __restrict__ y, int64_t n, int64_t k, int64_t ld, Epilogue e) {
  constexpr int V = kVector<T>;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= n) return;
  const T* wr = w + row * ld;
  float sum = 0.f;
#pragma unroll 4
  for (int64_t j = lane * V; j < k; j += 32 * V) {
    float a[V], b[V];
    loadFloats<V>(wr + j, a);
    loadFloats<V>(x + j, b);
#pragma unroll
    for (int i = 0; i < V; i++) sum = fmaf(a[i], b[i], sum);
  }
  sum = warpReduce(sum);
  if (lane == 0) y[row] = fromFloat<Y>(finished<Y>(e, sum, row, row));
}

}  // namespace mm::cuda
