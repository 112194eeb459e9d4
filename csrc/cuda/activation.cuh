// silu, gelu, swiglu and their gradients, elementwise: silu(x) = x s with s = sigmoid(x), silu' = s (1 + x (1 - s));
// gelu(x) = x Phi(x), gelu' = Phi(x) + x phi(x); swiglu: y = silu(a) b, da = dy b silu'(a), db = dy silu(a).
//
// Operands are walked by their strides, merged into rows of one long axis; results are dense. A team of up to 256 threads
// takes a piece of a row, U vectors of 16 bytes a thread, all loads first: 32 to 96 bytes under way a thread. Where an address
// or a stride does not suit vectors, or the long axis is not dense, the same goes element by element.
#pragma once
#include "cuda/common/approximate.cuh"
#include "cuda/common/rows.cuh"

namespace mm::cuda {

// Exponentials: within 2 ulp where T is f32, and good to 16-bit results else.
template <class T>
__device__ __forceinline__ float expFor(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  else return exp2Approximate(x * 1.44269504f);
}

// s = sigmoid(x) and rest = 1 - s; where T is f32, both without cancellation
template <class T>
__device__ __forceinline__ void sigmoids(float x, float& s, float& rest) {
  if constexpr (!std::is_same_v<T, float>) {
    s = reciprocalApproximate(1.f + expFor<T>(-x));
    rest = 1.f - s;
    return;
  }
  const float e = expFor<T>(-fabsf(x)), r = reciprocalApproximate(1.f + e), small = e * r;
  s = x >= 0.f ? r : small;
  rest = x >= 0.f ? small : r;
}
template <class T>
__device__ __forceinline__ float sigmoidOf(float x) {
  return reciprocalApproximate(1.f + expFor<T>(-x));
}

// Phi(x) and exp(-x^2 / 2). For 16-bit results erfc by Abramowitz & Stegun 7.1.26 (error 1.5e-7), which needs the exponential
// anyway: erff alone takes more instructions than the memory leaves time for.
template <class T>
__device__ __forceinline__ void normalCdf(float x, float& cdf, float& bell) {
  bell = expFor<T>(-0.5f * x * x);
  if constexpr (std::is_same_v<T, float>) {
    cdf = 0.5f + 0.5f * erff(x * 0.707106781f);
  } else {
    const float t = reciprocalApproximate(fmaf(0.3275911f * 0.707106781f, fabsf(x), 1.f));
    float p = fmaf(t, 1.061405429f, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f);
    const float tail = 0.5f * p * t * bell;
    cdf = x >= 0.f ? 1.f - tail : tail;
  }
}

// An op gives all results of one element: apply<T>(in, out).
struct SiluOp {
  static constexpr int kInputs = 1, kOutputs = 1;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[1], float (&out)[1]) { out[0] = in[0] * sigmoidOf<T>(in[0]); }
};
struct SiluBackwardOp {
  static constexpr int kInputs = 2, kOutputs = 1;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[2], float (&out)[1]) {
    float s, rest;
    sigmoids<T>(in[0], s, rest);
    out[0] = s * fmaf(in[0], rest, 1.f) * in[1];
  }
};
struct GeluOp {
  static constexpr int kInputs = 1, kOutputs = 1;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[1], float (&out)[1]) {
    float cdf, bell;
    normalCdf<T>(in[0], cdf, bell);
    out[0] = in[0] * cdf;
  }
};
struct GeluBackwardOp {
  static constexpr int kInputs = 2, kOutputs = 1;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[2], float (&out)[1]) {
    float cdf, bell;
    normalCdf<T>(in[0], cdf, bell);
    out[0] = (cdf + in[0] * 0.398942280f * bell) * in[1];
  }
};
struct SwigluOp {
  static constexpr int kInputs = 2, kOutputs = 1;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[2], float (&out)[1]) { out[0] = in[0] * sigmoidOf<T>(in[0]) * in[1]; }
};
struct SwigluBackwardOp {  // a, b, dy -> da, db
  static constexpr int kInputs = 3, kOutputs = 2;
  template <class T>
  static __device__ __forceinline__ void apply(const float (&in)[3], float (&out)[2]) {
    float s, rest;
    sigmoids<T>(in[0], s, rest);
    out[0] = in[2] * in[1] * s * fmaf(in[0], rest, 1.f);
    out[1] = in[2] * in[0] * s;
  }
};

template <class T, int N, int M>
struct ActivationOperands {
  const T* in[N];
  T* out[M];  // null where not wanted
};

// Vectors a thread has under way of each operand.
template <class Op>
constexpr int kActivationVectors = Op::kInputs == 1 ? 4 : 2;

// The nest: the inputs, then the dense outputs; its last axis is cut into `pieces` for teams of `lanes`, a power of two.
template <class Op, class T, bool vectors>
__global__ void __launch_bounds__(256) activationKernel(const ActivationOperands<T, Op::kInputs, Op::kOutputs> operands,
    const __grid_constant__ Nest<Op::kInputs + 1> nest, int64_t rows, int64_t pieces, int lanes) {
  constexpr int N = Op::kInputs, M = Op::kOutputs, U = kActivationVectors<Op>, V = vectors ? kVector<T> : 1;
  const int axes = nest.ndim - 1, lane = threadIdx.x & (lanes - 1);
  const int64_t unit = int64_t(blockIdx.x) * (256 / unsigned(lanes)) + threadIdx.x / unsigned(lanes), columns = nest.size[axes];
  const int64_t row = axes ? quotient(unit, pieces) : 0, piece = unit - row * pieces;
  if (row >= rows) return;
  int64_t at[N + 1] = {};
  if (axes) rowOffsets(nest, axes, row, at);
  const int64_t first = (piece * U * lanes + lane) * V;
  const auto single = [&](int64_t j) {
    float from[N], to[M];
#pragma unroll
    for (int k = 0; k < N; k++) from[k] = toFloat(operands.in[k][at[k] + j * nest.stride[k][axes]]);
    Op::template apply<T>(from, to);
#pragma unroll
    for (int m = 0; m < M; m++)
      if (operands.out[m]) operands.out[m][at[N] + j] = fromFloat<T>(to[m]);
  };
  if constexpr (!vectors) {
    for (int u = 0; u < U; u++)
      if (first + u * lanes < columns) single(first + u * lanes);
  } else {
    Words<T> words[U][N];
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t j = first + u * lanes * V;
      if (j + V <= columns)
#pragma unroll
        for (int k = 0; k < N; k++) words[u][k] = loadWords(operands.in[k] + at[k] + j);
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t j = first + u * lanes * V;
      if (j + V <= columns) {
        float from[N][V], to[M][V];
#pragma unroll
        for (int k = 0; k < N; k++) unpack(words[u][k], from[k]);
#pragma unroll
        for (int i = 0; i < V; i++) {
          float one[N], results[M];
#pragma unroll
          for (int k = 0; k < N; k++) one[k] = from[k][i];
          Op::template apply<T>(one, results);
#pragma unroll
          for (int m = 0; m < M; m++) to[m][i] = results[m];
        }
#pragma unroll
        for (int m = 0; m < M; m++)
          if (operands.out[m]) storeVector(operands.out[m] + at[N] + j, to[m]);
      } else {
#pragma unroll 1
        for (int64_t i = j; i < columns; i++) single(i);
      }
    }
  }
}

}  // namespace mm::cuda
