// Reductions of a warp and of a block; every thread gets the result, and the order of the additions is fixed.
#pragma once
#include <cstdint>

namespace mm::cuda {

struct Add {
  static constexpr float identity = 0.f;
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  static constexpr float identity = -INFINITY;
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class Op = Add>
__device__ __forceinline__ float warpReduce(float v, Op op = {}) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// For blocks of whole warps, one-dimensional. `scratch`: 32 floats of shared memory, free again after the call.
template <class Op = Add>
__device__ __forceinline__ float blockReduce(float v, float* scratch, Op op = {}) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  v = warpReduce(v, op);
  if (warps == 1) return v;
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = warpReduce(lane < warps ? scratch[lane] : Op::identity, op);
  __syncthreads();
  return v;
}

}  // namespace mm::cuda
