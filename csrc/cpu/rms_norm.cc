// rmsNorm and its gradient, one pass a row: y = x r w with r = 1 / sqrt(mean(x^2) + eps).
// dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r.
#include "ops/rms_norm.h"

#include <cmath>

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

template <class T>
float inverseRms(const T* x, int64_t n, float eps) {
  vf acc{};
  for (int64_t j = 0; j < n; j += VL) {
    const vf v = loadUpTo(x + j, n - j);
    acc = fma(v, v, acc);
  }
  return 1.f / std::sqrt(sum(acc) / float(n) + eps);
}

int32_t rmsNorm(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &w = in(c, WEIGHT), &y = out(c, Y);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x), rows = n ? numel(x) / n : 0;
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      using W = decltype(s);
      parallelFor(rows, 1 + 16384 / (n + 1), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
          const T* px = data<T>(x) + i * n;
          const float r = inverseRms(px, n, eps);
          for (int64_t j = 0; j < n; j += VL)
            storeUpTo(data<T>(y) + i * n + j, loadUpTo(px + j, n - j) * r * loadUpTo(data<W>(w) + j, n - j), n - j);
        }
      });
    });
  });
  return MM_OK;
}

// Rows are summed in blocks of this many whatever the number of threads, so that dw has the same bits everywhere.
constexpr int64_t kBlock = 64;

uint64_t rmsNormBackwardWorkspace(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto& x = in(c, X);
  const int64_t n = lastDim(x), rows = n ? numel(x) / n : 0;
  return hasOut(c, DWEIGHT) ? uint64_t((rows + kBlock - 1) / kBlock) * n * sizeof(float) : 0;
}

int32_t rmsNormBackward(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto &x = in(c, X), &w = in(c, WEIGHT), &dy = in(c, DY);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x), rows = n ? numel(x) / n : 0, blocks = (rows + kBlock - 1) / kBlock;
  const bool wantDx = hasOut(c, DX), wantDw = hasOut(c, DWEIGHT);
  float* partial = static_cast<float*>(c->workspace);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      using W = decltype(s);
      parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; b++) {
          float* dw = partial + b * n;
          if (wantDw) std::memset(dw, 0, size_t(n) * sizeof(float));
          for (int64_t i = b * kBlock; i < rows && i < (b + 1) * kBlock; i++) {
            const T *px = data<T>(x) + i * n, *pd = data<T>(dy) + i * n;
            const float r = inverseRms(px, n, eps);
            vf acc{};
            for (int64_t j = 0; j < n; j += VL)
              acc = fma(loadUpTo(px + j, n - j) * loadUpTo(pd + j, n - j), loadUpTo(data<W>(w) + j, n - j), acc);
            const float mean = sum(acc) * r * r / float(n);
            for (int64_t j = 0; j < n; j += VL) {
              const vf vx = loadUpTo(px + j, n - j), vd = loadUpTo(pd + j, n - j);
              if (wantDx)
                storeUpTo(data<T>(out(c, DX)) + i * n + j, r * (loadUpTo(data<W>(w) + j, n - j) * vd - vx * mean), n - j);
              if (wantDw) storeUpTo(dw + j, loadUpTo(dw + j, n - j) + vd * vx * r, n - j);
            }
          }
        }
      });
    });
  });
  if (wantDw) {
    float* dw = data<float>(out(c, DWEIGHT));
    std::memset(dw, 0, size_t(n) * sizeof(float));
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t j = 0; j < n; j += VL) storeUpTo(dw + j, loadUpTo(dw + j, n - j) + loadUpTo(partial + b * n + j, n - j), n - j);
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(rms_norm, {"rmsNorm", "rows", nullptr, nullptr, rmsNorm},
               {"rmsNormBackward", "rows", nullptr, rmsNormBackwardWorkspace, rmsNormBackward})
