// What the row norms share. VL rows are taken together: their sums come out of one exchange of lanes instead of a
// horizontal sum each, which would cost more than a short row itself. Gradients of the parameter vectors are summed
// over fixed blocks of rows, and the blocks in order: the same bits for any number of threads.
#pragma once
#include "cpu/kernel.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA {

struct WholeVector {
  template <class T>
  MM_INLINE vf load(const T* p) const {
    return MM_ISA::load(p);
  }
  template <class T>
  MM_INLINE void store(T* p, vf x) const {
    MM_ISA::store(p, x);
  }
  MM_INLINE vf inside(vf x) const { return x; }
};
struct PartVector {
  int n;
  template <class T>
  MM_INLINE vf load(const T* p) const {
    return loadPartial(p, n);
  }
  template <class T>
  MM_INLINE void store(T* p, vf x) const {
    storePartial(p, x, n);
  }
  MM_INLINE vf inside(vf x) const { return select(laneIndex() < n, x, vf{}); }  // zero past the row
};
// f(at, j) for the vectors of a row: at.load(p + j), at.store(p + j, x). Lanes past the row load as zero.
template <class F>
MM_INLINE void eachVector(int64_t n, F&& f) {
  int64_t j = 0;
  for (; j + VL <= n; j += VL) f(WholeVector{}, j);
  if (j < n) f(PartVector{int(n - j)}, j);
}

// sums[k][i] = sum over row i of what f(at, i, j, acc) adds to acc[k]; i < rows <= VL.
template <int K, class F>
MM_INLINE void rowSums(int64_t rows, int64_t n, float (&sums)[K][VL], F&& f) {
  vf lanes[K][VL] = {};
  for (int64_t i = 0; i < rows; i++) {
    vf acc[K] = {};
    eachVector(n, [&](auto at, int64_t j) { f(at, i, j, acc); });
    for (int k = 0; k < K; k++) lanes[k][i] = acc[k];
  }
  for (int k = 0; k < K; k++) store(sums[k], sumLanes(lanes[k]));
}

// f(first row, rows <= VL) over all rows, in parallel
template <class F>
void eachRowGroup(int64_t rows, int64_t n, F&& f) {
  parallelFor((rows + VL - 1) / VL, 1 + 16384 / (VL * n + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * VL; i < rows && i < end * VL; i += VL) f(i, rows - i < VL ? rows - i : VL);
  });
}

// Gradients of K parameter vectors of n channels.
constexpr int64_t kNormBlock = 64;  // rows of a partial sum
inline uint64_t partialBytes(int64_t rows, int64_t n, int vectors) {
  return uint64_t((rows + kNormBlock - 1) / kNormBlock * n * vectors) * sizeof(float);
}
// f(first row, rows <= VL, float* partial): groups of one block in order, on a zeroed partial of `floats` floats
template <class F>
void eachRowBlock(int64_t rows, int64_t floats, float* partials, F&& f) {
  parallelFor((rows + kNormBlock - 1) / kNormBlock, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; b++) {
      float* partial = partials + b * floats;
      if (floats) std::memset(partial, 0, size_t(floats) * sizeof(float));
      for (int64_t i = b * kNormBlock; i < rows && i < (b + 1) * kNormBlock; i += VL)
        f(i, rows - i < VL ? rows - i : VL, partial);
    }
  });
}
// to[j] = sum over blocks of partials[b * floats + j]
inline void addPartials(int64_t rows, int64_t floats, const float* partials, float* to, int64_t n) {
  const int64_t blocks = (rows + kNormBlock - 1) / kNormBlock;
  constexpr int64_t columns = 4 * VL;
  parallelFor((n + columns - 1) / columns, 1 + 4096 / (blocks + 1), [&](int64_t begin, int64_t end, int) {
    const int64_t first = begin * columns, last = n < end * columns ? n : end * columns;
    eachVector(last - first, [&](auto at, int64_t j) {
      vf acc{};
      for (int64_t b = 0; b < blocks; b++) acc += at.load(partials + b * floats + first + j);
      at.store(to + first + j, acc);
    });
  });
}

}  // namespace mm::cpu::MM_ISA
