#include "cuda/rms_norm.cuh"

#include "ops/rms_norm.h"

namespace mm::cuda {
namespace {

int32_t looseForward(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, rmsNormLooseKernel<T>, dim3(unsigned(looseBlocks(rows, n, 0, 0))), dim3(256), 0, data<const T>(x),
        Weights(in(c, WEIGHT)), data<T>(y), rows, n, float(attrs<Attrs>(c).eps), looseLanes(n));
  });
}

// The vectors a lane holds: few enough for a warp, then for a block of 512.
int forwardVectors(int64_t vectors) { return vectors <= 256 ? int(ceilDiv(vectors, 32)) : vectors <= 2048 ? 4 : 8; }
int backwardVectors(int64_t vectors) { return vectors <= 32 ? 1 : vectors <= 1024 ? 2 : 4; }

int32_t fitsForward(const MMCall* c) {
  const auto& x = in(c, ops::rms_norm::X);
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  return n % v == 0 && n / v <= 8 * 512;
}

int32_t forward(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const Weights w(in(c, WEIGHT));
  const int64_t rows = rowCount(x), n = lastDim(x);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    if (!aligned(16, data<T>(x), data<T>(y)) || !w.vectors(V)) return looseForward(c);
    return dispatchSize<1, 2, 4, 8>(forwardVectors(n / V), [&](auto k) {
      constexpr int K = decltype(k)::value, R = K < 4 ? 4 / K : 1;
      const TeamPlan plan(n, V, K);
      const int64_t blocks = plan.blocks(rows, R, deviceOf(c).multiprocessors);
      return launch(c, rmsNormKernel<T, K, R>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(x), w, data<T>(y), rows, n,
          float(attrs<Attrs>(c).eps), plan.lanes);
    });
  });
}

uint64_t looseBackwardWorkspace(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const int64_t rows = rowCount(in(c, X)), n = lastDim(in(c, X));
  if (!hasOut(c, DWEIGHT)) return 0;
  return uint64_t(looseBlocks(rows, n, n, deviceOf(c).multiprocessors) * (256 / looseLanes(n)) * n) * sizeof(float);
}

int32_t looseBackward(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto& x = in(c, X);
  const int64_t rows = rowCount(x), n = lastDim(x);
  float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
  const int64_t blocks = looseBlocks(rows, n, partial ? n : 0, deviceOf(c).multiprocessors), lanes = looseLanes(n);
  const int32_t status = dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, rmsNormBackwardLooseKernel<T>, dim3(unsigned(blocks)), dim3(256), 0, data<const T>(x), Weights(in(c, WEIGHT)),
        data<const T>(in(c, DY)), hasOut(c, DX) ? data<T>(out(c, DX)) : nullptr, partial, rows, n, float(attrs<Attrs>(c).eps), lanes);
  });
  if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
  return addPartials(c, partial, data<float>(out(c, DWEIGHT)), blocks * (256 / lanes), n);
}

int32_t fitsBackward(const MMCall* c) {
  const auto& x = in(c, ops::rms_norm_bwd::X);
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  return n % v == 0 && n / v <= 4 * 512;
}

uint64_t backwardWorkspace(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto& x = in(c, X);
  if (!hasOut(c, DWEIGHT)) return 0;
  const int64_t n = lastDim(x), v = x.dtype == MM_F32 ? 4 : 8;
  const TeamPlan plan(n, int(v), backwardVectors(n / v));
  const uint64_t bytes = uint64_t(plan.mostBlocks(rowCount(x), deviceOf(c).multiprocessors) * n) * sizeof(float),
      loose = looseBackwardWorkspace(c);
  return bytes > loose ? bytes : loose;
}

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
      constexpr int K = decltype(k)::value, R = 4 / K;
      const TeamPlan plan(n, V, K);
      const size_t shared = plan.teams > 1 ? size_t(plan.threads) * K * V * sizeof(float) : 0;
      const auto kernel = rmsNormBackwardKernel<T, K, R>;
      const int64_t most = plan.mostBlocks(rows, deviceOf(c).multiprocessors), resident = residentBlocks(c, kernel, plan.threads, shared);
      const int64_t blocks = most < resident ? most : resident;
      float* partial = hasOut(c, DWEIGHT) ? static_cast<float*>(c->workspace) : nullptr;
      const int32_t status = launch(c, kernel, dim3(unsigned(blocks)), dim3(plan.threads), shared, data<const T>(x), w, data<const T>(dy),
          dx, partial, rows, n, float(attrs<Attrs>(c).eps), plan.lanes);
      if (status != MM_OK || !hasOut(c, DWEIGHT)) return status;
      return addPartials(c, partial, data<float>(out(c, DWEIGHT)), blocks, n);
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
