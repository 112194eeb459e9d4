// sum, mean, max over one axis or all, and their gradients, on the reductions of cpu/reduce.h.
#include "cpu/kernel.h"
#include "cpu/reduce.h"
#include "ops/reduced_view.h"

namespace mm::cpu::MM_ISA {
namespace {

Reduction<2> plan(const MMTensorView& x, const MMTensorView& y, int64_t axis) {
  const MMTensorView target = expanded(x, y, axis);
  const MMTensorView* const views[2] = {&x, &target};
  return Reduction<2>(broadcastNest<2>(views, x));
}

uint64_t reduceWorkspace(const MMCall* c) {
  using namespace ops::reduction;
  return numel(in(c, X)) ? plan(in(c, X), out(c, Y), attrs<Attrs>(c).axis).workspace() : 0;
}

template <class Op, bool MEAN>
int32_t reduce(const MMCall* c) {
  using namespace ops::reduction;
  const auto &x = in(c, X), &y = out(c, Y);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t outputs = numel(y), elements = numel(x);
    if (!elements) {  // only sum and mean get here: 0 and 0/0
      for (int64_t i = 0; i < outputs; i++) data<T>(y)[i] = fromF32<T>(MEAN ? __builtin_nanf("") : 0.f);
      return;
    }
    const Reduction<2> r = plan(x, y, attrs<Attrs>(c).axis);
    const float factor = MEAN ? float(double(outputs) / double(elements)) : 1.f;
    r.template run<Op>(
        static_cast<float*>(c->workspace),
        [&](const int64_t* offset, int64_t j, int64_t n) { return loadRow(data<const T>(x) + offset[0], r.stride[0], j, n); },
        [&](int64_t i, float total) { data<T>(y)[i] = fromF32<T>(total * factor); });
  });
  return MM_OK;
}

template <bool MEAN>
int32_t broadcastBackward(const MMCall* c) {
  using namespace ops::reduction_bwd;
  const auto &dy = in(c, DY), &dx = out(c, DX);
  if (!numel(dx)) return MM_OK;
  const MMTensorView d = expandedStrided(dx, dy, attrs<Attrs>(c).axis, attrs<Attrs>(c).keepDims != 0);
  const float factor = MEAN ? float(double(numel(dy)) / double(numel(dx))) : 1.f;
  dispatchFloat(dx.dtype, [&](auto t) {
    const MMTensorView* const views[1] = {&d};
    map<decltype(t)>(dx, views, [=](const vf* v) { return v[0] * factor; });
  });
  return MM_OK;
}

int32_t maxBackward(const MMCall* c) {
  using namespace ops::max_bwd;
  const auto &x = in(c, X), &y = in(c, Y), &dy = in(c, DY), &dx = out(c, DX);
  if (!numel(dx)) return MM_OK;
  const MMTensorView target = expanded(x, y, attrs<Attrs>(c).axis);
  Nest<2> kept, reduced;  // x and dx
  for (int i = 0; i < x.ndim; i++) {
    const int64_t strides[2] = {x.stride[i], dx.stride[i]};
    (target.shape[i] == 1 ? reduced : kept).push(x.shape[i], strides);
  }
  const int64_t terms = reduced.count(reduced.ndim);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(numel(y), 1 + 4096 / terms, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const Cursor<2> at(kept, kept.ndim, i);
        Cursor<2> term(reduced, reduced.ndim, 0);
        const float top = toF32(data<const T>(y)[i]);
        bool found = false;
        for (int64_t j = 0; j < terms; j++, term.next()) {
          const float value = toF32(data<const T>(x)[at.offset[0] + term.offset[0]]);
          const bool here = !found && (value == top || value != value);
          data<T>(dx)[at.offset[1] + term.offset[1]] = here ? data<const T>(dy)[i] : fromF32<T>(0.f);
          found = found || here;
        }
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(reduction, {"sum", "strided", nullptr, reduceWorkspace, (reduce<SumOp, false>)},
               {"mean", "strided", nullptr, reduceWorkspace, (reduce<SumOp, true>)},
               {"max", "strided", nullptr, reduceWorkspace, (reduce<MaxOp, false>)},
               {"sumBackward", "strided", nullptr, nullptr, broadcastBackward<false>},
               {"meanBackward", "strided", nullptr, nullptr, broadcastBackward<true>},
               {"maxBackward", "strided", nullptr, nullptr, maxBackward})
