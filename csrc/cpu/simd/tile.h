// Small f32 matrix products inside kernels (chunks of SSD, blocks of attention): operands in cache, no packing, one
// thread. A is read by two strides, so that it may be transposed; B must have dense rows (transpose() makes them).
// Large dense products belong to cpu/gemm.h.
#pragma once
#include "cpu/simd/vec.h"

namespace mm::cpu::MM_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2;  // 12 of 16
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

template <int MR, int NV, bool TAIL>
MM_INLINE void tileBlock(int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb, float* c, int64_t ldc,
                         bool accumulate, int tail) {
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      const float* p = c + i * ldc + j * VL;
      acc[i][j] = !accumulate ? vf{} : TAIL && j == NV - 1 ? loadPartial(p, tail) : load(p);
    }
  for (int64_t p = 0; p < k; p++) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = TAIL && j == NV - 1 ? loadPartial(b + p * ldb + j * VL, tail) : load(b + p * ldb + j * VL);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      const vf av = splat(a[i * ars + p * acs]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = fma(av, bv[j], acc[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* p = c + i * ldc + j * VL;
      if (TAIL && j == NV - 1) storePartial(p, acc[i][j], tail);
      else store(p, acc[i][j]);
    }
}

template <int NV, bool TAIL>
MM_INLINE void tileColumns(int64_t m, int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb, float* c,
                           int64_t ldc, bool accumulate, int tail) {
  int64_t i = 0;
  for (; i + kTileRows <= m; i += kTileRows) tileBlock<kTileRows, NV, TAIL>(k, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate, tail);
  for (; i + 2 <= m; i += 2) tileBlock<2, NV, TAIL>(k, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate, tail);
  if (i < m) tileBlock<1, NV, TAIL>(k, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate, tail);
}

// C[i][j] = (accumulate ? C[i][j] : 0) + sum_p A[i][p] B[p][j], i < m, j < n, p < k; A[i][p] = a[i * ars + p * acs].
inline void tileMatmul(int64_t m, int64_t n, int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb,
                       float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  constexpr int wide = kTileVectors * VL;
  for (; j + wide <= n; j += wide) tileColumns<kTileVectors, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
  for (; j + VL <= n; j += VL) tileColumns<1, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
  if (j < n) tileColumns<1, true>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, int(n - j));
}

// dst[j][i] = src[i][j], i < rows, j < cols, with conversion to f32
template <class T>
inline void transpose(int64_t rows, int64_t cols, const T* src, int64_t lds, float* dst, int64_t ldd) {
  constexpr int64_t block = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += block)
    for (int64_t j0 = 0; j0 < cols; j0 += block) {
      const int64_t i1 = i0 + block < rows ? i0 + block : rows, j1 = j0 + block < cols ? j0 + block : cols;
      for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < j1; j++) dst[j * ldd + i] = toF32(src[i * lds + j]);
    }
}
// dst[i][j] = src[i][j] * scale, with conversion to f32
template <class T>
inline void convertRows(int64_t rows, int64_t cols, const T* src, int64_t lds, float* dst, int64_t ldd, float scale = 1.f) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j += VL) storeUpTo(dst + i * ldd + j, loadUpTo(src + i * lds + j, cols - j) * scale, cols - j);
}

}  // namespace mm::cpu::MM_ISA
