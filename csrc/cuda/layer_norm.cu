#include "cuda/layer_norm.cuh"

#include "ops/layer_norm.h"

namespace mm::cuda {
namespace {

Weights weightsOf(const MMCall* c, int slot) { return has(c, slot) ? Weights(in(c, slot)) : Weights(); }

// The vectors a lane holds: few enough for a warp, then for a block of 512.
int forwardVectors(int64_t vectors) { return vectors <= 256 ? int(ceilDiv(vectors, 32)) : vectors <= 2048 ? 4 : 8; }
int backwardVectors(int64_t vectors) { return vectors <= 32 ? 1 : vectors <= 1024 ? 2 : 4; }

int32_t fitsForward(const MMCall* c) {
  const auto& x = in(c, ops::layer_norm::X);
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  return n % v == 0 && n / v <= 8 * 512;
}

int32_t looseForward(const MMCall* c) {
  using namespace ops::layer_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, layerNormLooseKernel<T>, dim3(unsigned(looseBlocks(rows, n, 0, 0))), dim3(256), 0, data<const T>(x),
        weightsOf(c, WEIGHT), weightsOf(c, BIAS), data<T>(y), rows, n, float(attrs<Attrs>(c).eps), looseLanes(n));
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
    return dispatchSize<1, 2, 4, 8>(forwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K < 4 ? 4 / K : 1;
      const TeamPlan plan(n, V, K);
      const int64_t blocks = plan.blocks(rows, R, deviceOf(c).multiprocessors);
      return launch(c, layerNormKernel<T, K, R>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(x), w, b, data<T>(y), rows, n,
          float(attrs<Attrs>(c).eps), plan.lanes);
    });
  });
}

int32_t fitsBackward(const MMCall* c) {
  const auto& x = in(c, ops::layer_norm_bwd::X);
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  return n % v == 0 && n <= 8192;
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

uint64_t looseBackwardWorkspace(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const int64_t rows = rowCount(in(c, X)), n = lastDim(in(c, X)), columns = gradientColumns(c);
  if (!columns) return 0;
  return uint64_t(looseBlocks(rows, n, columns, deviceOf(c).multiprocessors) * (256 / looseLanes(n)) * columns) * sizeof(float);
}

int32_t looseBackward(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const auto& x = in(c, X);
  const int64_t rows = rowCount(x), n = lastDim(x), columns = gradientColumns(c);
  float* partial = static_cast<float*>(c->workspace);
  const int64_t lanes = looseLanes(n);
  const int64_t blocks = looseBlocks(rows, n, columns, deviceOf(c).multiprocessors);
  const int32_t status = dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, layerNormBackwardLooseKernel<T>, dim3(unsigned(blocks)), dim3(256), 0, data<const T>(x), weightsOf(c, WEIGHT),
        data<const T>(in(c, DY)), hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr, partial, hasOut(c, DWEIGHT), hasOut(c, DBIAS), rows, n,
        float(attrs<Attrs>(c).eps), lanes);
  });
  return status != MM_OK ? status : addGradients(c, partial, blocks * (256 / lanes));
}

uint64_t backwardWorkspace(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const auto& x = in(c, X);
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  const TeamPlan plan(n, int(v), backwardVectors(n / v));
  const uint64_t bytes = uint64_t(plan.mostBlocks(rowCount(x), deviceOf(c).multiprocessors) * gradientColumns(c)) * sizeof(float);
  const uint64_t loose = looseBackwardWorkspace(c);
  return bytes > loose ? bytes : loose;
}

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
      constexpr int K = decltype(k)::value, R = K == 1 ? 2 : 1;
      const TeamPlan plan(n, V, K);
      const size_t shared = plan.teams > 1 ? size_t(plan.threads) * K * V * sizeof(float) : 0;
      const auto kernel = layerNormBackwardKernel<T, K, R>;
      const int64_t most = plan.mostBlocks(rows, deviceOf(c).multiprocessors), resident = residentBlocks(c, kernel, plan.threads, shared);
      const int64_t blocks = most < resident ? most : resident;
      float* partial = static_cast<float*>(c->workspace);
      const int32_t status = launch(c, kernel, dim3(unsigned(blocks)), dim3(plan.threads), shared, data<const T>(x), w, data<const T>(dy),
          dx, partial, hasOut(c, DWEIGHT), hasOut(c, DBIAS), rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
      return status != MM_OK ? status : addGradients(c, partial, blocks);
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
