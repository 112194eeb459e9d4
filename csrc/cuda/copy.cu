#include "cuda/copy.cuh"

#include <cstring>

#include "ops/copy.h"

namespace mm::cuda {
namespace {

int32_t copy(const MMCall* c) { return copyView(c, in(c, 0), out(c, 0)); }

int32_t copyInto(const MMCall* c) {
  using namespace ops::copy_into;
  return copyView(c, in(c, SRC), in(c, DST));
}

// Calls f with a value of any dtype's type but `other`.
template <class F>
int32_t dispatchAny(int32_t dtype, F&& f) {
  if (dtype == MM_I32) return f(int32_t{});
  if (dtype == MM_U8) return f(uint8_t{});
  return dispatchFloat(dtype, f);
}

int32_t castView(const MMCall* c, const MMTensorView& src, const MMTensorView& dst) {
  if (src.dtype == dst.dtype) return copyView(c, src, dst);
  return dispatchAny(src.dtype, [&](auto s) {
    using S = decltype(s);
    return dispatchAny(dst.dtype, [&](auto d) -> int32_t {
      using D = decltype(d);
      if constexpr (std::is_same_v<S, D>) return MM_OK;
      else {
        const MMTensorView* const views[2] = {&src, &dst};
        D* const y[1] = {data<D>(dst)};
        return map(c, Cast<S, D>{}, views, dst, y);
      }
    });
  });
}

int32_t cast(const MMCall* c) { return castView(c, in(c, 0), out(c, 0)); }

int32_t castBackward(const MMCall* c) {
  using namespace ops::cast_bwd;
  return castView(c, in(c, DY), out(c, DX));
}

int32_t fill(const MMCall* c) {
  using namespace ops::fill;
  const auto& x = in(c, X);
  const double value = attrs<Attrs>(c).value;
  const float single = float(value);
  char element[4] = {};
  const auto put = [&](auto v) { std::memcpy(element, &v, sizeof v); };
  switch (x.dtype) {
    case MM_F32: put(single); break;
    case MM_BF16: put(__float2bfloat16_rn(single)); break;
    case MM_F16: put(__float2half_rn(single)); break;
    case MM_I32: put(value >= 2147483647. ? INT32_MAX : value <= -2147483648. ? INT32_MIN : value == value ? int32_t(value) : 0); break;
    default: put(uint8_t(value >= 255. ? 255 : value > 0. ? value : 0.)); break;
  }
  return fillView(c, x, patternOf(element, elementSize(x.dtype)));
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(copy, {"copy", "strided", nullptr, nullptr, copy}, {"copyBackward", "strided", nullptr, nullptr, copy},
                {"copyInto", "strided", nullptr, nullptr, copyInto}, {"cast", "strided", nullptr, nullptr, cast},
                {"castBackward", "strided", nullptr, nullptr, castBackward}, {"fill", "strided", nullptr, nullptr, fill})
