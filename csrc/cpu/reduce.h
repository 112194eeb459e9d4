// Elementwise maps and reductions over strided, broadcast operands.
//
// A reduction is a nest whose last operand is the dense target: an axis in which the target does not move is summed
// over. Two shapes of work: the innermost axis is reduced (a vector accumulator a row), or it is kept (a vector of
// accumulators that rows are added to). The reduced axes are cut into chunks by shape alone; the chunks' partial
// results lie in the workspace and are combined in order, in double: the same bits for any number of threads.
#pragma once
#include "cpu/strided.h"

namespace mm::cpu::MM_ISA {

// VL lanes from position j of a row of n elements with any stride (0: broadcast); lanes past n are zero or repeat.
template <class T>
MM_INLINE vf loadRow(const T* p, int64_t stride, int64_t j, int64_t n) {
  if (stride == 1) return loadUpTo(p + j, n - j);
  if (stride == 0) return splat(toF32(*p));
  float lanes[VL] = {};
  for (int i = 0; i < VL && j + i < n; i++) lanes[i] = toF32(p[(j + i) * stride]);
  return load(lanes);
}

// The strides of `v` aligned with `shape` at the last axis; 0 where v is broadcast.
inline void broadcastStrides(const MMTensorView& v, const MMTensorView& shape, int64_t* strides) {
  for (int i = 0; i < shape.ndim; i++) {
    const int j = i - (shape.ndim - v.ndim);
    strides[i] = j < 0 || (v.shape[j] == 1 && shape.shape[i] != 1) ? 0 : v.stride[j];
  }
}

// The nest of K operands broadcast to the shape of the last one.
template <int K>
Nest<K> broadcastNest(const MMTensorView* const (&views)[K], const MMTensorView& shape) {
  int64_t all[K][MM_MAX_DIMS];
  for (int k = 0; k < K; k++) broadcastStrides(*views[k], shape, all[k]);
  Nest<K> nest;
  for (int i = 0; i < shape.ndim; i++) {
    int64_t strides[K];
    for (int k = 0; k < K; k++) strides[k] = all[k][i];
    nest.push(shape.shape[i], strides);
  }
  nest.coalesce();
  return nest;
}

// y = f(a, b, ...): K inputs of element type T, broadcast to y's shape; y is dense.
template <class T, int K, class F>
void map(const MMTensorView& y, const MMTensorView* const (&inputs)[K], F&& f) {
  const MMTensorView* views[K + 1];
  for (int k = 0; k < K; k++) views[k] = inputs[k];
  views[K] = &y;
  if (!numel(y)) return;
  const Nest<K + 1> nest = broadcastNest<K + 1>(views, y);
  int64_t stride[K];
  bool dense = true;
  for (int k = 0; k < K; k++) {
    stride[k] = nest.stride[k][nest.ndim - 1];
    dense = dense && stride[k] == 1;
  }
  forRows(nest, [&](const int64_t* offset, int64_t n) {
    const T* p[K];
    for (int k = 0; k < K; k++) p[k] = data<const T>(*inputs[k]) + offset[k];
    T* to = data<T>(y) + offset[K];
    int64_t j = 0;
    if (dense)
      for (; j + VL <= n; j += VL) {
        vf v[K];
        for (int k = 0; k < K; k++) v[k] = load(p[k] + j);
        store(to + j, f(v));
      }
    for (; j < n; j += VL) {
      vf v[K];
      for (int k = 0; k < K; k++) v[k] = loadRow(p[k], stride[k], j, n);
      storeUpTo(to + j, f(v), n - j);
    }
  });
}

struct SumOp {
  using Total = double;
  static constexpr float initial = 0.f;
  static MM_INLINE vf combine(vf a, vf b) { return a + b; }
  static MM_INLINE double combine(double a, double b) { return a + b; }
  static MM_INLINE float across(vf x) { return sum(x); }
};
struct MaxOp {  // NaN wins
  using Total = float;
  static constexpr float initial = -__builtin_inff();
  static MM_INLINE vf combine(vf a, vf b) { return select((b > a) | (b != b), b, a); }
  static MM_INLINE float combine(float a, float b) { return b > a || b != b ? b : a; }
  static MM_INLINE float across(vf x) {
    float lanes[VL], m = initial;
    store(lanes, x);
    for (int i = 0; i < VL; i++) m = combine(m, lanes[i]);
    return m;
  }
};

// K operands, the last one the target. Build with the full nest, then ask for the workspace or run.
template <int K>
struct Reduction {
  static constexpr int64_t kBlock = 16384, kColumns = 2048, kRows = 64, kEnough = 64;
  Nest<K> kept, reduced;  // the axes outside the innermost one
  int64_t inner, stride[K], innerBlocks, outputs, units, perChunk, chunks;
  bool innerReduced;

  explicit Reduction(const Nest<K>& nest) {
    const int last = nest.ndim - 1;
    inner = nest.size[last];
    for (int k = 0; k < K; k++) stride[k] = nest.stride[k][last];
    innerReduced = stride[K - 1] == 0;
    for (int i = 0; i < last; i++) {
      int64_t s[K];
      for (int k = 0; k < K; k++) s[k] = nest.stride[k][i];
      (s[K - 1] == 0 ? reduced : kept).push(nest.size[i], s);
    }
    const int64_t keptRows = kept.count(kept.ndim), reducedRows = reduced.count(reduced.ndim);
    if (innerReduced) {  // a unit: up to kBlock elements of one row
      innerBlocks = (inner + kBlock - 1) / kBlock;
      outputs = keptRows;
      units = reducedRows * innerBlocks;
      perChunk = outputs >= kEnough ? units : 1 + kBlock / (inner < kBlock ? inner + 1 : kBlock);
    } else {  // a unit: one row of kColumns elements
      innerBlocks = (inner + kColumns - 1) / kColumns;
      outputs = keptRows * inner;
      units = reducedRows;
      perChunk = keptRows * innerBlocks >= kEnough ? units : kRows;
    }
    if (perChunk < 1) perChunk = 1;
    chunks = units ? (units + perChunk - 1) / perChunk : 1;
  }

  uint64_t workspace() const { return uint64_t(chunks) * outputs * sizeof(float); }

  // value(offsets, j, inner): VL lanes of the terms at position j of the innermost axis; finish(output, total).
  template <class Op, class V, class F>
  void run(float* partial, V&& value, F&& finish) const {
    const vi lane = laneIndex();
    const int64_t perItem = perChunk * (innerReduced ? (inner < kBlock ? inner : kBlock) : inner < kColumns ? inner : kColumns);
    if (innerReduced)
      parallelFor(outputs * chunks, 1 + kBlock / (perItem + 1), [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; item++) {
          const int64_t output = item / chunks, chunk = item % chunks;
          const Cursor<K> at(kept, kept.ndim, output);
          int64_t unit = chunk * perChunk;
          const int64_t stop = unit + perChunk < units ? unit + perChunk : units;
          Cursor<K> row(reduced, reduced.ndim, innerBlocks ? unit / innerBlocks : 0);
          typename Op::Total total = Op::initial;
          for (; unit < stop; unit++) {
            const int64_t block = unit % innerBlocks, limit = (block + 1) * kBlock < inner ? (block + 1) * kBlock : inner;
            int64_t offset[K];
            for (int k = 0; k < K; k++) offset[k] = at.offset[k] + row.offset[k];
            vf acc[4];
            for (auto& a : acc) a = splat(Op::initial);
            int64_t j = block * kBlock;
            for (; j + 4 * VL <= limit; j += 4 * VL)
#pragma GCC unroll 4
              for (int u = 0; u < 4; u++) acc[u] = Op::combine(acc[u], value(offset, j + u * VL, inner));
            for (; j < limit; j += VL)
              acc[0] = Op::combine(acc[0], select(lane < int32_t(limit - j < VL ? limit - j : VL), value(offset, j, inner),
                                                  splat(Op::initial)));
            const vf lanes = Op::combine(Op::combine(acc[0], acc[1]), Op::combine(acc[2], acc[3]));
            total = Op::combine(total, typename Op::Total(Op::across(lanes)));
            if (block + 1 == innerBlocks) row.next();
          }
          partial[chunk * outputs + output] = float(total);
        }
      });
    else
      parallelFor(kept.count(kept.ndim) * innerBlocks * chunks, 1 + kBlock / (perItem + 1), [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; item++) {
          const int64_t chunk = item % chunks, first = item / chunks % innerBlocks * kColumns,
              outer = item / (chunks * innerBlocks);
          const int64_t limit = first + kColumns < inner ? first + kColumns : inner;
          const Cursor<K> at(kept, kept.ndim, outer);
          int64_t unit = chunk * perChunk;
          const int64_t stop = unit + perChunk < units ? unit + perChunk : units;
          Cursor<K> row(reduced, reduced.ndim, unit);
          vf acc[kColumns / VL];
          for (int64_t i = 0; i * VL < limit - first; i++) acc[i] = splat(Op::initial);
          for (; unit < stop; unit++) {
            int64_t offset[K];
            for (int k = 0; k < K; k++) offset[k] = at.offset[k] + row.offset[k];
            for (int64_t j = first, i = 0; j < limit; j += VL, i++) acc[i] = Op::combine(acc[i], value(offset, j, inner));
            row.next();
          }
          for (int64_t j = first, i = 0; j < limit; j += VL, i++)
            storeUpTo(partial + chunk * outputs + outer * inner + j, acc[i], limit - j);
        }
      });
    parallelFor(outputs, 1 + kBlock / chunks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        typename Op::Total total = partial[i];
        for (int64_t chunk = 1; chunk < chunks; chunk++)
          total = Op::combine(total, typename Op::Total(partial[chunk * outputs + i]));
        finish(i, float(total));
      }
    });
  }
};

}  // namespace mm::cpu::MM_ISA
