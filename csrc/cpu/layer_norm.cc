// layerNorm and its gradient: y = h w + b with h = (x - mean) r, r = 1 / sqrt(var + eps); the variance is summed from
// centred values. With g = w dy: dx = r (g - mean(g) - h mean(g h)), dw = sum over rows of dy h, db = sum of dy.
#include "ops/layer_norm.h"

#include <cmath>

#include "cpu/norm.h"

namespace mm::cpu::MM_ISA {
namespace {

// mean and 1 / sqrt(var + eps) of up to VL rows of x
template <class T>
MM_INLINE void moments(const T* x, int64_t rows, int64_t n, float eps, float* mean, float* r) {
  float sums[1][VL];
  rowSums<1>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) { acc[0] += at.load(x + i * n + j); });
  for (int i = 0; i < VL; i++) mean[i] = sums[0][i] / float(n);
  rowSums<1>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
    const vf v = at.inside(at.load(x + i * n + j) - mean[i]);
    acc[0] = fma(v, v, acc[0]);
  });
  for (int i = 0; i < VL; i++) r[i] = 1.f / std::sqrt(sums[0][i] / float(n) + eps);
}

// f(weight): a functor that loads a weight vector, or ones where there is none
template <class F>
void dispatchWeight(const MMCall* c, int slot, F&& f) {
  if (!has(c, slot)) return f([](auto, int64_t) { return splat(1.f); });
  dispatchFloat(in(c, slot).dtype, [&](auto s) {
    const auto* p = data<const decltype(s)>(in(c, slot));
    f([p](auto at, int64_t j) { return at.load(p + j); });
  });
}

int32_t layerNorm(const MMCall* c) {
  using namespace ops::layer_norm;
  const auto &x = in(c, X), &y = out(c, Y);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchWeight(c, WEIGHT, [&](auto weight) {
      const auto rows = [&](auto bias) {
        eachRowGroup(rowCount(x), n, [&](int64_t first, int64_t count) {
          const T* px = data<const T>(x) + first * n;
          T* py = data<T>(y) + first * n;
          float mean[VL], r[VL];
          moments(px, count, n, eps, mean, r);
          for (int64_t i = 0; i < count; i++)
            eachVector(n, [&](auto at, int64_t j) {
              at.store(py + i * n + j, fma((at.load(px + i * n + j) - mean[i]) * r[i], weight(at, j), bias(at, j)));
            });
        });
      };
      if (!has(c, BIAS)) return rows([](auto, int64_t) { return vf{}; });
      dispatchWeight(c, BIAS, rows);
    });
  });
  return MM_OK;
}

uint64_t layerNormBackwardWorkspace(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  return partialBytes(rowCount(in(c, X)), lastDim(in(c, X)), hasOut(c, DWEIGHT) + hasOut(c, DBIAS));
}

int32_t layerNormBackward(const MMCall* c) {
  using namespace ops::layer_norm_bwd;
  const auto &x = in(c, X), &dy = in(c, DY);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x), all = rowCount(x);
  const bool wantDx = hasOut(c, DX), wantDw = hasOut(c, DWEIGHT), wantDb = hasOut(c, DBIAS);
  const int64_t floats = (wantDw + wantDb) * n;
  float* partials = static_cast<float*>(c->workspace);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchWeight(c, WEIGHT, [&](auto weight) {
      eachRowBlock(all, floats, partials, [&](int64_t first, int64_t rows, float* partial) {
        const T *px = data<const T>(x) + first * n, *pd = data<const T>(dy) + first * n;
        T* dx = wantDx ? data<T>(out(c, DX)) + first * n : nullptr;
        float *dw = partial, *db = partial + (wantDw ? n : 0);
        float mean[VL], r[VL], sums[2][VL];
        moments(px, rows, n, eps, mean, r);
        rowSums<2>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
          const vf g = at.load(pd + i * n + j) * weight(at, j);
          acc[0] += g;
          acc[1] = fma(g, at.load(px + i * n + j) - mean[i], acc[1]);
        });
        for (int64_t i = 0; i < rows; i++) {
          const float meanG = sums[0][i] / float(n), meanGh = sums[1][i] * r[i] / float(n);
          eachVector(n, [&](auto at, int64_t j) {
            const vf d = at.load(pd + i * n + j), h = (at.load(px + i * n + j) - mean[i]) * r[i];
            if (wantDx) at.store(dx + i * n + j, r[i] * (d * weight(at, j) - meanG - h * meanGh));
            if (wantDw) at.store(dw + j, at.load(dw + j) + d * h);
            if (wantDb) at.store(db + j, at.load(db + j) + d);
          });
        }
      });
    });
  });
  if (wantDw) addPartials(all, floats, partials, data<float>(out(c, DWEIGHT)), n);
  if (wantDb) addPartials(all, floats, partials + (wantDw ? n : 0), data<float>(out(c, DBIAS)), n);
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(layer_norm, {"layerNorm", "rows", nullptr, nullptr, layerNorm},
               {"layerNormBackward", "rows", nullptr, layerNormBackwardWorkspace, layerNormBackward})
