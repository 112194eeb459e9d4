#include "cuda/reduction.cuh"

#include "cuda/copy.cuh"
#include "ops/reduced_view.h"

namespace mm::cuda {
namespace {

Reduction<1, 1> plan(const MMTensorView& x, const MMTensorView& y, int64_t axis) {
  const MMTensorView target = expanded(x, y, axis);
  const MMTensorView* const views[2] = {&x, &target};
  return Reduction<1, 1>(nestOf<2>(views, x), 0);
}

uint64_t reduceWorkspace(const MMCall* c) {
  using namespace ops::reduction;
  return numel(in(c, X)) ? plan(in(c, X), out(c, Y), attrs<Attrs>(c).axis).workspace(sizeof(float)) : 0;
}

template <bool MEAN>
int32_t sum(const MMCall* c) {
  using namespace ops::reduction;
  const auto &x = in(c, X), &y = out(c, Y);
  if (!numel(x)) return fillView(c, y, MEAN ? nanPattern(y.dtype) : zeroPattern());  // 0 and 0/0
  const float factor = MEAN ? float(double(numel(y)) / double(numel(x))) : 1.f;
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const from[1] = {data<T>(x)};
    return plan(x, y, attrs<Attrs>(c).axis).run(c, SumTerms<T, T>{data<T>(y), factor}, from, c->workspace);
  });
}

int32_t maximum(const MMCall* c) {
  using namespace ops::reduction;
  const auto &x = in(c, X), &y = out(c, Y);
  if (!numel(x)) return MM_OK;
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const from[1] = {data<T>(x)};
    return plan(x, y, attrs<Attrs>(c).axis).run(c, MaxTerms<T>{data<T>(y)}, from, c->workspace);
  });
}

template <bool MEAN>
int32_t sumBackward(const MMCall* c) {
  using namespace ops::reduction_bwd;
  const auto &dy = in(c, DY), &dx = out(c, DX);
  if (!numel(dx)) return MM_OK;
  const MMTensorView d = expandedStrided(dx, dy, attrs<Attrs>(c).axis, attrs<Attrs>(c).keepDims != 0);
  const float factor = MEAN ? float(double(numel(dy)) / double(numel(dx))) : 1.f;
  return dispatchFloat(dx.dtype, [&](auto t) {
    using T = decltype(t);
    const MMTensorView* const views[2] = {&d, &dx};
    T* const to[1] = {data<T>(dx)};
    return map(c, Scaled<T>{factor}, views, dx, to);
  });
}

Reduction<2, 2> firstPlan(const MMCall* c) {
  using namespace ops::max_bwd;
  const int64_t axis = attrs<Attrs>(c).axis;
  const auto& x = in(c, X);
  const MMTensorView y = expanded(x, in(c, Y), axis), dy = expanded(x, in(c, DY), axis);
  const MMTensorView* const views[4] = {&x, &y, &dy, &out(c, DX)};
  // among all elements the first one is the first in row-major order, so that the axes stay as they are
  return Reduction<2, 2>(nestOf<4>(views, x), axis == ops::reduction::kAllAxes ? -1 : 0);
}
uint64_t maxBackwardWorkspace(const MMCall* c) {
  return numel(in(c, ops::max_bwd::X)) ? firstPlan(c).workspace(sizeof(int64_t)) : 0;
}
int32_t maxBackward(const MMCall* c) {
  using namespace ops::max_bwd;
  const auto &x = in(c, X), &y = in(c, Y), &dy = in(c, DY), &dx = out(c, DX);
  if (!numel(dx)) return MM_OK;
  const int32_t status = setBytes(c, dx.data, 0, numel(dx) * elementSize(dx.dtype));
  if (status != MM_OK) return status;
  const Reduction<2, 2> r = firstPlan(c);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    FirstMaximum<T> f;
    f.dy = data<T>(dy), f.dx = data<T>(dx), f.termAxes = r.reduced.ndim;
    for (int i = 0; i < r.reduced.ndim; i++) {
      f.termSize[i] = r.reduced.size[r.reduced.ndim - 1 - i];
      f.termStride[i] = r.reduced.stride[3][r.reduced.ndim - 1 - i];
    }
    const T* const from[2] = {data<T>(x), data<T>(y)};
    return r.run(c, f, from, c->workspace);
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(reduction, {"sum", "strided", nullptr, reduceWorkspace, sum<false>},
                {"mean", "strided", nullptr, reduceWorkspace, sum<true>}, {"max", "strided", nullptr, reduceWorkspace, maximum},
                {"sumBackward", "strided", nullptr, nullptr, sumBackward<false>},
                {"meanBackward", "strided", nullptr, nullptr, sumBackward<true>},
                {"maxBackward", "strided", nullptr, maxBackwardWorkspace, maxBackward})
