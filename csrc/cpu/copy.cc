// copy, copyInto, cast and fill: bandwidth-bound walks over strided operands (cpu/strided.h).
#include "ops/copy.h"

#include "cpu/kernel.h"
#include "cpu/strided.h"

namespace mm::cpu::MM_ISA {
namespace {

int32_t copy(const MMCall* c) {
  copyStrided(in(c, 0), out(c, 0));
  return MM_OK;
}

int32_t copyInto(const MMCall* c) {
  using namespace ops::copy_into;
  copyStrided(in(c, SRC), in(c, DST));
  return MM_OK;
}

// ---- cast
template <class T>
constexpr bool isFloat = !std::is_integral<T>::value;

template <class T>
MM_INLINE T fromNumber(float x) {
  if constexpr (isFloat<T>) return fromF32<T>(x);
  else {
    constexpr float low = std::is_same<T, uint8_t>::value ? 0.f : -2147483648.f;
    constexpr float high = std::is_same<T, uint8_t>::value ? 255.f : 2147483520.f;  // the largest float below 2^31
    if constexpr (std::is_same<T, int32_t>::value)
      if (x >= 2147483648.f) return INT32_MAX;
    return T(x >= low ? (x <= high ? x : high) : x < low ? low : 0.f);
  }
}

template <class S, class D>
void castRow(const S* src, int64_t ss, D* dst, int64_t n) {
  if constexpr (isFloat<S> && isFloat<D>) {
    if (ss == 1) {
      for (int64_t j = 0; j < n; j += VL) storeUpTo(dst + j, loadUpTo(src + j, n - j), n - j);
      return;
    }
  }
  for (int64_t j = 0; j < n; j++) {
    if constexpr (isFloat<S>) dst[j] = fromNumber<D>(toF32(src[j * ss]));
    else if constexpr (isFloat<D>) dst[j] = fromF32<D>(float(src[j * ss]));
    else {
      const int64_t value = src[j * ss];
      dst[j] = D(sizeof(D) > 1 ? value : value < 0 ? 0 : value > 255 ? 255 : value);
    }
  }
}

template <class F>
void dispatchAny(int32_t dtype, F&& f) {
  if (dtype == MM_I32) f(int32_t{});
  else if (dtype == MM_U8) f(uint8_t{});
  else dispatchFloat(dtype, f);
}

void castTensor(const MMTensorView& src, const MMTensorView& dst) {
  if (src.dtype == dst.dtype) return copyStrided(src, dst);
  Nest<2> nest;
  for (int i = 0; i < dst.ndim; i++) {
    const int64_t strides[2] = {src.stride[i], dst.stride[i]};
    nest.push(dst.shape[i], strides);
  }
  nest.coalesce();
  dispatchAny(src.dtype, [&](auto s) {
    using S = decltype(s);
    dispatchAny(dst.dtype, [&](auto d) {
      using D = decltype(d);
      forRows(nest, [&](const int64_t* offset, int64_t n) {
        castRow(data<const S>(src) + offset[0], nest.stride[0][nest.ndim - 1], data<D>(dst) + offset[1], n);
      });
    });
  });
}

int32_t cast(const MMCall* c) {
  castTensor(in(c, 0), out(c, 0));
  return MM_OK;
}

int32_t castBackward(const MMCall* c) {
  using namespace ops::cast_bwd;
  castTensor(in(c, DY), out(c, DX));
  return MM_OK;
}

int32_t fill(const MMCall* c) {
  using namespace ops::fill;
  const auto& x = in(c, X);
  const double value = attrs<Attrs>(c).value;
  Nest<1> nest;
  for (int i = 0; i < x.ndim; i++) nest.push(x.shape[i], &x.stride[i]);
  nest.sortBy(0);
  nest.coalesce();
  dispatchAny(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T v = std::is_same<T, int32_t>::value ? fromNumber<T>(0.f) : fromNumber<T>(float(value));
    T element = v;
    if constexpr (std::is_same<T, int32_t>::value)  // not through f32, which holds 24 bits
      element = value >= 2147483647. ? INT32_MAX : value <= -2147483648. ? INT32_MIN : value == value ? int32_t(value) : 0;
    forRows(nest, [&](const int64_t* offset, int64_t n) {
      const int64_t s = nest.stride[0][nest.ndim - 1];
      T* p = data<T>(x) + offset[0];
      if (s == 1)
        for (int64_t j = 0; j < n; j++) p[j] = element;
      else
        for (int64_t j = 0; j < n; j++) p[j * s] = element;
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(copy, {"copy", "strided", nullptr, nullptr, copy}, {"copyBackward", "strided", nullptr, nullptr, copy},
               {"copyInto", "strided", nullptr, nullptr, copyInto}, {"cast", "strided", nullptr, nullptr, cast},
               {"castBackward", "strided", nullptr, nullptr, castBackward}, {"fill", "strided", nullptr, nullptr, fill})
