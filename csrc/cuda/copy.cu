#include "cuda/copy.cuh"

#include <cstring>

#include "ops/copy.h"

namespace mm::cuda {

template <class E>
int32_t Copies::tiles(const Nest<2>& nest, int axis, const char* from, char* to) const {
  const MapPointers<CopyElement<E>> p{{reinterpret_cast<const E*>(from)}, {reinterpret_cast<E*>(to)}};
  return mapTiles(call_, nest, axis, p, CopyElement<E>{});
}

int32_t Copies::add(const MMTensorView* src, const MMTensorView& dst) {
  if (!numel(dst)) return MM_OK;
  const MMTensorView* const views[2] = {src ? src : &dst, &dst};
  Nest<2> all = nestOf<2>(views, dst);
  all.sortBy(1);
  all.coalesce();
  const int64_t none[2] = {};
  return forPieces(all, none, 0, [&](const Nest<2>& nest, const int64_t (&base)[2], int64_t) {
    const char* from = src ? data<const char>(*src) + base[0] * size_ : nullptr;
    char* to = data<char>(dst) + base[1] * size_;
    const int axis = src ? tiledAxis(nest) : -1;
    if (axis < 0) {
      parts_.push_back({nest, from, to});
      return int32_t(MM_OK);
    }
    switch (size_) {
      case 4: return tiles<uint32_t>(nest, axis, from, to);
      case 2: return tiles<uint16_t>(nest, axis, from, to);
      default: return tiles<uint8_t>(nest, axis, from, to);
    }
  });
}

// Whether part p can be moved in units of `bytes`; in a single dense axis the rest goes byte by byte.
bool Copies::fits(const Part& p, int64_t bytes) const {
  if (bytes == size_) return true;
  const int last = p.nest.ndim - 1;
  const int64_t unit = bytes / size_;
  if (p.nest.stride[1][last] != 1 || (last > 0 && p.nest.size[last] % unit)) return false;
  if (p.src && (p.nest.stride[0][last] != 1 || !vectorOperand(p.nest, 0, unit, p.src, size_))) return false;
  return vectorOperand(p.nest, 1, unit, p.dst, size_);
}

template <int N>
int32_t Copies::runParts(const Part* parts, int count) const {
  int64_t bytes = 16;
  for (int i = 0; i < count; i++)
    while (bytes > size_ && !fits(parts[i], bytes)) bytes /= 2;
  CopyParts<N> list;
  list.count = count;
  int64_t blocks = 0;
  for (int i = 0; i < count; i++) {
    const Nest<2>& nest = parts[i].nest;
    const int last = nest.ndim - 1;
    const int64_t unit = bytes / size_, elements = nest.count(nest.ndim);
    const bool dense = last == 0 && nest.stride[1][0] == 1;
    CopyPart& p = list.part[i];
    p.src = parts[i].src, p.dst = parts[i].dst;
    p.units = uint32_t(elements / unit), p.tail = dense ? uint32_t(elements % unit * size_) : 0;
    p.firstBlock = uint32_t(blocks);
    p.layout = layoutOf(nest, nest.ndim, unit);
    for (int a = 0; a < nest.ndim; a++)  // strides in units
      for (int k = 0; k < 2; k++) p.layout.stride[a][k] /= unit;
    blocks += p.units ? ceilDiv(p.units, kMapThreads * kCopyUnroll) : 1;
  }
  const dim3 grid{unsigned(blocks)}, threads{kMapThreads};
  switch (bytes) {
    case 16: return launch(call_, copyKernel<uint4, N>, grid, threads, 0, list, pattern_);
    case 8: return launch(call_, copyKernel<uint2, N>, grid, threads, 0, list, pattern_);
    case 4: return launch(call_, copyKernel<uint32_t, N>, grid, threads, 0, list, pattern_);
    case 2: return launch(call_, copyKernel<uint16_t, N>, grid, threads, 0, list, pattern_);
    default: return launch(call_, copyKernel<uint8_t, N>, grid, threads, 0, list, pattern_);
  }
}

int32_t Copies::run() const {
  for (size_t i = 0; i < parts_.size(); i += kCopyParts) {
    const int count = int(parts_.size() - i < kCopyParts ? parts_.size() - i : kCopyParts);
    const int32_t status = count == 1 ? runParts<1>(&parts_[i], 1) : runParts<kCopyParts>(&parts_[i], count);
    if (status != MM_OK) return status;
  }
  return MM_OK;
}

int32_t copyView(const MMCall* c, const MMTensorView& src, const MMTensorView& dst) {
  Copies copies(c, elementSize(dst.dtype));
  const int32_t status = copies.add(&src, dst);
  return status == MM_OK ? copies.run() : status;
}

int32_t fillView(const MMCall* c, const MMTensorView& dst, uint4 pattern) {
  Copies copies(c, elementSize(dst.dtype), pattern);
  const int32_t status = copies.add(nullptr, dst);
  return status == MM_OK ? copies.run() : status;
}

namespace {

int32_t copy(const MMCall* c) { return copyView(c, in(c, 0), out(c, 0)); }

int32_t copyInto(const MMCall* c) {
  using namespace ops::copy_into;
  return copyView(c, in(c, SRC), in(c, DST));
}

// Calls f with a value of the dtype's type.
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
