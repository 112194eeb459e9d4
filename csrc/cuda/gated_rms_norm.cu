#include "cuda/gated_rms_norm.cuh"

#include "ops/gated_rms_norm.h"

namespace mm::cuda {
namespace {

// Whether all rows of a view may begin with a vector, as far as the strides go.
bool wideRows(const MMTensorView& view) {
  for (int i = 0; i + 1 < view.ndim; i++)
    if (view.shape[i] > 1 && view.stride[i] % vectorOf(view) != 0) return false;
  return true;
}

int32_t fitsForward(const MMCall* c) {
  using namespace ops::gated_rms_norm;
  const auto& x = in(c, X);
  return wholeVectors(x, 8 * 512) && wideRows(x) && wideRows(in(c, GATE));
}

int32_t looseForward(const MMCall* c) {
  using namespace ops::gated_rms_norm;
  const auto &x = in(c, X), &gate = in(c, GATE), &y = out(c, Y);
  const LoosePlan plan(c, x, 0);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, gatedRmsNormLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), data<const T>(gate),
        Weights(in(c, WEIGHT)), data<T>(y), rowNest<2>({&x, &gate}), rowCount(x), lastDim(x), float(attrs<Attrs>(c).eps), plan.lanes);
  });
}

int32_t forward(const MMCall* c) {
  using namespace ops::gated_rms_norm;
  const auto &x = in(c, X), &gate = in(c, GATE), &y = out(c, Y);
  const Weights w(in(c, WEIGHT));
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    if (!aligned(16, data<T>(x), data<T>(gate), data<T>(y)) || !w.vectors(V)) return looseForward(c);
    return dispatchSize<1, 2, 4, 8>(forwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K == 1 ? 2 : 1;
      const TeamPlan plan = forwardPlan(n, V);
      const int64_t blocks = plan.blocks(rows, R, deviceOf(c).multiprocessors);
      return launchOverlapping(c, gatedRmsNormKernel<T, K, R>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(x),
          data<const T>(gate), w, data<T>(y), rowNest<2>({&x, &gate}), rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
    });
  });
}

int32_t fitsBackward(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  const auto& x = in(c, X);
  return wholeVectors(x, 8192 / vectorOf(x)) && wideRows(x) && wideRows(in(c, GATE)) && wideRows(in(c, DY));
}

// Columns of a partial row.
int64_t gradientColumns(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  return hasOut(c, DWEIGHT) ? lastDim(in(c, X)) : 0;
}

uint64_t looseBackwardWorkspace(const MMCall* c) { return looseWorkspace(c, in(c, ops::gated_rms_norm_bwd::X), gradientColumns(c)); }

int32_t looseBackward(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  const auto &x = in(c, X), &gate = in(c, GATE), &dy = in(c, DY);
  float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
  const LoosePlan plan(c, x, gradientColumns(c));
  const int32_t status = dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, gatedRmsNormBackwardLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), data<const T>(gate),
        Weights(in(c, WEIGHT)), data<const T>(dy), hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr,
        hasOut(c, DGATE) ? data<T>(out(c, DGATE)) : nullptr, partial, rowNest<3>({&x, &gate, &dy}), rowCount(x), lastDim(x),
        float(attrs<Attrs>(c).eps), plan.lanes);
  });
  if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
  return addPartials(c, partial, data<float>(out(c, DWEIGHT)), plan.teams(), lastDim(x));
}

uint64_t backwardWorkspace(const MMCall* c) { return normWorkspace(c, in(c, ops::gated_rms_norm_bwd::X), gradientColumns(c)); }

int32_t backward(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  const auto &x = in(c, X), &gate = in(c, GATE), &dy = in(c, DY);
  const Weights w(in(c, WEIGHT));
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    T *dx = hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr, *dg = hasOut(c, DGATE) ? data<T>(out(c, DGATE)) : nullptr;
    if (!aligned(16, data<T>(x), data<T>(gate), data<T>(dy), dx, dg) || !w.vectors(V)) return looseBackward(c);
    return dispatchSize<1, 2, V == 4 ? 4 : 2>(backwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value;
      const TeamPlan plan = backwardPlan(n, V);
      const auto kernel = gatedRmsNormBackwardKernel<T, K>;
      const StayingBlocks blocks(c, kernel, plan, K * V, rows);
      float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
      const int32_t status = launchOverlapping(c, kernel, dim3(unsigned(blocks.count)), dim3(plan.threads), blocks.shared,
          data<const T>(x), data<const T>(gate), w, data<const T>(dy), dx, dg, partial, rowNest<3>({&x, &gate, &dy}), rows, n,
          float(attrs<Attrs>(c).eps), plan.lanes);
      if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
      return addPartials(c, partial, data<float>(out(c, DWEIGHT)), blocks.count, n);
    });
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(gated_rms_norm,
    {"gatedRmsNorm", "registers", fitsForward, nullptr, forward},
    {"gatedRmsNorm", "loose", nullptr, nullptr, looseForward},
    {"gatedRmsNormBackward", "registers", fitsBackward, backwardWorkspace, backward},
    {"gatedRmsNormBackward", "loose", nullptr, looseBackwardWorkspace, looseBackward})
