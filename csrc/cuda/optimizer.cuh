// adamW: p *= 1 - lr wd; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps),
// g = grad * gradScale; and gradNorm, the Euclidean norm of all gradients.
//
// Many tensors a launch: their addresses and sizes stand in the kernel's parameters, at most 4 KB, so more tensors take more
// launches. Tensors are cut into chunks, a block each; the block finds its tensor by bisection over the tensors' first blocks.
// adamW moves 28 to 34 bytes an element, with 16 bytes a load: two vectors of each operand under way a thread.
#pragma once
#include "cuda/common/rows.cuh"

namespace mm::cuda {

// The last of `count` tensors whose first block is not above `block`.
__device__ __forceinline__ int ownerOf(const uint32_t* first, int count, uint32_t block) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first[middle] <= block) low = middle;
    else high = middle;
  }
  return low;
}

template <int N>
__device__ __forceinline__ void loadAs(const void* p, int32_t dtype, int64_t j, float (&v)[N]) {
  if (dtype == MM_BF16) loadFloats<N>(static_cast<const bf16*>(p) + j, v);
  else if (dtype == MM_F16) loadFloats<N>(static_cast<const f16*>(p) + j, v);
  else loadFloats<N>(static_cast<const float*>(p) + j, v);
}
// Stores of 4 values at once are said outright, as in storeVector.
template <int N, class T>
__device__ __forceinline__ void storeOwn(T* p, const float (&v)[N]) {
  static_assert(N == 1 || N == 4);
  if constexpr (N == 1) {
    *p = fromFloat<T>(v[0]);
  } else if constexpr (std::is_same_v<T, float>) {
    storeVector(p, v);
  } else {
    const uint32_t w[2] = {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])};
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(w[0]), "r"(w[1]));
  }
}
template <int N>
__device__ __forceinline__ void storeAs(void* p, int32_t dtype, int64_t j, const float (&v)[N]) {
  if (dtype == MM_BF16) storeOwn(static_cast<bf16*>(p) + j, v);
  else if (dtype == MM_F16) storeOwn(static_cast<f16*>(p) + j, v);
  else storeOwn(static_cast<float*>(p) + j, v);
}

struct AdamFactors {
  float decay, rest1, beta2, rest2, stepSize, inverseRoot, eps;
};

constexpr int kAdamTensors = 72;
struct AdamTable {
  float* p[kAdamTensors];
  const void* g[kAdamTensors];
  float* m[kAdamTensors];
  float* v[kAdamTensors];
  void* copy[kAdamTensors];  // null without
  int64_t n[kAdamTensors];
  uint32_t first[kAdamTensors];  // block
  uint8_t gradDtype[kAdamTensors], copyDtype[kAdamTensors], wide[kAdamTensors];  // wide: all addresses suit vectors of 4
  int32_t count;
  int32_t chunk;  // elements a block, a multiple of 4
  const float* gradScale;  // null for 1
  AdamFactors factors;
};
static_assert(sizeof(AdamTable) <= 4096, "kernel parameters");

// N neighbours in U places j, j + step, ... at once
template <int N, int U>
__device__ __forceinline__ void adamStep(const AdamTable& t, int i, float scale, int64_t j, int64_t step) {
  const AdamFactors& f = t.factors;
  float p[U][N], g[U][N], m[U][N], v[U][N];
#pragma unroll
  for (int u = 0; u < U; u++) {
    loadFloats<N>(t.p[i] + j + u * step, p[u]);
    loadFloats<N>(t.m[i] + j + u * step, m[u]);
    loadFloats<N>(t.v[i] + j + u * step, v[u]);
    loadAs<N>(t.g[i], t.gradDtype[i], j + u * step, g[u]);
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      const float vg = g[u][k] * scale;
      m[u][k] += (vg - m[u][k]) * f.rest1;
      v[u][k] = v[u][k] * f.beta2 + f.rest2 * vg * vg;
      p[u][k] = p[u][k] * f.decay - f.stepSize * m[u][k] / (sqrtf(v[u][k]) * f.inverseRoot + f.eps);
    }
    storeOwn(t.p[i] + j + u * step, p[u]);
    storeOwn(t.m[i] + j + u * step, m[u]);
    storeOwn(t.v[i] + j + u * step, v[u]);
    if (t.copy[i]) storeAs<N>(t.copy[i], t.copyDtype[i], j + u * step, p[u]);
  }
}

__global__ void __launch_bounds__(256) adamWKernel(const __grid_constant__ AdamTable t) {
  const int i = ownerOf(t.first, t.count, blockIdx.x);
  const float scale = t.gradScale ? *t.gradScale : 1.f;
  const int64_t from = int64_t(blockIdx.x - t.first[i]) * t.chunk, to = from + t.chunk < t.n[i] ? from + t.chunk : t.n[i];
  int64_t j = from;
  if (t.wide[i]) {
    constexpr int kStep = 256 * 4;
    for (; j + 2 * kStep <= to; j += 2 * kStep) adamStep<4, 2>(t, i, scale, j + threadIdx.x * 4, kStep);
    for (; j + kStep <= to; j += kStep) adamStep<4, 1>(t, i, scale, j + threadIdx.x * 4, 0);
  }
  for (j += threadIdx.x; j < to; j += 256) adamStep<1, 1>(t, i, scale, j, 0);
}

constexpr int kNormTensors = 190;
struct GradTable {
  const void* g[kNormTensors];
  int64_t n[kNormTensors];
  uint32_t first[kNormTensors];
  uint8_t dtype[kNormTensors];
  int32_t count;
  int32_t chunk;
};
static_assert(sizeof(GradTable) <= 4096 - 8, "kernel parameters");

template <class T>
__device__ __forceinline__ float sumOfSquares(const T* g, int64_t n) {
  float sum = 0.f;
  walkRows<4, 1, T>({g}, nullptr, n, threadIdx.x, 256, [&](int64_t, auto& v) {
    float part = 0.f;
    for (const float a : v[0]) part = fmaf(a, a, part);
    sum += part;
  });
  return sum;
}

// partial (blocks)
__global__ void __launch_bounds__(256) gradNormKernel(const __grid_constant__ GradTable t, double* __restrict__ partial) {
  __shared__ double scratch[32];
  const int i = ownerOf(t.first, t.count, blockIdx.x);
  const int64_t from = int64_t(blockIdx.x - t.first[i]) * t.chunk, length = from + t.chunk < t.n[i] ? t.chunk : t.n[i] - from;
  float sum;
  if (t.dtype[i] == MM_BF16) sum = sumOfSquares(static_cast<const bf16*>(t.g[i]) + from, length);
  else if (t.dtype[i] == MM_F16) sum = sumOfSquares(static_cast<const f16*>(t.g[i]) + from, length);
  else sum = sumOfSquares(static_cast<const float*>(t.g[i]) + from, length);
  const double total = blockSum(double(sum), scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block of 1024.
__global__ void __launch_bounds__(1024) gradNormFinishKernel(const double* __restrict__ partial, int64_t parts, double limit,
    float* __restrict__ norm, float* __restrict__ scale) {
  __shared__ double scratch[32];
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) sum += partial[i];
  sum = sqrt(blockSum(sum, scratch));
  if (threadIdx.x != 0) return;
  const double factor = limit > 0 ? limit / (sum + 1e-6) : 1.;
  *norm = float(sum);
  *scale = float(factor > 1. ? 1. : factor);
}

}  // namespace mm::cuda
