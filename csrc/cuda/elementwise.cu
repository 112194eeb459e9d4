#include "cuda/elementwise.cuh"

namespace mm::cuda {
namespace {

template <Arithmetic KIND>
int32_t binary(const MMCall* c) {
  using namespace ops::binary;
  const auto &a = in(c, A), &b = in(c, B), &y = out(c, Y);
  return dispatchFloat(y.dtype, [&](auto t) {
    using T = decltype(t);
    const MMTensorView* const views[3] = {&a, &b, &y};
    T* const to[1] = {data<T>(y)};
    return map(c, Binary<T>{KIND}, views, y, to);
  });
}

int32_t scaleView(const MMCall* c, float factor, float shift) {
  const auto &x = in(c, 0), &y = out(c, 0);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const MMTensorView* const views[2] = {&x, &y};
    T* const to[1] = {data<T>(y)};
    return map(c, ScaleShift<T>{factor, shift}, views, y, to);
  });
}
int32_t scale(const MMCall* c) {
  const auto& a = attrs<ops::scale::Attrs>(c);
  return scaleView(c, float(a.factor), float(a.shift));
}
int32_t scaleBackward(const MMCall* c) { return scaleView(c, float(attrs<ops::scale_bwd::Attrs>(c).factor), 0.f); }

int32_t unary(const MMCall* c) {
  using namespace ops::unary;
  const auto &x = in(c, X), &y = out(c, Y);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const MMTensorView* const views[2] = {&x, &y};
    T* const to[1] = {data<T>(y)};
    return map(c, Unary<T>{int32_t(attrs<Attrs>(c).kind)}, views, y, to);
  });
}
int32_t unaryBackward(const MMCall* c) {
  using namespace ops::unary_bwd;
  const auto &x = in(c, X), &dy = in(c, DY), &dx = out(c, DX);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const MMTensorView* const views[3] = {&x, &dy, &dx};
    T* const to[1] = {data<T>(dx)};
    return map(c, UnaryGradient<T>{int32_t(attrs<Attrs>(c).kind)}, views, dx, to);
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(elementwise, {"add", "strided", nullptr, nullptr, binary<Arithmetic::Add>},
                {"sub", "strided", nullptr, nullptr, binary<Arithmetic::Sub>},
                {"mul", "strided", nullptr, nullptr, binary<Arithmetic::Mul>},
                {"div", "strided", nullptr, nullptr, binary<Arithmetic::Div>}, {"scale", "strided", nullptr, nullptr, scale},
                {"scaleBackward", "strided", nullptr, nullptr, scaleBackward}, {"unary", "strided", nullptr, nullptr, unary},
                {"unaryBackward", "strided", nullptr, nullptr, unaryBackward})
