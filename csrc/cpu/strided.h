// Loop nests over strided operands, and the copy between any two layouts that is built on them.
//
// Axes of size 1 are dropped and neighbours that all operands walk as one are merged, so that a dense operand becomes
// one long row. A copy then is one of three: rows (both sides dense in the innermost axis), tiles (the source is dense
// in another axis than the destination: squares are transposed in registers, so that both sides are touched in whole
// cache lines), or single elements.
#pragma once
#include "cpu/kernel.h"
#include "abi/nest.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA {

// Position in the first `dims` axes of a nest.
template <int K>
struct Cursor {
  const Nest<K>& nest;
  int dims;
  int64_t index[MM_MAX_DIMS] = {};
  int64_t offset[K] = {};

  Cursor(const Nest<K>& n, int d, int64_t flat) : nest(n), dims(d) {
    for (int i = dims - 1; i >= 0; i--) {
      index[i] = flat % nest.size[i];
      flat /= nest.size[i];
      for (int k = 0; k < K; k++) offset[k] += index[i] * nest.stride[k][i];
    }
  }
  void next() {
    for (int i = dims - 1; i >= 0; i--) {
      for (int k = 0; k < K; k++) offset[k] += nest.stride[k][i];
      if (++index[i] < nest.size[i]) return;
      for (int k = 0; k < K; k++) offset[k] -= nest.size[i] * nest.stride[k][i];
      index[i] = 0;
    }
  }
};

// f(offsets of the K operands, n) over pieces of the innermost axis, in parallel: whole rows, or blocks of long ones.
template <int K, class F>
void forRows(const Nest<K>& nest, F&& f) {
  constexpr int64_t kBlock = 16384;
  const int64_t n = nest.size[nest.ndim - 1], blocks = (n + kBlock - 1) / kBlock, rows = nest.count(nest.ndim - 1);
  parallelFor(rows * blocks, blocks > 1 ? 1 : 1 + kBlock / (n + 1), [&](int64_t begin, int64_t end, int) {
    Cursor<K> at(nest, nest.ndim - 1, begin / (blocks ? blocks : 1));
    int64_t block = begin % (blocks ? blocks : 1);
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = block * kBlock, length = n - first < kBlock ? n - first : kBlock;
      int64_t offset[K];
      for (int k = 0; k < K; k++) offset[k] = at.offset[k] + first * nest.stride[k][nest.ndim - 1];
      f(offset, length);
      if (++block == blocks) {
        block = 0;
        at.next();
      }
    }
  });
}

template <class E>
MM_INLINE void copyRow(const E* from, E* to, int64_t n) {
  if (n == 64) std::memcpy(to, from, 64 * sizeof(E));  // inline
  else if (n * int64_t(sizeof(E)) > 64) std::memcpy(to, from, size_t(n) * sizeof(E));
  else
    for (int64_t j = 0; j < n; j++) to[j] = from[j];
}

// dst[j * dstStride + i] = src[i * srcStride + j]: i < rows, j < cols
template <class E>
void transposeElements(int64_t rows, int64_t cols, const E* src, int64_t srcStride, E* dst, int64_t dstStride) {
  constexpr int M = sizeof(E) == 4 ? VL : sizeof(E) == 2 && VL < 16 ? 8 : 16;
  typedef E Vec __attribute__((vector_size(M * sizeof(E))));
  int64_t i = 0;
  for (; i + M <= rows; i += M) {
    int64_t j = 0;
    for (; j + M <= cols; j += M) {
      Vec r[M];
#pragma GCC unroll 16
      for (int k = 0; k < M; k++) std::memcpy(&r[k], src + (i + k) * srcStride + j, sizeof(Vec));
      transposeLanes<M>(r);
#pragma GCC unroll 16
      for (int k = 0; k < M; k++) std::memcpy(dst + (j + k) * dstStride + i, &r[k], sizeof(Vec));
    }
    for (; j < cols; j++)
      for (int k = 0; k < M; k++) dst[j * dstStride + i + k] = src[(i + k) * srcStride + j];
  }
  for (int64_t j = 0; j < cols; j++)
    for (int64_t k = i; k < rows; k++) dst[j * dstStride + k] = src[k * srcStride + j];
}

// A tile goes through a compact buffer: rows a power of two apart share one set of the first-level cache, where stores
// of a few lanes into each of them would miss every time (512 x 512 f32: 30 GB/s without it, 60 with it; 4096 x 4096 u8: 4
// and 8). Sources of less than 4 bytes, of which a vector takes part of a line, are gathered first for the same reason.
// Prefetching the tiles' lines gained nothing.
constexpr int64_t kTile = 64;
template <class E>
void transposeTile(int64_t rows, int64_t cols, const E* src, int64_t srcStride, E* dst, int64_t dstStride) {
  alignas(64) E gathered[sizeof(E) < 4 ? kTile * kTile : 1], turned[kTile * kTile];
  if (sizeof(E) < 4) {
    for (int64_t i = 0; i < rows; i++) copyRow(src + i * srcStride, gathered + i * kTile, cols);
    transposeElements(rows, cols, gathered, kTile, turned, kTile);
  } else {
    transposeElements(rows, cols, src, srcStride, turned, kTile);
  }
  for (int64_t j = 0; j < cols; j++) copyRow(turned + j * kTile, dst + j * dstStride, rows);
}

template <class E>
void copyElements(Nest<2> nest, const E* src, E* dst) {
  const int last = nest.ndim - 1;
  if (nest.stride[0][last] == 1 && nest.stride[1][last] == 1) {
    forRows(nest, [&](const int64_t* offset, int64_t n) {
      copyRow(src + offset[0], dst + offset[1], n);
    });
    return;
  }
  int dense = -1;
  for (int i = 0; i < last; i++)
    if (nest.stride[0][i] == 1) dense = i;
  if (dense >= 0 && nest.stride[1][last] == 1 && nest.size[dense] >= 4 && nest.size[last] >= 4) {
    nest.swap(dense, last - 1);
    const int64_t cols = nest.size[last - 1], rows = nest.size[last];
    const int64_t colTiles = (cols + kTile - 1) / kTile, rowTiles = (rows + kTile - 1) / kTile;
    parallelFor(nest.count(last - 1) * colTiles * rowTiles, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t i = item % rowTiles * kTile, j = item / rowTiles % colTiles * kTile;
        const Cursor<2> at(nest, last - 1, item / (rowTiles * colTiles));
        const int64_t height = rows - i < kTile ? rows - i : kTile, width = cols - j < kTile ? cols - j : kTile;
        const E* from = src + at.offset[0] + i * nest.stride[0][last] + j;
        E* to = dst + at.offset[1] + j * nest.stride[1][last - 1] + i;
        transposeTile(height, width, from, nest.stride[0][last], to, nest.stride[1][last - 1]);
      }
    });
    return;
  }
  forRows(nest, [&](const int64_t* offset, int64_t n) {
    const int64_t s = nest.stride[0][last], d = nest.stride[1][last];
    for (int64_t j = 0; j < n; j++) dst[offset[1] + j * d] = src[offset[0] + j * s];
  });
}

// Copies src into dst: same shape, same element size, any strides. dst must not overlap src.
inline void copyStrided(const MMTensorView& src, const MMTensorView& dst) {
  Nest<2> nest;
  for (int i = 0; i < dst.ndim; i++) {
    if (!dst.shape[i]) return;
    const int64_t strides[2] = {src.stride[i], dst.stride[i]};
    if (dst.shape[i] > 1) nest.push(dst.shape[i], strides);
  }
  nest.sortBy(1);
  nest.coalesce();
  switch (elementSize(dst.dtype)) {
    case 4: return copyElements(nest, data<const uint32_t>(src), data<uint32_t>(dst));
    case 2: return copyElements(nest, data<const uint16_t>(src), data<uint16_t>(dst));
    default: return copyElements(nest, data<const uint8_t>(src), data<uint8_t>(dst));
  }
}

}  // namespace mm::cpu::MM_ISA
