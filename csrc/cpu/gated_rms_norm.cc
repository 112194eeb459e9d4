// gatedRmsNorm and its gradient: y = x r w s(g) with r = 1 / sqrt(mean(x^2) + eps), s(g) = g sigmoid(g). x, gate and dY
// are walked by their strides, because x is often a slice of a fused projection. With e = dy s(g):
// dx = r (w e - x r^2 mean(w e x)), dg = dy x r w s'(g), dw = sum over rows of e x r. s(g) is computed twice, which
// costs less than a scratch row.
#include "ops/gated_rms_norm.h"

#include <cmath>

#include "cpu/norm.h"
#include "cpu/strided.h"

namespace mm::cpu::MM_ISA {
namespace {

// The rows of K operands of one shape: offsets of up to VL of them.
template <int K>
struct StridedRows {
  Nest<K> nest;
  explicit StridedRows(const MMTensorView* const (&views)[K]) {
    for (int i = 0; i + 1 < views[0]->ndim; i++) {
      int64_t strides[K];
      for (int k = 0; k < K; k++) strides[k] = views[k]->stride[i];
      nest.push(views[0]->shape[i], strides);
    }
    nest.coalesce();
  }
  void offsets(int64_t first, int64_t rows, int64_t (*at)[K]) const {
    Cursor<K> cursor(nest, nest.ndim, first);
    for (int64_t i = 0; i < rows; i++, cursor.next())
      for (int k = 0; k < K; k++) at[i][k] = cursor.offset[k];
  }
};

int32_t gatedRmsNorm(const MMCall* c) {
  using namespace ops::gated_rms_norm;
  const auto &x = in(c, X), &gate = in(c, GATE), &w = in(c, WEIGHT), &y = out(c, Y);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x);
  const StridedRows<2> strided({&x, &gate});
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      const auto* pw = data<const decltype(s)>(w);
      eachRowGroup(rowCount(x), n, [&](int64_t first, int64_t rows) {
        int64_t offset[VL][2];
        strided.offsets(first, rows, offset);
        float sums[1][VL];
        rowSums<1>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
          const vf v = at.load(data<const T>(x) + offset[i][0] + j);
          acc[0] = fma(v, v, acc[0]);
        });
        for (int64_t i = 0; i < rows; i++) {
          const float r = 1.f / std::sqrt(sums[0][i] / float(n) + eps);
          const T *px = data<const T>(x) + offset[i][0], *pg = data<const T>(gate) + offset[i][1];
          T* py = data<T>(y) + (first + i) * n;
          eachVector(
              n, [&](auto at, int64_t j) { at.store(py + j, at.load(px + j) * r * at.load(pw + j) * silu(at.load(pg + j))); });
        }
      });
    });
  });
  return MM_OK;
}

uint64_t gatedRmsNormBackwardWorkspace(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  return hasOut(c, DWEIGHT) ? partialBytes(rowCount(in(c, X)), lastDim(in(c, X)), 1) : 0;
}

int32_t gatedRmsNormBackward(const MMCall* c) {
  using namespace ops::gated_rms_norm_bwd;
  const auto &x = in(c, X), &gate = in(c, GATE), &w = in(c, WEIGHT), &dy = in(c, DY);
  const float eps = float(attrs<Attrs>(c).eps);
  const int64_t n = lastDim(x), all = rowCount(x);
  const bool wantDx = hasOut(c, DX), wantDg = hasOut(c, DGATE), wantDw = hasOut(c, DWEIGHT);
  float* partials = static_cast<float*>(c->workspace);
  const StridedRows<3> strided({&x, &gate, &dy});
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    dispatchFloat(w.dtype, [&](auto s) {
      const auto* pw = data<const decltype(s)>(w);
      eachRowBlock(all, wantDw ? n : 0, partials, [&](int64_t first, int64_t rows, float* dw) {
        int64_t offset[VL][3];
        strided.offsets(first, rows, offset);
        float sums[2][VL];
        rowSums<2>(rows, n, sums, [&](auto at, int64_t i, int64_t j, vf* acc) {
          const vf v = at.load(data<const T>(x) + offset[i][0] + j);
          acc[0] = fma(v, v, acc[0]);
          if (!wantDx) return;
          const vf e = at.load(data<const T>(dy) + offset[i][2] + j) * silu(at.load(data<const T>(gate) + offset[i][1] + j));
          acc[1] = fma(v * e, at.load(pw + j), acc[1]);
        });
        for (int64_t i = 0; i < rows; i++) {
          const float r = 1.f / std::sqrt(sums[0][i] / float(n) + eps), mean = sums[1][i] * r * r / float(n);
          const T *px = data<const T>(x) + offset[i][0], *pg = data<const T>(gate) + offset[i][1];
          const T* pd = data<const T>(dy) + offset[i][2];
          T* dx = wantDx ? data<T>(out(c, DX)) + (first + i) * n : nullptr;
          T* dg = wantDg ? data<T>(out(c, DGATE)) + (first + i) * n : nullptr;
          eachVector(n, [&](auto at, int64_t j) {
            const vf vx = at.load(px + j), vg = at.load(pg + j), vd = at.load(pd + j), vw = at.load(pw + j);
            const vf sig = sigmoid(vg), e = vd * vg * sig;
            if (wantDx) at.store(dx + j, r * (vw * e - vx * mean));
            if (wantDg) at.store(dg + j, vd * vx * r * vw * sig * (1.f + vg * (1.f - sig)));
            if (wantDw) at.store(dw + j, at.load(dw + j) + e * vx * r);
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

MM_CPU_KERNELS(gated_rms_norm, {"gatedRmsNorm", "rows", nullptr, nullptr, gatedRmsNorm},
               {"gatedRmsNormBackward", "rows", nullptr, gatedRmsNormBackwardWorkspace, gatedRmsNormBackward})
