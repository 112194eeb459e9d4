// rmsNorm and its gradient: y = x r w with r = 1 / sqrt(mean(x^2) + eps).
// dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r.
#include "ops/rms_norm.h"

#include <cmath>

#include "cpu/norm.h"

namespace mm::cpu::MM_ISA {
namespace {

int32_t rmsNorm(const MMCall* c) {
  using namespace ops::rms_norm;
  const auto &x = in(c, X), &w = in(c, WEIGHT), &y = out(c, Y);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      const auto* pw = data<const decltype(s)>(w);
      eachRowGroup(rowCount(x), n, [&](int64_t first, int64_t rows) {
        const T* px = data<const T>(x) + first * n;
        T* py = data<T>(y) + first * n;
        float sums[1][VL];
        rowSums<1>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
          const vf v = at.load(px + i * n + j);
          acc[0] = fma(v, v, acc[0]);
        });
        for (int64_t i = 0; i < rows; i++) {
          const float r = 1.f / std::sqrt(sums[0][i] / float(n) + eps);
          eachVector(n, [&](auto at, int64_t j) { at.store(py + i * n + j, at.load(px + i * n + j) * r * at.load(pw + j)); });
        }
      });
    });
  });
  return MM_OK;
}

uint64_t rmsNormBackwardWorkspace(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  return hasOut(c, DWEIGHT) ? partialBytes(rowCount(in(c, X)), lastDim(in(c, X)), 1) : 0;
}

int32_t rmsNormBackward(const MMCall* c) {
  using namespace ops::rms_norm_bwd;
  const auto &x = in(c, X), &w = in(c, WEIGHT), &dy = in(c, DY);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x), all = rowCount(x);
  const bool wantDx = hasOut(c, DX), wantDw = hasOut(c, DWEIGHT);
  float* partials = static_cast<float*>(c->workspace);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      const auto* pw = data<const decltype(s)>(w);
      eachRowBlock(all, wantDw ? n : 0, partials, [&](int64_t first, int64_t rows, float* dw) {
        const T *px = data<const T>(x) + first * n, *pd = data<const T>(dy) + first * n;
        T* dx = wantDx ? data<T>(out(c, DX)) + first * n : nullptr;
        float sums[2][VL];
        rowSums<2>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
          const vf v = at.load(px + i * n + j);
          acc[0] = fma(v, v, acc[0]);
          acc[1] = fma(v * at.load(pd + i * n + j), at.load(pw + j), acc[1]);
        });
        for (int64_t i = 0; i < rows; i++) {
          const float r = 1.f / std::sqrt(sums[0][i] / float(n) + eps), mean = sums[1][i] * r * r / float(n);
          const T *xi = px + i * n, *di = pd + i * n;
          eachVector(n, [&](auto at, int64_t j) {
            const vf vx = at.load(xi + j), vd = at.load(di + j);
            if (wantDx) at.store(dx + i * n + j, r * (at.load(pw + j) * vd - vx * mean));
            if (wantDw) at.store(dw + j, at.load(dw + j) + vd * vx * r);
          });
        }
      });
    });
  });
  if (wantDw) addPartials(all, n, partials, data<float>(out(c, DWEIGHT)), n);
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(rms_norm, {"rmsNorm", "rows", nullptr, nullptr, rmsNorm},
               {"rmsNormBackward", "rows", nullptr, rmsNormBackwardWorkspace, rmsNormBackward})
