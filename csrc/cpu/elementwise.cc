// add, sub, mul, div, scale, unary and their gradients: one pass over broadcast operands (cpu/reduce.h). Gradients of a
// broadcast operand are sums over the axes it was broadcast along.
#include "ops/elementwise.h"

#include "cpu/kernel.h"
#include "cpu/reduce.h"

namespace mm::cpu::MM_ISA {
namespace {

// Terms of gradients, from a, b and the upstream d. Types rather than lambdas, so that equal ones are one instance.
struct Upstream {
  MM_INLINE vf operator()(vf, vf, vf d) const { return d; }
};
struct Negative {
  MM_INLINE vf operator()(vf, vf, vf d) const { return -d; }
};
struct TimesA {
  MM_INLINE vf operator()(vf a, vf, vf d) const { return d * a; }
};
struct TimesB {
  MM_INLINE vf operator()(vf, vf b, vf d) const { return d * b; }
};
struct OverB {
  MM_INLINE vf operator()(vf, vf b, vf d) const { return d / b; }
};
struct QuotientB {
  MM_INLINE vf operator()(vf a, vf b, vf d) const { return -d * (a / b) / b; }
};

struct Add {
  static MM_INLINE vf value(vf a, vf b) { return a + b; }
  using GradA = Upstream;
  using GradB = Upstream;
};
struct Sub {
  static MM_INLINE vf value(vf a, vf b) { return a - b; }
  using GradA = Upstream;
  using GradB = Negative;
};
struct Mul {
  static MM_INLINE vf value(vf a, vf b) { return a * b; }
  using GradA = TimesB;
  using GradB = TimesA;
};
struct Div {
  static MM_INLINE vf value(vf a, vf b) { return a / b; }
  using GradA = OverB;
  using GradB = QuotientB;
};

template <class Op>
int32_t binary(const MMCall* c) {
  using namespace ops::binary;
  const auto &a = in(c, A), &b = in(c, B), &y = out(c, Y);
  dispatchFloat(a.dtype, [&](auto t) {
    const MMTensorView* const views[2] = {&a, &b};
    map<decltype(t)>(y, views, [](const vf* v) { return Op::value(v[0], v[1]); });
  });
  return MM_OK;
}

// The nest of one gradient: a, b and dY over the broadcast shape, and the target, which stands still where it is summed.
Nest<4> gradientNest(const MMCall* c, const MMTensorView& target) {
  using namespace ops::binary_bwd;
  const MMTensorView* const views[4] = {&in(c, A), &in(c, B), &in(c, DY), &target};
  return broadcastNest<4>(views, in(c, DY));
}

uint64_t binaryBackwardWorkspace(const MMCall* c) {
  using namespace ops::binary_bwd;
  uint64_t bytes = 0;
  for (int slot : {int(DA), int(DB)})
    if (hasOut(c, slot) && numel(out(c, slot)) != numel(in(c, DY)) && numel(in(c, DY))) {
      const uint64_t need = Reduction<4>(gradientNest(c, out(c, slot))).workspace();
      bytes = need > bytes ? need : bytes;
    }
  return bytes;
}

template <class T, class F>
void gradient(const MMCall* c, const MMTensorView& target, F f) {
  using namespace ops::binary_bwd;
  const auto &a = in(c, A), &b = in(c, B), &dy = in(c, DY);
  if (numel(target) == numel(dy)) {
    const MMTensorView* const views[3] = {&a, &b, &dy};
    return map<T>(target, views, [&](const vf* v) { return f(v[0], v[1], v[2]); });
  }
  if (!numel(dy)) {
    std::memset(target.data, 0, size_t(numel(target)) * sizeof(T));
    return;
  }
  const Reduction<4> r(gradientNest(c, target));
  r.template run<SumOp>(
      static_cast<float*>(c->workspace),
      [&](const int64_t* offset, int64_t j, int64_t n) {
        return f(loadRow(data<const T>(a) + offset[0], r.stride[0], j, n),
            loadRow(data<const T>(b) + offset[1], r.stride[1], j, n),
                 loadRow(data<const T>(dy) + offset[2], r.stride[2], j, n));
      },
      [&](int64_t i, float total) { data<T>(target)[i] = fromF32<T>(total); });
}

template <class Op>
int32_t binaryBackward(const MMCall* c) {
  using namespace ops::binary_bwd;
  dispatchFloat(in(c, DY).dtype, [&](auto t) {
    using T = decltype(t);
    if (hasOut(c, DA)) gradient<T>(c, out(c, DA), typename Op::GradA{});
    if (hasOut(c, DB)) gradient<T>(c, out(c, DB), typename Op::GradB{});
  });
  return MM_OK;
}

int32_t scaleTensor(const MMTensorView& x, const MMTensorView& y, float factor, float shift) {
  dispatchFloat(x.dtype, [&](auto t) {
    const MMTensorView* const views[1] = {&x};
    map<decltype(t)>(y, views, [=](const vf* v) { return v[0] * factor + shift; });
  });
  return MM_OK;
}
int32_t scale(const MMCall* c) {
  const auto& a = attrs<ops::scale::Attrs>(c);
  return scaleTensor(in(c, 0), out(c, 0), float(a.factor), float(a.shift));
}
int32_t scaleBackward(const MMCall* c) {
  return scaleTensor(in(c, 0), out(c, 0), float(attrs<ops::scale_bwd::Attrs>(c).factor), 0.f);
}

MM_INLINE vf squareRoot(vf x) {
  vf r;
  for (int i = 0; i < VL; i++) r[i] = __builtin_sqrtf(x[i]);
  return r;
}
// A polynomial near 0, where 1 - exp(-2|x|) would cancel (Cephes).
MM_INLINE vf tanh(vf x) {
  const vf a = vabs(x), z = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vf e = exp(-2.f * a), t = (1.f - e) / (1.f + e);
  return select(a < splat(0.625f), p * z * x + x, select(x < splat(0.f), -t, t));
}

template <int KIND>
MM_INLINE vf function(vf x) {
  using namespace ops::unary;
  switch (KIND) {
    case NEG: return -x;
    case EXP: return exp(x);
    case LOG: return log(x);
    case SQRT: return squareRoot(x);
    case SIGMOID: return sigmoid(x);
    case TANH: return tanh(x);
    case SOFTPLUS: return softplus(x);
    case SQUARE: return x * x;
    default: return vabs(x);
  }
}
template <int KIND>
MM_INLINE vf derivative(vf x) {
  using namespace ops::unary;
  switch (KIND) {
    case NEG: return splat(-1.f);
    case EXP: return exp(x);
    case LOG: return 1.f / x;
    case SQRT: return 0.5f / squareRoot(x);
    case SIGMOID: {
      const vf s = sigmoid(x);
      return s * (1.f - s);
    }
    case TANH: {
      const vf t = tanh(x);
      return 1.f - t * t;
    }
    case SOFTPLUS: return sigmoid(x);
    case SQUARE: return 2.f * x;
    default: return select(x > splat(0.f), splat(1.f), select(x < splat(0.f), splat(-1.f), splat(0.f)));
  }
}

template <int KIND, class F>
void dispatchKind(int64_t kind, F&& f) {
  if (kind == KIND) f(std::integral_constant<int, KIND>{});
  else if constexpr (KIND < ops::unary::ABS) dispatchKind<KIND + 1>(kind, f);
}

int32_t unary(const MMCall* c) {
  using namespace ops::unary;
  const auto &x = in(c, X), &y = out(c, Y);
  dispatchFloat(x.dtype, [&](auto t) {
    dispatchKind<0>(attrs<Attrs>(c).kind, [&](auto kind) {
      const MMTensorView* const views[1] = {&x};
      map<decltype(t)>(y, views, [](const vf* v) { return function<decltype(kind)::value>(v[0]); });
    });
  });
  return MM_OK;
}
int32_t unaryBackward(const MMCall* c) {
  using namespace ops::unary_bwd;
  const auto &x = in(c, X), &dy = in(c, DY), &dx = out(c, DX);
  dispatchFloat(x.dtype, [&](auto t) {
    dispatchKind<0>(attrs<Attrs>(c).kind, [&](auto kind) {
      const MMTensorView* const views[2] = {&x, &dy};
      map<decltype(t)>(dx, views, [](const vf* v) { return derivative<decltype(kind)::value>(v[0]) * v[1]; });
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(elementwise, {"add", "strided", nullptr, nullptr, binary<Add>}, {"sub", "strided", nullptr, nullptr, binary<Sub>},
               {"mul", "strided", nullptr, nullptr, binary<Mul>}, {"div", "strided", nullptr, nullptr, binary<Div>},
               {"addBackward", "strided", nullptr, binaryBackwardWorkspace, binaryBackward<Add>},
               {"subBackward", "strided", nullptr, binaryBackwardWorkspace, binaryBackward<Sub>},
               {"mulBackward", "strided", nullptr, binaryBackwardWorkspace, binaryBackward<Mul>},
               {"divBackward", "strided", nullptr, binaryBackwardWorkspace, binaryBackward<Div>},
               {"scale", "strided", nullptr, nullptr, scale}, {"scaleBackward", "strided", nullptr, nullptr, scaleBackward},
               {"unary", "strided", nullptr, nullptr, unary}, {"unaryBackward", "strided", nullptr, nullptr, unaryBackward})
