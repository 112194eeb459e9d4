// silu, gelu, swiglu and their gradients: one pass over memory, operands walked by their strides.
// silu' = s (1 + x (1 - s)) with s = sigmoid(x); gelu' = Phi(x) + x phi(x).
// swiglu: da = dy b silu'(a), db = dy silu(a), from one exponential.
#include "ops/activation.h"

#include "cpu/reduce.h"

namespace mm::cpu::MM_ISA {
namespace {

MM_INLINE vf normalCdf(vf x) { return 0.5f + 0.5f * erf(x * 0.707106781f); }
struct Silu {
  static MM_INLINE vf value(vf x) { return silu(x); }
  static MM_INLINE vf gradient(vf x) { return siluGrad(x); }
};
struct Gelu {
  static MM_INLINE vf value(vf x) { return x * normalCdf(x); }
  static MM_INLINE vf gradient(vf x) { return normalCdf(x) + x * 0.398942280f * exp(-0.5f * x * x); }
};

template <class F>
int32_t activation(const MMCall* c) {
  using namespace ops::activation;
  const MMTensorView* const views[1] = {&in(c, X)};
  dispatchFloat(in(c, X).dtype, [&](auto t) { map<decltype(t)>(out(c, Y), views, [](const vf* v) { return F::value(v[0]); }); });
  return MM_OK;
}
template <class F>
int32_t activationBackward(const MMCall* c) {
  using namespace ops::activation_bwd;
  if (!hasOut(c, DX)) return MM_OK;
  const MMTensorView* const views[2] = {&in(c, X), &in(c, DY)};
  dispatchFloat(in(c, X).dtype,
                [&](auto t) { map<decltype(t)>(out(c, DX), views, [](const vf* v) { return F::gradient(v[0]) * v[1]; }); });
  return MM_OK;
}

int32_t swiglu(const MMCall* c) {
  using namespace ops::swiglu;
  const MMTensorView* const views[2] = {&in(c, A), &in(c, B)};
  dispatchFloat(in(c, A).dtype,
                [&](auto t) { map<decltype(t)>(out(c, Y), views, [](const vf* v) { return silu(v[0]) * v[1]; }); });
  return MM_OK;
}

int32_t swigluBackward(const MMCall* c) {
  using namespace ops::swiglu_bwd;
  const bool wantA = hasOut(c, DA), wantB = hasOut(c, DB);
  if ((!wantA && !wantB) || !numel(in(c, A))) return MM_OK;
  const MMTensorView& dense = out(c, wantA ? DA : DB);
  const MMTensorView* const views[4] = {&in(c, A), &in(c, B), &in(c, DY), &dense};
  const Nest<4> nest = broadcastNest<4>(views, dense);
  dispatchFloat(dense.dtype, [&](auto t) {
    using T = decltype(t);
    forRows(nest, [&](const int64_t* offset, int64_t n) {
      const T *a = data<const T>(in(c, A)) + offset[0], *b = data<const T>(in(c, B)) + offset[1];
      const T* d = data<const T>(in(c, DY)) + offset[2];
      T* da = wantA ? data<T>(out(c, DA)) + offset[3] : nullptr;
      T* db = wantB ? data<T>(out(c, DB)) + offset[3] : nullptr;
      const auto step = [&](vf va, vf vb, vf vd, auto&& put) {
        const vf s = sigmoid(va);
        if (wantA) put(da, vd * vb * s * (1.f + va * (1.f - s)));
        if (wantB) put(db, vd * va * s);
      };
      int64_t j = 0;
      const bool vectors =
          nest.stride[0][nest.ndim - 1] == 1 && nest.stride[1][nest.ndim - 1] == 1 && nest.stride[2][nest.ndim - 1] == 1;
      for (; vectors && j + VL <= n; j += VL) step(load(a + j), load(b + j), load(d + j), [&](T* p, vf x) { store(p + j, x); });
      for (; j < n; j += VL)
        step(loadRow(a, nest.stride[0][nest.ndim - 1], j, n), loadRow(b, nest.stride[1][nest.ndim - 1], j, n),
             loadRow(d, nest.stride[2][nest.ndim - 1], j, n), [&](T* p, vf x) { storeUpTo(p + j, x, n - j); });
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(activation, {"silu", "strided", nullptr, nullptr, activation<Silu>},
               {"gelu", "strided", nullptr, nullptr, activation<Gelu>}, {"swiglu", "strided", nullptr, nullptr, swiglu},
               {"siluBackward", "strided", nullptr, nullptr, activationBackward<Silu>},
               {"geluBackward", "strided", nullptr, nullptr, activationBackward<Gelu>},
               {"swigluBackward", "strided", nullptr, nullptr, swigluBackward})
