// posEmbedBicubic: y[v, u] = sum over 4 x 4 taps of wv wu x[row, column], source position (v + 1/2) g / outH - 1/2, cubic
// convolution with A = -0.75, taps clamped to the grid. Backward: each task owns a strip of channels and adds all taps in
// the order of the outputs.
#include "ops/pos_embed_bicubic.h"

#include <cmath>

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kStrip = 64;

struct Taps {
  int64_t index[4];
  float weight[4];

  Taps(int64_t position, int64_t from, int64_t to) {
    const double source = (double(position) + 0.5) * double(from) / double(to) - 0.5;
    const double base = std::floor(source), t = source - base, A = -0.75;
    const auto near = [A](double d) { return ((A + 2) * d - (A + 3)) * d * d + 1; };
    const auto far = [A](double d) { return ((A * d - 5 * A) * d + 8 * A) * d - 4 * A; };
    const double w[4] = {far(t + 1), near(t), near(1 - t), far(2 - t)};
    for (int i = 0; i < 4; i++) {
      const int64_t at = int64_t(base) - 1 + i;
      index[i] = at < 0 ? 0 : at >= from ? from - 1 : at;
      weight[i] = float(w[i]);
    }
  }
};

int64_t gridSide(const MMTensorView& x) {
  int64_t side = 0;
  while (side * side < x.shape[1]) side++;
  return side;
}

int32_t posEmbedBicubic(const MMCall* c) {
  using namespace ops::pos_embed_bicubic;
  const auto &x = in(c, POS_EMBED), &y = out(c, Y);
  const auto& at = attrs<Attrs>(c);
  const int64_t n = x.shape[2], side = gridSide(x);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(at.outH, 1 + 4096 / (at.outW * n + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t v = begin; v < end; v++) {
        const Taps rows(v, side, at.outH);
        for (int64_t u = 0; u < at.outW; u++) {
          const Taps cols(u, side, at.outW);
          for (int64_t j = 0; j < n; j += VL) {
            vf sum{};
            for (int p = 0; p < 4; p++) {
              vf line{};
              for (int q = 0; q < 4; q++) {
                const T* tap = data<T>(x) + (rows.index[p] * side + cols.index[q]) * n;
                line = fma(splat(cols.weight[q]), loadUpTo(tap + j, n - j), line);
              }
              sum = fma(splat(rows.weight[p]), line, sum);
            }
            storeUpTo(data<T>(y) + (v * at.outW + u) * n + j, sum, n - j);
          }
        }
      }
    });
  });
  return MM_OK;
}

int32_t posEmbedBicubicBackward(const MMCall* c) {
  using namespace ops::pos_embed_bicubic_bwd;
  if (!hasOut(c, DPOS_EMBED)) return MM_OK;
  const auto &dy = in(c, DY), &dx = out(c, DPOS_EMBED);
  const auto& at = attrs<Attrs>(c);
  const int64_t n = dx.shape[2], side = gridSide(dx);
  std::memset(dx.data, 0, size_t(numel(dx)) * sizeof(float));
  dispatchFloat(dy.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor((n + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * kStrip, last = end * kStrip < n ? end * kStrip : n;
      for (int64_t v = 0; v < at.outH; v++) {
        const Taps rows(v, side, at.outH);
        for (int64_t u = 0; u < at.outW; u++) {
          const Taps cols(u, side, at.outW);
          const T* from = data<T>(dy) + (v * at.outW + u) * n;
          for (int p = 0; p < 4; p++)
            for (int q = 0; q < 4; q++) {
              const vf w = splat(rows.weight[p] * cols.weight[q]);
              float* to = data<float>(dx) + (rows.index[p] * side + cols.index[q]) * n;
              for (int64_t j = first; j < last; j += VL)
                storeUpTo(to + j, fma(w, loadUpTo(from + j, last - j), loadUpTo(to + j, last - j)), last - j);
            }
        }
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(pos_embed_bicubic, {"posEmbedBicubic", "taps", nullptr, nullptr, posEmbedBicubic},
               {"posEmbedBicubicBackward", "strips", nullptr, nullptr, posEmbedBicubicBackward})
