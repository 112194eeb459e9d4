// The chunk engine's products and moves between padded buffers.
#pragma once
#include "cpu/chunk_scan/scan.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA::chunk_scan {

// tileMatmul for n a multiple of VL, in the widest columns that fit
inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb,
                    float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + kTileVectors * VL <= n; j += kTileVectors * VL)
    tileColumns<kTileVectors, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
  if constexpr (kTileVectors > 3)
    if (j + 3 * VL <= n) tileColumns<3, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0), j += 3 * VL;
  if constexpr (kTileVectors > 2)
    if (j + 2 * VL <= n) tileColumns<2, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0), j += 2 * VL;
  if (j < n) tileColumns<1, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
}

// att[t][s] = a_t . b_s for the blocks that touch s <= t; bt is b transposed with rows of kChunk
inline void lowerGram(int64_t len, int64_t k, const float* a, int64_t lda, const float* bt, float* att) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, padded(end), k, a + i * lda, lda, 1, bt, kChunk, att + i * kChunk, kChunk, false);
  }
}
// c_t (+)= sum_{s<=t} m[t][s] b_s
inline void lowerApply(int64_t len, int64_t n, const float* m, const float* b, float* c, bool accumulate) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, n, end, m + i * kChunk, kChunk, 1, b, n, c + i * n, n, accumulate);
  }
}
// c_s (+)= sum_{t>=s} m[t][s] b_t
inline void upperApply(int64_t len, int64_t n, const float* m, const float* b, float* c, bool accumulate) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, n, len - i, m + i * kChunk + i, 1, kChunk, b + i * n, n, c + i * n, n, accumulate);
  }
}

// dst rows of ld (padded) floats = src rows * factor (* scale[row])
template <class T>
void loadRows(int64_t rows, int64_t cols, const T* src, int64_t stride, float* dst, int64_t ld, float factor,
              const float* scale) {
  for (int64_t t = 0; t < rows; t++) {
    const vf f = splat(scale ? factor * scale[t] : factor);
    for (int64_t j = 0; j < ld; j += VL) store(dst + t * ld + j, loadUpTo(src + t * stride + j, cols - j) * f);
  }
}
// D of a head as a row of pv
inline void loadSkip(const Scan& s, int64_t head, float* row) {
  if (!s.skip) return;
  const bool wide = s.skip->ndim == 2;
  for (int64_t j = 0; j < s.pv; j++) row[j] = j < s.p ? element(s.skip->data, s.skip->dtype, wide ? head * s.p + j : head) : 0.f;
}
template <class T>
void storeRows(int64_t rows, int64_t cols, const float* src, int64_t ld, T* dst, int64_t stride) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < cols; j += VL) storeUpTo(dst + t * stride + j, load(src + t * ld + j), cols - j);
}
// dst[j][i] = src[i][j]; dst has a multiple of VL columns at least padded(rows), whose surplus is zero; the padded rows
// of dst up to padded(cols) are written too
template <class T>
void loadTransposed(int64_t rows, int64_t cols, const T* src, int64_t stride, float* dst, int64_t ld) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < cols; j += VL) {
      vf x[VL];
      if (i + VL <= rows && j + VL <= cols) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) x[r] = load(src + (i + r) * stride + j);
      } else
        for (int r = 0; r < VL; r++) x[r] = i + r < rows ? loadUpTo(src + (i + r) * stride + j, cols - j) : vf{};
      transposeLanes<VL>(x);
#pragma GCC unroll 16
      for (int r = 0; r < VL; r++) store(dst + (j + r) * ld + i, x[r]);
    }
}
// dst (cols, rows) dense = src (rows, cols) with rows of ld
inline void storeTransposed(int64_t rows, int64_t cols, const float* src, int64_t ld, float* dst) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < cols; j += VL) {
      vf x[VL];
      for (int r = 0; r < VL; r++) x[r] = i + r < rows ? load(src + (i + r) * ld + j) : vf{};
      transposeLanes<VL>(x);
      for (int r = 0; r < VL && j + r < cols; r++) storeUpTo(dst + (j + r) * rows + i, x[r], rows - i);
    }
}
inline void scaleRows(int64_t rows, int64_t ld, float* x, const float* scale) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < ld; j += VL) store(x + t * ld + j, load(x + t * ld + j) * scale[t]);
}
inline void multiply(int64_t count, float* x, const float* by) {
  for (int64_t j = 0; j < count; j += VL) store(x + j, load(x + j) * load(by + j));
}
inline float dot(int64_t count, const float* a, const float* b) {
  vf acc{};
  for (int64_t j = 0; j < count; j += VL) acc = fma(load(a + j), load(b + j), acc);
  return sum(acc);
}

// State of a pair as it stands in memory <-> padded rows: (n, pv), or transposed (p, nv).
inline void loadState(const Scan& s, const float* src, bool transposed, float* dst) {
  const int64_t rows = s.statesByValue ? s.p : s.n, cols = s.statesByValue ? s.n : s.p, ld = transposed ? s.nv : s.pv;
  if (transposed == s.statesByValue) loadRows(rows, cols, src, cols, dst, ld, 1.f, nullptr);
  else loadTransposed(rows, cols, src, cols, dst, ld);
}
inline void storeState(const Scan& s, const float* src, bool transposed, float* dst) {
  const int64_t rows = transposed ? s.p : s.n, cols = transposed ? s.n : s.p, ld = transposed ? s.nv : s.pv;
  if (transposed == s.statesByValue) storeRows(rows, cols, src, ld, dst, cols);
  else storeTransposed(rows, cols, src, ld, dst);
}

// next = total * state + inc. The total is one number (Head), or runs over n: along the rows of a transposed state, by
// row otherwise.
template <Decay KIND>
MM_INLINE vf decayed(vf state, vf inc, const float* total, int64_t row, int64_t j, bool transposed) {
  if (KIND == Decay::None) return state + inc;
  if (KIND == Decay::Head) return fma(splat(total[0]), state, inc);
  return fma(transposed ? load(total + j) : splat(total[row]), state, inc);
}
template <Decay KIND>
void advance(int64_t rows, int64_t ld, const float* total, bool transposed, const float* state, const float* inc, float* next) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i * ld; j < (i + 1) * ld; j += VL)
      store(next + j, decayed<KIND>(load(state + j), load(inc + j), total, i, j - i * ld, transposed));
}

}  // namespace mm::cpu::MM_ISA::chunk_scan
