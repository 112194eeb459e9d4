#include "cuda/rms_norm.cuh"

#include "ops/rms_norm.h"

namespace mm::cuda {
namespace {

int32_t looseForward(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const LoosePlan plan(c, x, 0);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, rmsNormLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), Weights(in(c, WEIGHT)),
        data<T>(y), rowCount(x), lastDim(x), float(attrs<Attrs>(c).eps), plan.lanes);
  });
}

int32_t fitsForward(const MMCall* c) { return wholeVectors(in(c, ops::rms_norm::X), 8 * 512); }

int32_t forward(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const Weights w(in(c, WEIGHT));
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    if (!aligned(16, data<T>(x), data<T>(y)) || !w.vectors(V)) return looseForward(c);
    return dispatchSize<1, 2, 4, 8>(wholeRowVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K < 4 ? 4 / K : 1;
      const TeamPlan plan = wholeRowPlan(n, V, K);
      const int64_t blocks = plan.blocks(rows, R, deviceOf(c).multiprocessors);
      return launchOverlapping(c, rmsNormKernel<T, K, R>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(x), w, data<T>(y),
          rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
    });
  });
}

// Columns of a partial row.
int64_t gradientColumns(const MMCall* c) { return hasOut(c, ops::rms_norm_bwd::DWEIGHT) ? lastDim(in(c, ops::rms_norm_bwd::X)) : 0; }

uint64_t looseBackwardWorkspace(const MMCall* c) { return looseWorkspace(c, in(c, ops::rms_norm_bwd::X), gradientColumns(c)); }

int32_t looseBackward(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto& x = in(c, X);
  float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
  const LoosePlan plan(c, x, gradientColumns(c));
  const int32_t status = dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, rmsNormBackwardLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), Weights(in(c, WEIGHT)),
        data<const T>(in(c, DY)), hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr, partial, rowCount(x), lastDim(x),
        float(attrs<Attrs>(c).eps), plan.lanes);
  });
  if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
  return addPartials(c, partial, data<float>(out(c, DWEIGHT)), plan.teams(), lastDim(x));
}

int32_t fitsBackward(const MMCall* c) { return wholeVectors(in(c, ops::rms_norm_bwd::X), 4 * 512); }
uint64_t backwardWorkspace(const MMCall* c) { return normWorkspace(c, in(c, ops::rms_norm_bwd::X), gradientColumns(c)); }

int32_t backward(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto &x = in(c, X), &dy = in(c, DY);
  const Weights w(in(c, WEIGHT));
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    T* dx = hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr;
    if (!aligned(16, data<T>(x), data<T>(dy), dx) || !w.vectors(V)) return looseBackward(c);
    return dispatchSize<1, 2, 4>(backwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K == 1 ? 2 : 1;
      const TeamPlan plan = backwardPlan(n, V);
      const auto kernel = rmsNormBackwardKernel<T, K, R>;
      const StayingBlocks blocks(c, kernel, plan, K * V, rows);
      float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
      const int32_t status = launchOverlapping(c, kernel, dim3(unsigned(blocks.count)), dim3(plan.threads), blocks.shared,
          data<const T>(x), w, data<const T>(dy), dx, partial, rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
      if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
      return addPartials(c, partial, data<float>(out(c, DWEIGHT)), blocks.count, n);
    });
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(rms_norm,
    {"rmsNorm", "registers", fitsForward, nullptr, forward},
    {"rmsNorm", "loose", nullptr, nullptr, looseForward},
    {"rmsNormBackward", "registers", fitsBackward, backwardWorkspace, backward},
    {"rmsNormBackward", "loose", nullptr, looseBackwardWorkspace, looseBackward})
