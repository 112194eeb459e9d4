// Storage types and their conversion to and from float, one value or one vector of up to 16 bytes at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mm::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float toFloat(float v) { return v; }
__device__ __forceinline__ float toFloat(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float toFloat(f16 v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T fromFloat(float v) {
  if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(v);
  else if constexpr (std::is_same_v<T, f16>) return __float2half_rn(v);
  else return v;
}

// N neighbours that are loaded and stored at once; the address must be a multiple of its size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// Elements of T in 16 bytes.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

template <int N, class T>
__device__ __forceinline__ void loadFloats(const T* p, float (&out)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; i++) out[i] = toFloat(pack.v[i]);
}
template <int N, class T>
__device__ __forceinline__ void storeFloats(T* p, const float (&in)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; i++) pack.v[i] = fromFloat<T>(in[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Whether vectors of `bytes` may start at every address given.
template <class... P>
bool aligned(uint64_t bytes, const P*... pointers) {
  return (... && (reinterpret_cast<uintptr_t>(pointers) % bytes == 0));
}

}  // namespace mm::cuda
