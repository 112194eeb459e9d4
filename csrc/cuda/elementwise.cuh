// add, sub, mul, div, scale, unary and their gradients: maps over broadcast operands (common/strided.cuh), computed in f32. The
// function is chosen once a vector, at run time: it costs nothing beside the memory and keeps the instances few. Gradients of
// operands of the full shape are maps too, both in one launch; the gradient of a broadcast operand is a reduction
// (reduction.cuh) over the axes that it was broadcast along.
#pragma once
#include "cuda/common/strided.cuh"
#include "cuda/reduction.cuh"
#include "ops/elementwise.h"

namespace mm::cuda {

enum class Arithmetic : int32_t { Add, Sub, Mul, Div };

template <class T>
struct Binary {
  static constexpr int K = 2, M = 1;
  using In = T;
  using Out = T;
  Arithmetic kind;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[2][V], T (&y)[1][V]) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(f(toFloat(x[0][i]), toFloat(x[1][i])));
    };
    switch (kind) {
      case Arithmetic::Add: return each([](float a, float b) { return a + b; });
      case Arithmetic::Sub: return each([](float a, float b) { return a - b; });
      case Arithmetic::Mul: return each([](float a, float b) { return a * b; });
      default: return each([](float a, float b) { return a / b; });
    }
  }
};

template <class T>
struct ScaleShift {
  static constexpr int K = 1, M = 1;
  using In = T;
  using Out = T;
  float factor, shift;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[1][V], T (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(fmaf(toFloat(x[0][i]), factor, shift));
  }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))) + (x != x ? x : 0.f); }

template <class T>
struct Unary {
  static constexpr int K = 1, M = 1;
  using In = T;
  using Out = T;
  int32_t kind;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[1][V], T (&y)[1][V]) const {
    using namespace ops::unary;
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(f(toFloat(x[0][i])));
    };
    switch (kind) {
      case NEG: return each([](float v) { return -v; });
      case EXP: return each([](float v) { return expf(v); });
      case LOG: return each([](float v) { return logf(v); });
      case SQRT: return each([](float v) { return sqrtf(v); });
      case SIGMOID: return each([](float v) { return sigmoid(v); });
      case TANH: return each([](float v) { return tanhf(v); });
      case SOFTPLUS: return each([](float v) { return softplus(v); });
      case SQUARE: return each([](float v) { return v * v; });
      default: return each([](float v) { return fabsf(v); });
    }
  }
};

// x, dY
template <class T>
struct UnaryGradient {
  static constexpr int K = 2, M = 1;
  using In = T;
  using Out = T;
  int32_t kind;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[2][V], T (&y)[1][V]) const {
    using namespace ops::unary;
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(f(toFloat(x[0][i])) * toFloat(x[1][i]));
    };
    switch (kind) {
      case NEG: return each([](float) { return -1.f; });
      case EXP: return each([](float v) { return expf(v); });
      case LOG: return each([](float v) { return 1.f / v; });
      case SQRT: return each([](float v) { return 0.5f / sqrtf(v); });
      case SIGMOID:
        return each([](float v) {
          const float s = sigmoid(v);
          return s * (1.f - s);
        });
      case TANH:
        return each([](float v) {
          const float t = tanhf(v);
          return 1.f - t * t;
        });
      case SOFTPLUS: return each([](float v) { return sigmoid(v); });
      case SQUARE: return each([](float v) { return 2.f * v; });
      default: return each([](float v) { return v > 0.f ? 1.f : v < 0.f ? -1.f : 0.f; });
    }
  }
};

// ---- gradients of add, sub, mul, div
__device__ __forceinline__ float divisorTerm(float a, float b, float d) { return -d * (a / b) / b; }

// add, sub: the results are dY with a sign
template <class T, int RESULTS>
struct Signed {
  static constexpr int K = 1, M = RESULTS;
  using In = T;
  using Out = T;
  float sign[RESULTS];
  template <int V>
  __device__ __forceinline__ void operator()(const T (&d)[1][V], T (&y)[M][V]) const {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < V; i++) y[m][i] = fromFloat<T>(toFloat(d[0][i]) * sign[m]);
  }
};

// other, dY: dY times other (mul), or dY over b (div)
template <class T>
struct ProductGradient {
  static constexpr int K = 2, M = 1;
  using In = T;
  using Out = T;
  bool over;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[2][V], T (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float other = toFloat(x[0][i]), d = toFloat(x[1][i]);
      y[0][i] = fromFloat<T>(over ? d / other : d * other);
    }
  }
};

// a, b, dY: dB of div
template <class T>
struct DivisorGradient {
  static constexpr int K = 3, M = 1;
  using In = T;
  using Out = T;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[3][V], T (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(divisorTerm(toFloat(x[0][i]), toFloat(x[1][i]), toFloat(x[2][i])));
  }
};

// a, b, dY: dA and dB of mul or div
template <class T>
struct BothGradients {
  static constexpr int K = 3, M = 2;
  using In = T;
  using Out = T;
  bool over;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[3][V], T (&y)[2][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float a = toFloat(x[0][i]), b = toFloat(x[1][i]), d = toFloat(x[2][i]);
      y[0][i] = fromFloat<T>(over ? d / b : d * b);
      y[1][i] = fromFloat<T>(over ? divisorTerm(a, b, d) : d * a);
    }
  }
};

// The same terms, summed.
template <class T>
struct ProductTerms : FloatReduction<T, 2> {
  bool over;
  __device__ __forceinline__ float term(const T (&x)[2], int64_t) const {
    return over ? toFloat(x[1]) / toFloat(x[0]) : toFloat(x[1]) * toFloat(x[0]);
  }
};

template <class T>
struct DivisorTerms : FloatReduction<T, 3> {
  __device__ __forceinline__ float term(const T (&x)[3], int64_t) const { return divisorTerm(toFloat(x[0]), toFloat(x[1]), toFloat(x[2])); }
};

}  // namespace mm::cuda
