// rope: for every head of a token, y1 = x1 c1 - x2 s1 and y2 = x2 c2 + x1 s2 with the halves x1, x2 and the row of the
// tables at the token's position; its transpose (the gradient) is x1 = y1 c1 + y2 s2, x2 = y2 c2 - y1 s1. Work goes by
// token, so that a row of the tables is read once for all heads; memory is touched once, by strides.
#include "ops/rope.h"

#include <cmath>

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

enum class Turn { Forward, Back, Transposed, TransposedBack };

// y1 = x1 a + x2 b, y2 = x2 c + x1 d with the coefficients of the turn
template <Turn TURN>
MM_INLINE void rotate(vf x1, vf x2, vf c1, vf c2, vf s1, vf s2, vf& y1, vf& y2) {
  if constexpr (TURN == Turn::Back || TURN == Turn::TransposedBack) s1 = -s1, s2 = -s2;
  if constexpr (TURN == Turn::Transposed || TURN == Turn::TransposedBack) {
    const vf s = s1;
    s1 = -s2, s2 = -s;
  }
  y1 = x1 * c1 - x2 * s1;
  y2 = x2 * c2 + x1 * s2;
}

template <class T, Turn TURN>
void rotateHeads(const MMTensorView& x, const MMTensorView& y, int64_t b, int64_t l, const float* cos, const float* sin) {
  const int64_t half = x.shape[3] / 2;
  for (int64_t h = 0; h < x.shape[1]; h++) {
    const T* px = data<const T>(x) + b * x.stride[0] + h * x.stride[1] + l * x.stride[2];
    T* py = data<T>(y) + b * y.stride[0] + h * y.stride[1] + l * y.stride[2];
    for (int64_t j = 0; j < half; j += VL) {
      const int64_t n = half - j;
      vf y1, y2;
      rotate<TURN>(loadUpTo(px + j, n), loadUpTo(px + half + j, n), loadUpTo(cos + j, n), loadUpTo(cos + half + j, n),
                   loadUpTo(sin + j, n), loadUpTo(sin + half + j, n), y1, y2);
      storeUpTo(py + j, y1, n);
      storeUpTo(py + half + j, y2, n);
    }
  }
}

template <class T, Turn TURN>
void rotateAll(const MMTensorView* const (&x)[2], const MMTensorView* const (&y)[2], const MMTensorView& cos,
               const MMTensorView& sin, const MMTensorView& ids) {
  const MMTensorView& any = *(x[0] ? x[0] : x[1]);
  const int64_t batch = any.shape[0], length = any.shape[2], dim = any.shape[3];
  const int64_t heads = (x[0] ? x[0]->shape[1] : 0) + (x[1] ? x[1]->shape[1] : 0);
  parallelFor(batch * length, 1 + 16384 / (heads * dim + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / length, l = i % length;
      const int64_t row = int64_t(data<int32_t>(ids)[(ids.shape[0] == 1 ? 0 : b) * length + l]) * dim;
      for (int k = 0; k < 2; k++)
        if (x[k]) rotateHeads<T, TURN>(*x[k], *y[k], b, l, data<float>(cos) + row, data<float>(sin) + row);
    }
  });
}

int32_t turn(const MMCall* c, Turn turn, const MMTensorView* const (&x)[2], const MMTensorView* const (&y)[2],
             const MMTensorView& cos, const MMTensorView& sin, const MMTensorView& ids) {
  for (int64_t i = 0; i < numel(ids); i++) {
    const int32_t p = data<int32_t>(ids)[i];
    if (p < 0 || p >= cos.shape[0])
      return fail(c, "positionIds holds %d; the tables cos and sin have rows 0 to %lld", p, (long long)cos.shape[0] - 1);
  }
  if (!x[0] && !x[1]) return MM_OK;
  dispatchFloat((x[0] ? x[0] : x[1])->dtype, [&](auto t) {
    using T = decltype(t);
    switch (turn) {
      case Turn::Forward: return rotateAll<T, Turn::Forward>(x, y, cos, sin, ids);
      case Turn::Back: return rotateAll<T, Turn::Back>(x, y, cos, sin, ids);
      case Turn::Transposed: return rotateAll<T, Turn::Transposed>(x, y, cos, sin, ids);
      default: return rotateAll<T, Turn::TransposedBack>(x, y, cos, sin, ids);
    }
  });
  return MM_OK;
}

int32_t rope(const MMCall* c) {
  using namespace ops::rope;
  const MMTensorView* const x[2] = {&in(c, Q), &in(c, K)};
  const MMTensorView* const y[2] = {&out(c, Q_EMBED), &out(c, K_EMBED)};
  return turn(c, attrs<Attrs>(c).inverse ? Turn::Back : Turn::Forward, x, y, in(c, COS), in(c, SIN), in(c, POSITION_IDS));
}

int32_t ropeBackward(const MMCall* c) {
  using namespace ops::rope_bwd;
  const bool q = hasOut(c, DQ), k = hasOut(c, DK);
  const MMTensorView* const x[2] = {q ? &in(c, D_Q_EMBED) : nullptr, k ? &in(c, D_K_EMBED) : nullptr};
  const MMTensorView* const y[2] = {q ? &out(c, DQ) : nullptr, k ? &out(c, DK) : nullptr};
  return turn(c, attrs<Attrs>(c).inverse ? Turn::TransposedBack : Turn::Transposed, x, y, in(c, COS), in(c, SIN),
              in(c, POSITION_IDS));
}

// Frequencies and angles in f32, operation by operation as the reference; only cos and sin of an angle are in double.
int32_t ropeTable(const MMCall* c) {
  using namespace ops::rope_table;
  const Attrs& a = attrs<Attrs>(c);
  const auto &cos = out(c, COS), &sin = out(c, SIN);
  const int64_t dim = a.headDim, half = dim / 2;
  double base = a.theta;
  if (a.scaling == DYNAMIC && a.seqLen > a.maxPosition)
    base *= std::pow(a.factor * double(a.seqLen) / double(a.maxPosition) - (a.factor - 1), double(dim) / double(dim - 2));
  constexpr int64_t block = 64;  // rows that share the computation of a frequency
  const int64_t rows = cos.shape[0];
  parallelFor((rows + block - 1) / block, 1, [&](int64_t begin, int64_t end, int) {
    const int64_t last = rows < end * block ? rows : end * block;
    for (int64_t first = begin * block; first < last; first += block)
      for (int64_t i = 0; i < half; i++) {
        const float frequency = 1.f / std::pow(float(base), float(2 * i) / float(dim));
        for (int64_t t = first; t < last && t < first + block; t++) {
          const float position = a.scaling == LINEAR ? float(t) / float(a.factor) : float(t);
          const double angle = position * frequency;
          float *pc = data<float>(cos) + t * dim + i, *ps = data<float>(sin) + t * dim + i;
          pc[0] = pc[half] = float(std::cos(angle));
          ps[0] = ps[half] = float(std::sin(angle));
        }
      }
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(rope, {"rope", "tokens", nullptr, nullptr, rope}, {"ropeBackward", "tokens", nullptr, nullptr, ropeBackward},
               {"ropeTable", "rows", nullptr, nullptr, ropeTable})
