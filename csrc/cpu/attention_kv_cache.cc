// attentionKvCache: a few queries over many keys. It is bound by memory, so every key and value is read once, straight
// from the cache: the keys of one key-value head are cut into splits of 512 whatever the number of threads, each split
// gives an unnormalised o, a maximum and a sum for all heads of its group, and the splits are joined in order. Many
// queries (a prompt in pieces) take the blocked path of attention instead.
//
// kvCacheAppend copies rows.
#include "ops/attention_kv_cache.h"

#include "cpu/attention_block.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kFewRows = 16;    // queries times heads of a group
constexpr int64_t kSplit = 512;     // keys of a split
constexpr int64_t kValueRows = 64;  // values converted at once where their rows are no whole vectors

struct CachePlan {
  int64_t batch, queries, heads, kvHeads, group, dim, capacity, rows, splits;
  float scale;
  Mask mask;
  explicit CachePlan(const MMCall* c) {
    using namespace ops::attention_kv_cache;
    const auto &q = in(c, Q), &k = in(c, K_CACHE);
    const Attrs& a = attrs<Attrs>(c);
    batch = q.shape[0], queries = q.shape[1], heads = q.shape[2], dim = q.shape[3], capacity = k.shape[1], kvHeads = k.shape[2];
    group = heads / kvHeads, rows = group * queries, splits = most(1, (capacity + kSplit - 1) / kSplit);
    scale = a.scale != 0 ? float(a.scale) : float(1 / __builtin_sqrt(double(dim)));
    mask = {a.windowLeft, a.causal ? 0 : -1};
  }
  // What a split leaves behind: o of every row, then its maximum and its sum.
  int64_t depth() const { return roundUp(dim, VL); }
  int64_t partial() const { return roundUp(rows * (depth() + 2), 16); }
  Sequence sequence(const MMCall* c, int64_t b) const {
    return {b, 0, queries, 0, data<int32_t>(in(c, ops::attention_kv_cache::LENGTHS))[b]};
  }
};

struct SplitScratch {
  float *q, *scores, *values, *total;
  int64_t ldd, lds, floats;
  SplitScratch(const CachePlan& plan, float* base) {
    Scratch s{base};
    ldd = paddedRow(plan.dim), lds = paddedRow(kSplit);
    q = s.take(plan.rows * ldd), scores = s.take(plan.rows * lds), values = s.take(kValueRows * ldd), total = s.take(VL);
    floats = s.used;
  }
};

// scores[i][j] = <q[i], k[j]> of R rows and VL keys p[0..VL): VL / R keys at a time, so that a key is loaded and converted
// once for R rows and the VL sums of a pass come out of one exchange of lanes.
template <int R, class T>
MM_INLINE void scoreRows(int64_t dim, const float* q, int64_t ldq, const T* const* p, float* scores, int64_t lds) {
  constexpr int keys = VL / R;
  const int64_t whole = roundDown(dim, VL);
  for (int first = 0; first < VL; first += keys) {
    vf acc[VL] = {};
    for (int64_t d = 0; d < whole; d += VL) {
      vf row[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) row[r] = load(q + r * ldq + d);
#pragma GCC unroll 16
      for (int t = 0; t < keys; t++) {
        const vf key = load(p[first + t] + d);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r * keys + t] = fma(row[r], key, acc[r * keys + t]);
      }
    }
    if (whole < dim)
      for (int t = 0; t < keys; t++) {
        const vf key = loadPartial(p[first + t] + whole, int(dim - whole));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r * keys + t] = fma(load(q + r * ldq + whole), key, acc[r * keys + t]);
      }
    float sums[VL];
    store(sums, sumLanes(acc));
    for (int r = 0; r < R; r++) std::memcpy(scores + r * lds + first, sums + r * keys, keys * sizeof(float));
  }
}

// The scores of all rows and keys, read in place. The rows of one head lie too far apart for the hardware to guess them:
// keys are fetched ahead, and the values on their way for what follows.
template <class T>
MM_INLINE void scoreKeys(int64_t rows, int64_t keys, int64_t dim, const float* q, int64_t ldq, const T* k, int64_t ldk,
                         const T* v, int64_t ldv, float* scores, int64_t lds) {
  const int64_t bytes = dim * int64_t(sizeof(T));
  for (int64_t j = 0; j < keys; j += VL) {
    const T* p[VL];  // past the last key: the last one again, masked by the softmax
    for (int64_t i = 0; i < VL; i++) {
      const int64_t key = least(j + i, keys - 1);
      p[i] = k + key * ldk;
      for (int64_t byte = 0; byte < bytes; byte += 64) {
        if (j + 3 * VL <= keys) __builtin_prefetch(reinterpret_cast<const char*>(p[i] + 2 * VL * ldk) + byte);
        __builtin_prefetch(reinterpret_cast<const char*>(v + key * ldv) + byte, 0, 2);
      }
    }
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) scoreRows<4>(dim, q + i * ldq, ldq, p, scores + i * lds + j, lds);
    for (; i + 2 <= rows; i += 2) scoreRows<2>(dim, q + i * ldq, ldq, p, scores + i * lds + j, lds);
    if (i < rows) scoreRows<1>(dim, q + i * ldq, ldq, p, scores + i * lds + j, lds);
  }
}

template <class T>
void attendSplit(const CachePlan& plan, const Sequence& s, int64_t kvHead, int64_t first, HeadView<const T> q,
                 HeadView<const T> k, HeadView<const T> v, float* partial, float* scratch) {
  const SplitScratch x(plan, scratch);
  const int64_t dim = plan.dim, rows = plan.rows, depth = plan.depth(), h0 = kvHead * plan.group;
  float *o = partial, *top = partial + rows * depth, *total = top + rows;
  std::memset(o, 0, size_t(rows * depth) * sizeof(float));
  for (int64_t i = 0; i < rows; i++) top[i] = kMinusInf, total[i] = 0.f;
  // Keys of this split that any query sees.
  const int64_t begin = most(first, plan.mask.seen(s, 0).begin);
  const int64_t end = least(first + kSplit, plan.mask.seen(s, s.queries - 1).end);
  if (begin >= end) return;
  const int64_t keys = end - begin;
  for (int64_t i = 0; i < plan.queries; i++)
    packRows(plan.group, dim, q.at(s.batch, i, h0), q.head, x.q + i * plan.group * x.ldd, x.ldd, plan.scale * kLog2e);
  scoreKeys(rows, keys, dim, x.q, x.ldd, k.at(s.batch, begin, kvHead), k.row, v.at(s.batch, begin, kvHead), v.row, x.scores,
            x.lds);
  for (int64_t i = 0; i < rows; i++) {
    const Span seen = plan.mask.seen(s, i / plan.group);
    const Span keep{most(0, seen.begin - begin), least(keys, seen.end - begin)};
    store(x.total, vf{});
    softmaxRow(x.scores + i * x.lds, keep, {0, keys}, top + i, x.total, o + i * depth, dim);
    total[i] = sum(load(x.total));
  }
  const T* values = v.at(s.batch, begin, kvHead);
  if (dim % VL == 0) {
    productOver(rows, dim, x.scores, x.lds, 1, values, v.row, o, depth, true, [&](int64_t, int64_t) { return Span{0, keys}; });
    return;
  }
  for (int64_t j = 0; j < keys; j += kValueRows) {
    const int64_t n = least(kValueRows, keys - j);
    packRows(n, dim, values + j * v.row, v.row, x.values, x.ldd);
    productOver(rows, dim, x.scores + j, x.lds, 1, x.values, x.ldd, o, depth, true, [&](int64_t, int64_t) { return Span{0, n}; });
  }
}

// Adds the splits of one key-value head up in order, in place of the first, and writes o.
template <class T>
void joinSplits(const CachePlan& plan, int64_t b, int64_t kvHead, int64_t splits, float* partials, HeadView<T> o) {
  const int64_t rows = plan.rows, depth = plan.depth(), stride = plan.partial();
  for (int64_t i = 0; i < rows; i++) {
    const float* tops = partials + rows * depth + i;
    float largest = kMinusInf, total = 0.f;
    for (int64_t s = 0; s < splits; s++) largest = tops[s * stride] > largest ? tops[s * stride] : largest;
    float* sum = partials + i * depth;
    for (int64_t s = 0; s < splits; s++) {
      const float weight = tops[s * stride] == kMinusInf ? 0.f : exp2(tops[s * stride] - largest);
      total += weight * tops[s * stride + rows];
      const float* part = sum + s * stride;
      for (int64_t j = 0; j < plan.dim; j += VL) store(sum + j, (s ? load(sum + j) : vf{}) + load(part + j) * weight);
    }
    packOut(plan.dim, sum, o.at(b, i / plan.group, kvHead * plan.group + i % plan.group), total == 0.f ? 0.f : 1.f / total);
  }
}

int32_t badLength(const MMCall* c, const CachePlan& plan) {
  for (int64_t b = 0; b < plan.batch; b++) {
    const int64_t n = plan.sequence(c, b).keys;
    if (n < 0 || n > plan.capacity)
      return fail(c, "lengths[%lld] is %lld; the cache holds 0 to %lld keys", (long long)b, (long long)n,
                  (long long)plan.capacity);
  }
  return MM_OK;
}

int32_t fewQueries(const MMCall* call) {
  const CachePlan plan(call);
  return plan.rows <= kFewRows;
}
uint64_t splitWorkspace(const MMCall* c) {
  const CachePlan plan(c);
  return uint64_t(workerCount() * SplitScratch(plan, nullptr).floats + plan.batch * plan.kvHeads * plan.splits * plan.partial()) *
         sizeof(float);
}
int32_t splitKeys(const MMCall* c) {
  using namespace ops::attention_kv_cache;
  const CachePlan plan(c);
  if (const int32_t status = badLength(c, plan)) return status;
  const auto& q = in(c, Q);
  if (!numel(q)) return MM_OK;
  const int64_t floats = SplitScratch(plan, nullptr).floats, stride = plan.partial();
  float* scratch = static_cast<float*>(c->workspace);
  float* partials = scratch + workerCount() * floats;
  int64_t longest = 0;
  for (int64_t b = 0; b < plan.batch; b++) longest = most(longest, plan.sequence(c, b).keys);
  const int64_t splits = most(1, (longest + kSplit - 1) / kSplit), owners = plan.batch * plan.kvHeads;
  dispatchFloat(q.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(owners * splits, 1 + (1 << 16) / (plan.rows * plan.dim * least(longest, kSplit) + 1),
                [&](int64_t begin, int64_t end, int worker) {
                  for (int64_t i = begin; i < end; i++) {
                    const int64_t owner = i % owners,
                                  split = i / owners;  // the heads of the same keys after each other: their rows are neighbours
                    attendSplit<T>(plan, plan.sequence(c, owner / plan.kvHeads), owner % plan.kvHeads, split * kSplit,
                                   headView<const T>(q), headView<const T>(in(c, K_CACHE)), headView<const T>(in(c, V_CACHE)),
                                   partials + (owner * splits + split) * stride, scratch + worker * floats);
                  }
                });
    parallelFor(owners, 1 + (1 << 14) / (splits * stride), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        joinSplits<T>(plan, i / plan.kvHeads, i % plan.kvHeads, splits, partials + i * splits * stride, headView<T>(out(c, O)));
    });
  });
  return MM_OK;
}

ForwardPlan blockedPlan(const MMCall* c) {
  using namespace ops::attention_kv_cache;
  const auto &q = in(c, Q), &k = in(c, K_CACHE);
  const Attrs& a = attrs<Attrs>(c);
  return {q.shape[3], q.shape[2], k.shape[2], q.shape[1], a.scale, a.causal != 0, a.windowLeft, -1};
}
uint64_t blockedWorkspace(const MMCall* c) {
  return uint64_t(workerCount()) * uint64_t(ForwardScratch(blockedPlan(c), nullptr).floats) * sizeof(float);
}
int32_t blocked(const MMCall* c) {
  using namespace ops::attention_kv_cache;
  const CachePlan plan(c);
  if (const int32_t status = badLength(c, plan)) return status;
  const auto& q = in(c, Q);
  if (!numel(q)) return MM_OK;
  const ForwardPlan forward = blockedPlan(c);
  const int64_t floats = ForwardScratch(forward, nullptr).floats, chunks = (plan.queries + forward.queries - 1) / forward.queries;
  dispatchFloat(q.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(plan.batch * plan.kvHeads * chunks, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t owner = i / chunks;
        attend<T>(forward, plan.sequence(c, owner / plan.kvHeads), owner % plan.kvHeads,
                  (chunks - 1 - i % chunks) * forward.queries, headView<const T>(q), headView<const T>(in(c, K_CACHE)),
                  headView<const T>(in(c, V_CACHE)), headView<T>(out(c, O)), nullptr, 0,
                  static_cast<float*>(c->workspace) + worker * floats);
      }
    });
  });
  return MM_OK;
}

int32_t kvCacheAppend(const MMCall* c) {
  using namespace ops::kv_cache_append;
  const auto &cache = in(c, CACHE), &x = in(c, X);
  const int32_t* positions = data<int32_t>(in(c, POSITIONS));
  const int64_t batch = x.shape[0], added = x.shape[1], heads = x.shape[2], dim = x.shape[3], capacity = cache.shape[1];
  for (int64_t b = 0; b < batch; b++)
    if (positions[b] < 0 || positions[b] + added > capacity)
      return fail(c, "positions[%lld] is %d: %lld new tokens do not fit a cache of %lld", (long long)b, positions[b],
                  (long long)added, (long long)capacity);
  const int64_t size = x.dtype == MM_F32 ? 4 : 2;
  const bool together = x.stride[2] == dim && cache.stride[2] == dim;  // the heads of a token are one row
  const int64_t pieces = together ? 1 : heads, bytes = (together ? heads : 1) * dim * size;
  parallelFor(batch * added, 1 + 65536 / (heads * dim * size + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / added, t = i % added;
      const char* from = data<const char>(x) + (b * x.stride[0] + t * x.stride[1]) * size;
      char* to = data<char>(cache) + (b * cache.stride[0] + (positions[b] + t) * cache.stride[1]) * size;
      for (int64_t h = 0; h < pieces; h++)
        std::memcpy(to + h * cache.stride[2] * size, from + h * x.stride[2] * size, size_t(bytes));
    }
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(attention_kv_cache, {"attentionKvCache", "split keys", fewQueries, splitWorkspace, splitKeys},
               {"attentionKvCache", "blocked", nullptr, blockedWorkspace, blocked},
               {"kvCacheAppend", "rows", nullptr, nullptr, kvCacheAppend})
