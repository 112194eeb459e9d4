// Arithmetic whose cost depends on the storage type T: 2-byte values are unpacked and packed in pairs, a word at a time, and where
// results are rounded to them anyway, exponentials and reciprocals are the approximations of the special function unit, without
// its detours for denormal numbers. f32 keeps the accurate functions.
#pragma once
#include "cuda/common/approximate.cuh"
#include "cuda/kernel.cuh"

namespace mm::cuda {

template <class T, int N>
__device__ __forceinline__ void unpack(const Pack<T, N>& pack, float (&out)[N]) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&pack);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = toFloat(pack.v[i]);
  }
}
template <class T, int N>
__device__ __forceinline__ Pack<T, N> packed(const float (&in)[N]) {
  Pack<T, N> pack;
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) *reinterpret_cast<__nv_bfloat162*>(pack.v + 2 * i) = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
  } else if constexpr (std::is_same_v<T, f16> && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) *reinterpret_cast<__half2*>(pack.v + 2 * i) = __floats2half2_rn(in[2 * i], in[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) pack.v[i] = fromFloat<T>(in[i]);
  }
  return pack;
}

template <int N, class T>
__device__ __forceinline__ void loadPacked(const T* p, float (&out)[N]) {
  unpack(*reinterpret_cast<const Pack<T, N>*>(p), out);
}
template <int N, class T>
__device__ __forceinline__ void storePacked(T* p, const float (&in)[N]) {
  *reinterpret_cast<Pack<T, N>*>(p) = packed<T>(in);
}

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

template <class T>
__device__ __forceinline__ float sigmoidFor(float v) {
  if constexpr (std::is_same_v<T, float>) return 1.f / (1.f + expf(-v));
  else return reciprocalApproximate(1.f + exp2Approximate(-kLog2e * v));
}
template <class T>
__device__ __forceinline__ float siluFor(float v) {
  return v * sigmoidFor<T>(v);
}
template <class T>
__device__ __forceinline__ float siluGradFor(float v) {
  const float s = sigmoidFor<T>(v);
  return s * fmaf(v, 1.f - s, 1.f);
}
// log(1 + exp(v)). Where exp(v) is small, the logarithm would lose it in the sum: three terms of its series there.
template <class T>
__device__ __forceinline__ float softplusFor(float v) {
  if constexpr (std::is_same_v<T, float>) return v > 20.f ? v : log1pf(expf(v));
  else {
    const float e = exp2Approximate(kLog2e * v);
    return v > 20.f ? v : e < 0.01f ? e * fmaf(e, fmaf(e, 1.f / 3.f, -0.5f), 1.f) : kLn2 * log2Approximate(1.f + e);
  }
}

}  // namespace mm::cuda
