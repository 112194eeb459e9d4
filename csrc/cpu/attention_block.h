// What the attention kernels share: products of padded blocks whose rows see only a span of the keys, the packing of
// keys and values, and the online softmax of one block of scores.
//
// Blocks are f32 scratch with rows padded to whole vectors, so no product has a tail in its columns. `span(i0, i1)` of a
// product limits rows [i0, i1) to the part of the sum (or to the columns) that a causal or sliding mask leaves: groups
// of rows skip what lies outside, and what is masked inside a group is a zero in the operand.
#pragma once
#include "cpu/kernel.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA {

struct Span {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};
MM_INLINE int64_t roundDown(int64_t n, int64_t to) { return n / to * to; }
MM_INLINE int64_t roundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
MM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Leading dimension of a block of `columns`: an odd number of vectors, because rows a multiple of a few cache lines apart
// would put a narrow panel into a few sets of the first-level cache.
MM_INLINE int64_t paddedRow(int64_t columns) { return ((columns + VL - 1) / VL | 1) * VL; }

// ---- products
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPanelVectors = 4;  // 32 registers
constexpr int panelRows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kPanelVectors = 2;  // 16 registers
constexpr int panelRows(int vectors) { return vectors == 2 ? 6 : 8; }
#endif

// C[MR][NV] += A B over the terms [begin, end) of the sum; A[i][p] = a[i * ars + p * acs].
template <int MR, int NV, class B>
MM_INLINE void panelBlock(Span terms, const float* a, int64_t ars, int64_t acs, const B* b, int64_t ldb, float* c, int64_t ldc,
                          bool accumulate) {
  vf acc[MR][NV];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = accumulate ? load(c + i * ldc + j * VL) : vf{};
  a += terms.begin * acs;
  b += terms.begin * ldb;
  for (int64_t p = terms.begin; p < terms.end; p++, a += acs, b += ldb) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = load(b + j * VL);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
      const vf av = splat(a[i * ars]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = fma(av, bv[j], acc[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(c + i * ldc + j * VL, acc[i][j]);
}

template <int NV, class B, class F>
MM_INLINE void panelColumns(int64_t m, const float* a, int64_t ars, int64_t acs, const B* b, int64_t ldb, float* c, int64_t ldc,
                            bool accumulate, F&& span) {
  int64_t i = 0;
  constexpr int MR = panelRows(NV);
  for (; i + MR <= m; i += MR)
    if (const Span s = span(i, i + MR); !s.empty())
      panelBlock<MR, NV>(s, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i + 4 <= m; i += 4)
    if (const Span s = span(i, i + 4); !s.empty())
      panelBlock<4, NV>(s, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i < m; i++)
    if (const Span s = span(i, i + 1); !s.empty())
      panelBlock<1, NV>(s, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, accumulate);
}

// Calls f(first column, vectors) for panels that share the columns evenly: five vectors are 3 + 2, not 4 + 1.
template <class F>
MM_INLINE void eachPanel(int64_t n, F&& f) {
  int64_t vectors = (n + VL - 1) / VL, panels = (vectors + kPanelVectors - 1) / kPanelVectors, j = 0;
  for (; panels > 0; panels--) {
    const int64_t nv = (vectors + panels - 1) / panels;
    f(j, int(nv));
    j += nv * VL, vectors -= nv;
  }
}

// C (m x n) (+)= A B; the sum of rows [i0, i1) runs over span(i0, i1), and rows with an empty span are left alone.
template <class B, class F>
inline void productOver(int64_t m, int64_t n, const float* a, int64_t ars, int64_t acs, const B* b, int64_t ldb, float* c,
                        int64_t ldc, bool accumulate, F span) {
  eachPanel(n, [&](int64_t j, int nv) {
    switch (nv) {
      case 1: return panelColumns<1>(m, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, span);
#if defined(__AVX512F__) || defined(__aarch64__)
      case 3: return panelColumns<3>(m, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, span);
      case 4: return panelColumns<4>(m, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, span);
#endif
      default: return panelColumns<2>(m, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, span);
    }
  });
}

// C (m x n) = A B over k terms, only where the columns span(i0, i1) of rows [i0, i1) meet a panel; the rest of C is left
// undefined. A has dense rows.
template <class F>
inline void productWithin(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                          int64_t ldc, F span) {
  eachPanel(n, [&](int64_t j, int nv) {
    const auto terms = [&](int64_t i0, int64_t i1) {
      const Span s = span(i0, i1);
      return Span{0, s.begin < j + nv * VL && s.end > j ? k : 0};
    };
    switch (nv) {
      case 1: return panelColumns<1>(m, a, lda, 1, b + j, ldb, c + j, ldc, false, terms);
#if defined(__AVX512F__) || defined(__aarch64__)
      case 3: return panelColumns<3>(m, a, lda, 1, b + j, ldb, c + j, ldc, false, terms);
      case 4: return panelColumns<4>(m, a, lda, 1, b + j, ldb, c + j, ldc, false, terms);
#endif
      default: return panelColumns<2>(m, a, lda, 1, b + j, ldb, c + j, ldc, false, terms);
    }
  });
}

// ---- packing
// Starts to fetch rows that will be read soon: those of one head are too far apart for the hardware to guess.
template <class T>
MM_INLINE void prefetchRows(int64_t rows, int64_t columns, const T* p, int64_t stride) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t byte = 0; byte < columns * int64_t(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(p + i * stride) + byte);
}
// dst[j][i] = src[i][j] in f32, i < rows, j < columns, both padded with zeros to whole vectors.
template <class T>
inline void packTransposed(int64_t rows, int64_t columns, const T* src, int64_t lds, float* dst, int64_t ldd) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < columns; j += VL) {
      vf x[VL];
      if (i + VL <= rows && j + VL <= columns) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) x[r] = load(src + (i + r) * lds + j);
      } else {
        for (int r = 0; r < VL; r++) x[r] = i + r < rows ? loadUpTo(src + (i + r) * lds + j, columns - j) : vf{};
      }
      transposeLanes<VL>(x);
#pragma GCC unroll 16
      for (int r = 0; r < VL; r++) store(dst + (j + r) * ldd + i, x[r]);
    }
}
// dst[i][j] = src[i][j] * factor in f32, the columns padded with zeros to whole vectors.
template <class T>
inline void packRows(int64_t rows, int64_t columns, const T* src, int64_t lds, float* dst, int64_t ldd, float factor = 1.f) {
  const int64_t whole = roundDown(columns, VL);
  for (int64_t i = 0; i < rows; i++, src += lds, dst += ldd) {
    for (int64_t j = 0; j < whole; j += VL) store(dst + j, load(src + j) * factor);
    if (whole < columns) store(dst + whole, loadPartial(src + whole, int(columns - whole)) * factor);
  }
}

// dst[j] = src[j] * factor, out of padded scratch
template <class T>
MM_INLINE void packOut(int64_t columns, const float* src, T* dst, float factor) {
  int64_t j = 0;
  for (; j + VL <= columns; j += VL) store(dst + j, load(src + j) * factor);
  if (j < columns) storePartial(dst + j, load(src + j) * factor, int(columns - j));
}

// ---- softmax
// 2^x for x <= 127; below -126 exactly zero. Relative error 1e-7.
MM_INLINE vf exp2(vf x) {
  const vf magic = splat(12583039.f);  // 1.5 * 2^23 + 127: adding it rounds to an integer in the low bits, biased as exponents are
  const vf shifted = x + magic;
  const vf f = x - (shifted - magic);
  vf p = splat(1.327647196e-3f);
  p = p * f + 9.675541503e-3f;
  p = p * f + 5.550713275e-2f;
  p = p * f + 2.402211972e-1f;
  p = p * f + 6.931469671e-1f;
  p = p * f + 1.f;
  const vf y = p * asFloat(asInt(shifted) << 23);
  return select(x < splat(-126.f), vf{}, y);
}
MM_INLINE float exp2(float x) { return exp2(splat(x))[0]; }

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kMinusInf = -__builtin_inff();

// Replaces what lies outside `keep` in the vectors that hold the ends of the span.
MM_INLINE void fillOutside(float* row, Span keep, float value) {
  const int64_t first = roundDown(keep.begin, VL), last = roundDown(keep.end, VL);
  if (first < keep.begin) store(row + first, select(laneIndex() < int32_t(keep.begin - first), splat(value), load(row + first)));
  if (last < keep.end) store(row + last, select(laneIndex() < int32_t(keep.end - last), load(row + last), splat(value)));
}

// ---- problems
constexpr int64_t kAttentionRows = 72;  // rows of a block of scores: whole groups of 6, 8 and 12

// Keys of a block of scores: the packed keys and values of a block stay in the second-level cache.
MM_INLINE int64_t attentionKeys(int64_t dim) { return dim <= 128 ? 128 : 64; }

// A strided (B, L, H, D) operand.
template <class T>
struct HeadView {
  T* data;
  int64_t batch, row, head;
  T* at(int64_t b, int64_t l, int64_t h) const { return data + b * batch + l * row + h * head; }
};
template <class T>
HeadView<T> headView(const MMTensorView& v) {
  return {static_cast<T*>(v.data), v.stride[0], v.stride[1], v.stride[2]};
}

// One sequence of queries with its keys. Query i stands at key position i + keys - queries.
struct Sequence {
  int64_t batch, firstQuery, queries, firstKey, keys;
};

struct Mask {
  int64_t left, right;  // -1: unlimited
  // Keys that query i sees. Both ends rise with i.
  Span seen(const Sequence& s, int64_t i) const {
    const int64_t p = i + s.keys - s.queries;
    return {left < 0 ? 0 : most(0, p - left), right < 0 ? s.keys : most(0, least(s.keys, p + right + 1))};
  }
};

// f(i, query, head of the group) for rows t0 + i, i < count
template <class F>
MM_INLINE void eachRow(int64_t t0, int64_t count, int64_t group, F&& f) {
  int64_t query = t0 / group, head = t0 % group;
  for (int64_t i = 0; i < count; i++) {
    f(i, query, head);
    if (++head == group) head = 0, query++;
  }
}

// The rows [t0, t0 + count) of the queries against the keys [key, key + keys). Row t is head t % group of query
// t / group, so that the rows of one key-value head rise in position and share their keys.
struct RowSpans {
  Span seen[kAttentionRows];  // keys seen by a row, counted from `key`
  int64_t count, keys;
  bool full;  // every row sees every key

  RowSpans(const Mask& mask, const Sequence& s, int64_t group, int64_t t0, int64_t rows, int64_t key, int64_t blockKeys)
      : count(rows), keys(blockKeys) {
    const Span low = mask.seen(s, t0 / group), high = mask.seen(s, (t0 + rows - 1) / group);
    full = high.begin <= key && low.end >= key + keys;
    if (full) return;
    eachRow(t0, rows, group, [&](int64_t i, int64_t query, int64_t) {
      const Span range = mask.seen(s, query);
      seen[i] = {most(0, range.begin - key), least(keys, range.end - key)};
    });
  }
  Span row(int64_t i) const { return full ? Span{0, keys} : seen[i]; }
  // keys seen by any of rows [i0, i1)
  Span of(int64_t i0, int64_t i1) const { return full ? Span{0, keys} : Span{seen[i0].begin, seen[i1 - 1].end}; }
  // rows that see any of keys [j0, j1)
  Span seeing(int64_t j0, int64_t j1) const {
    if (full) return {0, count};
    Span r{0, count};
    while (r.begin < count && seen[r.begin].end <= j0) r.begin++;
    while (r.end > r.begin && seen[r.end - 1].begin >= j1) r.end--;
    return r;
  }
};

// Hands out scratch; with a null base it only counts.
struct Scratch {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* p = base ? base + used : nullptr;
    used += roundUp(floats, 16);
    return p;
  }
};

// ---- forward of one chunk of queries of one key-value head
struct ForwardPlan {
  int64_t dim, group, queries;  // queries of a chunk
  float scale;
  Mask mask;
  ForwardPlan(int64_t dim, int64_t heads, int64_t kvHeads, int64_t longest, double scaleOrZero, bool causal, int64_t left,
              int64_t right)
      : dim(dim),
        group(kvHeads ? heads / kvHeads : 0),
        queries(most(1, least(longest, (dim <= 128 ? 4 : 2) * kAttentionRows / most(1, group)))),
        scale(scaleOrZero != 0 ? float(scaleOrZero) : float(1 / __builtin_sqrt(double(dim)))),
        mask{left, causal ? 0 : right} {}
};

struct ForwardScratch {
  float *q, *o, *top, *total, *keysT, *values, *scores;
  int64_t ldd, ldk, floats;
  ForwardScratch(const ForwardPlan& plan, float* base) {
    Scratch s{base};
    const int64_t rows = plan.group * plan.queries, keys = attentionKeys(plan.dim);
    ldd = paddedRow(plan.dim), ldk = paddedRow(keys);
    q = s.take(rows * ldd), o = s.take(rows * ldd);
    top = s.take(roundUp(rows, VL)), total = s.take(roundUp(rows, VL) * VL);
    keysT = s.take(roundUp(plan.dim, VL) * ldk), values = s.take(keys * ldd), scores = s.take(kAttentionRows * ldk);
    floats = s.used;
  }
};

// Turns a row of scores into exp2(score - top), adds their sum to `total` and keeps `top` within 2^8 of the largest
// score: `o` and `total` are only rescaled when it has to rise by more than that.
MM_INLINE void softmaxRow(float* scores, Span keep, Span filled, float* top, float* total, float* o, int64_t dim) {
  const int64_t begin = roundDown(filled.begin, VL), end = roundUp(filled.end, VL);
  if (keep.empty()) {
    for (int64_t j = begin; j < end; j += VL) store(scores + j, vf{});
    return;
  }
  const int64_t low = roundDown(keep.begin, VL), high = roundUp(keep.end, VL);
  fillOutside(scores, keep, kMinusInf);
  vf m = splat(kMinusInf);
  for (int64_t j = low; j < high; j += VL) m = vmax(load(scores + j), m);
  const float largest = maximum(m);
  vf sum = load(total);
  if (largest > *top + 8.f || *top == kMinusInf) {
    const vf rescale = exp2(splat(*top - largest));
    if (*top != kMinusInf) {
      sum *= rescale;
      for (int64_t j = 0; j < dim; j += VL) store(o + j, load(o + j) * rescale);
    }
    *top = largest;
  }
  const vf base = splat(*top == kMinusInf ? 0.f : *top);
  for (int64_t j = begin; j < low; j += VL) store(scores + j, vf{});
  for (int64_t j = low; j < high; j += VL) {
    const vf p = exp2(load(scores + j) - base);
    store(scores + j, p);
    sum += p;
  }
  for (int64_t j = high; j < end; j += VL) store(scores + j, vf{});
  store(total, sum);
}

// Queries [p0, p0 + plan.queries) of a sequence; lse (null: not wanted) is the (H, L) plane of the batch entry.
template <class T>
void attend(const ForwardPlan& plan, const Sequence& s, int64_t kvHead, int64_t p0, HeadView<const T> q, HeadView<const T> k,
            HeadView<const T> v, HeadView<T> o, float* lse, int64_t lseRow, float* scratch) {
  const ForwardScratch x(plan, scratch);
  const int64_t dim = plan.dim, group = plan.group, n = least(plan.queries, s.queries - p0), rows = n * group;
  const int64_t blockKeys = attentionKeys(dim), h0 = kvHead * group;
  const Span seen{plan.mask.seen(s, p0).begin, plan.mask.seen(s, p0 + n - 1).end};
  const int64_t firstBlock = roundDown(seen.begin, blockKeys);
  if (!seen.empty())
    prefetchRows(least(blockKeys, s.keys - firstBlock), dim, k.at(s.batch, s.firstKey + firstBlock, kvHead), k.row);
  for (int64_t i = 0; i < n; i++)
    packRows(group, dim, q.at(s.batch, s.firstQuery + p0 + i, h0), q.head, x.q + i * group * x.ldd, x.ldd, plan.scale * kLog2e);
  std::memset(x.o, 0, size_t(rows * x.ldd) * sizeof(float));
  std::memset(x.total, 0, size_t(roundUp(rows, VL) * VL) * sizeof(float));
  for (int64_t i = 0; i < roundUp(rows, VL); i++) x.top[i] = kMinusInf;

  for (int64_t key = firstBlock; key < seen.end; key += blockKeys) {
    const int64_t keys = least(blockKeys, s.keys - key);
    prefetchRows(keys, dim, v.at(s.batch, s.firstKey + key, kvHead), v.row);
    packTransposed(keys, dim, k.at(s.batch, s.firstKey + key, kvHead), k.row, x.keysT, x.ldk);
    packRows(keys, dim, v.at(s.batch, s.firstKey + key, kvHead), v.row, x.values, x.ldd);
    for (int64_t t = 0; t < rows; t += kAttentionRows) {
      const RowSpans spans(plan.mask, s, group, p0 * group + t, least(kAttentionRows, rows - t), key, keys);
      const Span all = spans.of(0, spans.count);
      if (all.empty()) continue;
      productWithin(spans.count, all.end, dim, x.q + t * x.ldd, x.ldd, x.keysT, x.ldk, x.scores, x.ldk,
                    [&](int64_t i0, int64_t i1) { return spans.of(i0, i1); });
      for (int64_t i = 0; i < spans.count; i++)
        softmaxRow(x.scores + i * x.ldk, spans.row(i), all, x.top + t + i, x.total + (t + i) * VL, x.o + (t + i) * x.ldd, dim);
      productOver(spans.count, dim, x.scores, x.ldk, 1, x.values, x.ldd, x.o + t * x.ldd, x.ldd, true,
                  [&](int64_t i0, int64_t i1) { return spans.of(i0, i1); });
    }
  }

  for (int64_t t = 0; t < rows; t += VL) {
    vf totals[VL];
    for (int i = 0; i < VL; i++) totals[i] = load(x.total + (t + i) * VL);
    const vf total = sumLanes(totals), none = splat(0.f);
    float factor[VL], logs[VL];
    store(factor, select(total == none, none, 1.f / total));
    store(logs, select(total == none, splat(kMinusInf), load(x.top + t) * kLn2 + log(total)));
    eachRow(t, least(VL, rows - t), group, [&](int64_t i, int64_t query, int64_t head) {
      const int64_t position = s.firstQuery + p0 + query;
      packOut(dim, x.o + (t + i) * x.ldd, o.at(s.batch, position, h0 + head), factor[i]);
      if (lse) lse[(h0 + head) * lseRow + position] = logs[i];
    });
  }
}

}  // namespace mm::cpu::MM_ISA
