#include "cuda/layer_norm.cuh"

#include "ops/layer_norm.h"

namespace mm::cuda {
namespace {

Weights weightsOf(const MMCall* c, int slot) { return has(c, slot) ? Weights(in(c, slot)) : Weights(); }

int32_t fitsForward(const MMCall* c) { return wholeVectors(in(c, ops::layer_norm::X), 8 * 512); }

int32_t looseForward(const MMCall* c) {
  using namespace ops::layer_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const LoosePlan plan(c, x, 0);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, layerNormLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), weightsOf(c, WEIGHT),
        weightsOf(c, BIAS), data<T>(y), rowCount(x), lastDim(x), float(attrs<Attrs>(c).eps), plan.lanes);
  });
}

int32_t forward(const MMCall* c) {
  using namespace ops::layer_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const Weights w = weightsOf(c, WEIGHT), b = weightsOf(c, BIAS);
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    if (!aligned(16, data<T>(x), data<T>(y)) || !w.vectors(V) || !b.vectors(V)) return looseForward(c);
    return dispatchSize<1, 2, 4, 8>(wholeRowVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K < 4 ? 4 / K : 1;
      const TeamPlan plan = wholeRowPlan(n, V, K);
      const int64_t blocks = plan.blocks(rows, R, deviceOf(c).multiprocessors);
      return launchOverlapping(c, layerNormKernel<T, K, R>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(x), w, b,
          data<T>(y), rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
    });
  });
}

int32_t fitsBackward(const MMCall* c) {
  const auto& x = in(c, ops::layer_norm_bwd::X);
  return wholeVectors(x, 8192 / vectorOf(x));
}

// dw and db lie side by side in the partial rows.
int64_t gradientColumns(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  return (hasOut(c, DWEIGHT) + hasOut(c, DBIAS)) * lastDim(in(c, X));
}

int32_t addGradients(const MMCall* c, const float* partial, int64_t parts) {
  using namespace ops::layer_norm_bwd;
  float *dw = hasOut(c, DWEIGHT) ? data<float>(out(c, DWEIGHT)) : nullptr, *db = hasOut(c, DBIAS) ? data<float>(out(c, DBIAS)) : nullptr;
  if (!dw && !db) return MM_OK;
  return addPartials(c, partial, dw ? dw : db, db, parts, gradientColumns(c), lastDim(in(c, X)));
}

uint64_t looseBackwardWorkspace(const MMCall* c) { return looseWorkspace(c, in(c, ops::layer_norm_bwd::X), gradientColumns(c)); }

int32_t looseBackward(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const auto& x = in(c, X);
  float* partial = static_cast<float*>(c->workspace);
  const LoosePlan plan(c, x, gradientColumns(c));
  const int32_t status = dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, layerNormBackwardLooseKernel<T>, dim3(unsigned(plan.blocks)), dim3(256), 0, data<const T>(x), weightsOf(c, WEIGHT),
        data<const T>(in(c, DY)), hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr, partial, hasOut(c, DWEIGHT), hasOut(c, DBIAS), rowCount(x),
        lastDim(x), float(attrs<Attrs>(c).eps), plan.lanes);
  });
  return status != MM_OK ? status : addGradients(c, partial, plan.teams());
}

uint64_t backwardWorkspace(const MMCall* c) { return normWorkspace(c, in(c, ops::layer_norm_bwd::X), gradientColumns(c)); }

int32_t backward(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const auto &x = in(c, X), &dy = in(c, DY);
  const Weights w = weightsOf(c, WEIGHT);
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    T* dx = hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr;
    if (!aligned(16, data<T>(x), data<T>(dy), dx) || !w.vectors(V)) return looseBackward(c);
    return dispatchSize<1, 2, V == 4 ? 4 : 2>(backwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value;
      const TeamPlan plan = backwardPlan(n, V);
      const auto kernel = layerNormBackwardKernel<T, K, 1>;
      const StayingBlocks blocks(c, kernel, plan, K * V, rows);
      float* partial = static_cast<float*>(c->workspace);
      const int32_t status = launchOverlapping(c, kernel, dim3(unsigned(blocks.count)), dim3(plan.threads), blocks.shared,
          data<const T>(x), w, data<const T>(dy), dx, partial, hasOut(c, DWEIGHT), hasOut(c, DBIAS), rows, n,
          float(attrs<Attrs>(c).eps), plan.lanes);
      return status != MM_OK ? status : addGradients(c, partial, blocks.count);
    });
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(layer_norm,
    {"layerNorm", "registers", fitsForward, nullptr, forward},
    {"layerNorm", "loose", nullptr, nullptr, looseForward},
    {"layerNormBackward", "registers", fitsBackward, backwardWorkspace, backward},
    {"layerNormBackward", "loose", nullptr, looseBackwardWorkspace, looseBackward})
