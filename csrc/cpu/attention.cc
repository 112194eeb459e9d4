// attention forward: o = softmax(scale q k^T + mask) v, lse = log sum exp. Rows are heads of a query: all heads that
// share a key-value head stand in one chunk of up to 288 rows, against which the keys pass in blocks of 128. A block of
// keys is transposed to f32 once a chunk, scores of 72 x 128 stay in the first-level cache, and the chunk's o in the
// second. Chunks are independent, so the bits do not depend on the number of threads.
//
// Backward: with P = exp(s - lse) recomputed by block, delta = rowsum(dO o) - dLse and dS = P (dO v^T - delta):
//   dV = P^T dO, dK = scale dS^T q, dQ = scale dS k.
// An item is one piece of the keys of one key-value head: it owns its dK and dV, and adds its dQ in the order of the
// keys. When the key-value heads are few, the keys are cut into up to four pieces whose dQ are added in order at the end.
#include "ops/attention.h"

#include "cpu/attention_block.h"

namespace mm::cpu::MM_ISA {
namespace {

// The sequences of a call: batch entries, or packed segments of batch entry 0.
struct Sequences {
  int64_t count, queries, keys;  // queries, keys: the lengths of q and k
  const int32_t *cuQ, *cuK;
  Sequence at(int64_t i) const {
    if (!cuQ) return {i, 0, queries, 0, keys};
    return {0, cuQ[i], cuQ[i + 1] - cuQ[i], cuK[i], cuK[i + 1] - cuK[i]};
  }
  // Both lists must rise from 0 to the length of their tensor.
  bool valid() const {
    if (!cuQ) return true;
    bool ok = cuQ[0] == 0 && cuK[0] == 0 && cuQ[count] == queries && cuK[count] == keys;
    for (int64_t i = 0; i < count; i++) ok = ok && cuQ[i] <= cuQ[i + 1] && cuK[i] <= cuK[i + 1];
    return ok;
  }
};
Sequences sequences(const MMTensorView& q, const MMTensorView& k, const MMTensorView* cuQ, const MMTensorView* cuK) {
  if (!cuQ) return {q.shape[0], q.shape[1], k.shape[1], nullptr, nullptr};
  return {cuQ->shape[0] - 1, q.shape[1], k.shape[1], data<int32_t>(*cuQ), data<int32_t>(*cuK)};
}
constexpr const char* kBadStarts =
    "cuSeqlensQ and cuSeqlensK must start at 0, never fall and end at the lengths of q (%lld) and k (%lld)";

ForwardPlan forwardPlan(const MMCall* c) {
  using namespace ops::attention;
  const auto &q = in(c, Q), &k = in(c, K);
  const Attrs& a = attrs<Attrs>(c);
  return {q.shape[3], q.shape[2], k.shape[2], q.shape[1], a.scale, a.causal != 0, a.windowLeft, a.windowRight};
}

uint64_t attentionWorkspace(const MMCall* c) {
  return uint64_t(workerCount()) * uint64_t(ForwardScratch(forwardPlan(c), nullptr).floats) * sizeof(float);
}

int32_t attention(const MMCall* c) {
  using namespace ops::attention;
  const auto &q = in(c, Q), &k = in(c, K), &v = in(c, V), &o = out(c, O), &lse = out(c, LSE);
  const bool packed = has(c, CU_SEQLENS_Q);
  const Sequences all = sequences(q, k, packed ? &in(c, CU_SEQLENS_Q) : nullptr, packed ? &in(c, CU_SEQLENS_K) : nullptr);
  if (!all.valid()) return fail(c, kBadStarts, (long long)all.queries, (long long)all.keys);
  if (!numel(q)) return MM_OK;
  const ForwardPlan plan = forwardPlan(c);
  const int64_t floats = ForwardScratch(plan, nullptr).floats, heads = q.shape[2], kvHeads = k.shape[2];
  int64_t longest = all.queries;
  if (packed) {
    longest = 0;
    for (int64_t i = 0; i < all.count; i++) longest = most(longest, all.at(i).queries);
  }
  const int64_t chunks = (longest + plan.queries - 1) / plan.queries;
  const int64_t work = plan.group * plan.queries * plan.dim * (1 + all.keys / (packed ? all.count : 1));
  dispatchFloat(q.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(all.count * kvHeads * chunks, 1 + (1 << 20) / (work + 1), [&](int64_t begin, int64_t end, int worker) {
      for (int64_t item = begin; item < end; item++) {
        // Late queries, which see the most keys under a causal mask, come first: the short ones fill the end.
        const int64_t chunk = chunks - 1 - item / (all.count * kvHeads), rest = item % (all.count * kvHeads);
        const Sequence s = all.at(rest / kvHeads);
        if (chunk * plan.queries >= s.queries) continue;
        attend<T>(plan, s, rest % kvHeads, chunk * plan.queries, headView<const T>(q), headView<const T>(k), headView<const T>(v),
                  headView<T>(o), data<float>(lse) + s.batch * heads * all.queries, all.queries,
                  static_cast<float*>(c->workspace) + worker * floats);
      }
    });
  });
  return MM_OK;
}

// ---- backward
struct BackwardPlan {
  int64_t dim, heads, kvHeads, group, pieces;
  int64_t rows;  // rows of q of one key-value head in the longest sequence: group * Lq
  float scale;
  Mask mask;
  bool wantQ, wantK, wantV;
};

BackwardPlan backwardPlan(const MMCall* c) {
  using namespace ops::attention_bwd;
  const auto &q = in(c, Q), &k = in(c, K);
  const Attrs& a = attrs<Attrs>(c);
  BackwardPlan p;
  p.dim = q.shape[3], p.heads = q.shape[2], p.kvHeads = k.shape[2], p.group = p.heads / p.kvHeads;
  const int64_t owners = most(1, p.kvHeads * (has(c, CU_SEQLENS_Q) ? in(c, CU_SEQLENS_Q).shape[0] - 1 : q.shape[0]));
  p.pieces = owners >= 16 ? 1 : most(1, least(least(4, 32 / owners), k.shape[1] / 512));
  p.rows = p.group * q.shape[1];
  p.scale = a.scale != 0 ? float(a.scale) : float(1 / __builtin_sqrt(double(p.dim)));
  p.mask = {a.windowLeft, a.causal ? 0 : a.windowRight};
  p.wantQ = hasOut(c, DQ), p.wantK = hasOut(c, DK), p.wantV = hasOut(c, DV);
  return p;
}

struct BackwardScratch {
  float *q, *dO, *keys, *keysT, *valuesT, *dK, *dV, *p, *dS, *delta, *lse, *dQ;
  int64_t ldd, ldk, ldq, floats;
  BackwardScratch(const BackwardPlan& plan, float* base) {
    Scratch s{base};
    const int64_t block = attentionKeys(plan.dim), depth = roundUp(plan.dim, VL);
    ldd = paddedRow(plan.dim), ldk = paddedRow(block), ldq = depth;
    q = s.take(kAttentionRows * ldd), dO = s.take(kAttentionRows * ldd), keys = s.take(block * ldd);
    keysT = s.take(depth * ldk), valuesT = s.take(depth * ldk);
    dK = s.take(block * ldd), dV = s.take(block * ldd);
    p = s.take(kAttentionRows * ldk), dS = s.take(kAttentionRows * ldk);
    delta = s.take(plan.rows), lse = s.take(plan.rows);
    dQ = s.take(plan.pieces == 1 && plan.wantQ ? plan.rows * ldq : 0);
    floats = s.used;
  }
};

int64_t partialFloats(const BackwardPlan& plan, const MMTensorView& q) {  // dQ of one piece
  return plan.wantQ ? roundUp(q.shape[0] * q.shape[1] * q.shape[2] * roundUp(plan.dim, VL), 16) : 0;
}

uint64_t attentionBackwardWorkspace(const MMCall* c) {
  const BackwardPlan plan = backwardPlan(c);
  const int64_t partial = plan.pieces == 1 ? 0 : plan.pieces * partialFloats(plan, in(c, ops::attention_bwd::Q));
  return uint64_t(workerCount() * BackwardScratch(plan, nullptr).floats + partial) * sizeof(float);
}

template <class T>
struct BackwardOperands {
  HeadView<const T> q, k, v, o, dO;
  HeadView<T> dQ, dK, dV;
  const float *lse, *dLse;  // (B, H, Lq)
  int64_t queries;          // Lq
};

// lse in base 2 and delta of every row; a row that saw no key gets lse = +inf and so P = 0.
template <class T>
void rowSums(const BackwardPlan& plan, const BackwardOperands<T>& x, const Sequence& s, int64_t kvHead,
             const BackwardScratch& w) {
  for (int64_t i = 0; i < s.queries; i++)
    for (int64_t g = 0; g < plan.group; g++) {
      const int64_t position = s.firstQuery + i, head = kvHead * plan.group + g;
      prefetchRows(1, plan.dim, x.q.at(s.batch, position, head), 0);
      const int64_t at = (s.batch * plan.heads + head) * x.queries + position;
      const T *o = x.o.at(s.batch, position, head), *dO = x.dO.at(s.batch, position, head);
      vf acc{};
      for (int64_t j = 0; j < plan.dim; j += VL) acc = fma(loadUpTo(o + j, plan.dim - j), loadUpTo(dO + j, plan.dim - j), acc);
      w.delta[i * plan.group + g] = sum(acc) - (x.dLse ? x.dLse[at] : 0.f);
      w.lse[i * plan.group + g] = x.lse[at] == kMinusInf ? -kMinusInf : x.lse[at] * kLog2e;
    }
}

// P and dS of one block in place of the scores and dO v^T.
MM_INLINE void probabilities(const RowSpans& spans, Span all, const BackwardScratch& w, const float* lse, const float* delta) {
  const int64_t begin = roundDown(all.begin, VL), end = roundUp(all.end, VL);
  for (int64_t i = 0; i < spans.count; i++) {
    float *p = w.p + i * w.ldk, *dS = w.dS + i * w.ldk;
    const Span keep = spans.row(i);
    int64_t low = begin, high = begin;
    if (!keep.empty()) {
      low = roundDown(keep.begin, VL), high = roundUp(keep.end, VL);
      fillOutside(p, keep, kMinusInf);
    }
    for (int64_t j = begin; j < low; j += VL) store(p + j, vf{}), store(dS + j, vf{});
    for (int64_t j = low; j < high; j += VL) {
      const vf probability = exp2(load(p + j) - lse[i]);
      store(p + j, probability);
      store(dS + j, probability * (load(dS + j) - delta[i]));
    }
    for (int64_t j = high; j < end; j += VL) store(p + j, vf{}), store(dS + j, vf{});
  }
}

template <class T>
void attendBackward(const BackwardPlan& plan, const BackwardOperands<T>& x, const Sequence& s, int64_t kvHead, int64_t piece,
                    float* partial, float* scratch) {
  const BackwardScratch w(plan, scratch);
  const int64_t dim = plan.dim, group = plan.group, h0 = kvHead * group, rows = s.queries * group, block = attentionKeys(dim);
  const int64_t length = roundUp((s.keys + plan.pieces - 1) / plan.pieces, block);
  const int64_t firstKey = piece * length, lastKey = least(s.keys, firstKey + length);
  float* dQ = partial ? partial + ((s.batch * x.queries + s.firstQuery) * plan.heads + h0 * s.queries) * w.ldq : w.dQ;
  if (plan.wantQ) std::memset(dQ, 0, size_t(rows * w.ldq) * sizeof(float));
  if (firstKey < lastKey) {
    prefetchRows(least(block, lastKey - firstKey), dim, x.k.at(s.batch, s.firstKey + firstKey, kvHead), x.k.row);
    prefetchRows(least(block, lastKey - firstKey), dim, x.v.at(s.batch, s.firstKey + firstKey, kvHead), x.v.row);
  }
  rowSums(plan, x, s, kvHead, w);

  for (int64_t key = firstKey; key < lastKey; key += block) {
    const int64_t keys = least(block, lastKey - key);
    packTransposed(keys, dim, x.k.at(s.batch, s.firstKey + key, kvHead), x.k.row, w.keysT, w.ldk);
    packTransposed(keys, dim, x.v.at(s.batch, s.firstKey + key, kvHead), x.v.row, w.valuesT, w.ldk);
    if (plan.wantQ) packRows(keys, dim, x.k.at(s.batch, s.firstKey + key, kvHead), x.k.row, w.keys, w.ldd);
    std::memset(w.dK, 0, size_t(keys * w.ldd) * sizeof(float));
    std::memset(w.dV, 0, size_t(keys * w.ldd) * sizeof(float));
    for (int64_t t = 0; t < rows; t += kAttentionRows) {
      const RowSpans spans(plan.mask, s, group, t, least(kAttentionRows, rows - t), key, keys);
      const Span all = spans.of(0, spans.count);
      if (all.empty()) continue;
      eachRow(t, spans.count, group, [&](int64_t i, int64_t query, int64_t head) {
        packRows(1, dim, x.q.at(s.batch, s.firstQuery + query, h0 + head), 0, w.q + i * w.ldd, 0, plan.scale * kLog2e);
        packRows(1, dim, x.dO.at(s.batch, s.firstQuery + query, h0 + head), 0, w.dO + i * w.ldd, 0);
      });
      const auto seen = [&](int64_t i0, int64_t i1) { return spans.of(i0, i1); };
      // The keys whose columns of P and dS were written.
      const int64_t j = roundDown(all.begin, VL), met = least(keys, roundUp(all.end, VL)) - j;
      const auto seeing = [&](int64_t j0, int64_t j1) { return spans.seeing(j + j0, j + j1); };
      productWithin(spans.count, all.end, dim, w.q, w.ldd, w.keysT, w.ldk, w.p, w.ldk, seen);
      productWithin(spans.count, all.end, dim, w.dO, w.ldd, w.valuesT, w.ldk, w.dS, w.ldk, seen);
      probabilities(spans, all, w, w.lse + t, w.delta + t);
      if (plan.wantV) productOver(met, dim, w.p + j, 1, w.ldk, w.dO, w.ldd, w.dV + j * w.ldd, w.ldd, true, seeing);
      if (plan.wantK) productOver(met, dim, w.dS + j, 1, w.ldk, w.q, w.ldd, w.dK + j * w.ldd, w.ldd, true, seeing);
      if (plan.wantQ) productOver(spans.count, dim, w.dS, w.ldk, 1, w.keys, w.ldd, dQ + t * w.ldq, w.ldq, true, seen);
    }
    for (int64_t j = 0; j < keys; j++) {
      // q was scaled by scale log2(e)
      if (plan.wantK) packOut(dim, w.dK + j * w.ldd, x.dK.at(s.batch, s.firstKey + key + j, kvHead), kLn2);
      if (plan.wantV) packOut(dim, w.dV + j * w.ldd, x.dV.at(s.batch, s.firstKey + key + j, kvHead), 1.f);
    }
  }
  if (plan.wantQ && !partial)
    eachRow(0, rows, group, [&](int64_t t, int64_t query, int64_t head) {
      packOut(dim, dQ + t * w.ldq, x.dQ.at(s.batch, s.firstQuery + query, h0 + head), plan.scale);
    });
}

int32_t attentionBackward(const MMCall* c) {
  using namespace ops::attention_bwd;
  const auto &q = in(c, Q), &k = in(c, K);
  const bool packed = has(c, CU_SEQLENS_Q);
  const Sequences all = sequences(q, k, packed ? &in(c, CU_SEQLENS_Q) : nullptr, packed ? &in(c, CU_SEQLENS_K) : nullptr);
  if (!all.valid()) return fail(c, kBadStarts, (long long)all.queries, (long long)all.keys);
  const BackwardPlan plan = backwardPlan(c);
  if (!plan.heads) return MM_OK;
  const int64_t floats = BackwardScratch(plan, nullptr).floats, partial = partialFloats(plan, q),
                owners = all.count * plan.kvHeads;
  float* partials = static_cast<float*>(c->workspace) + workerCount() * floats;
  const int64_t average = packed ? most(1, all.count) : 1;
  const int64_t work = plan.dim * (plan.rows / average + 1) * (all.keys / plan.pieces / average + 1);
  dispatchFloat(q.dtype, [&](auto t) {
    using T = decltype(t);
    BackwardOperands<T> x{headView<const T>(q),
                          headView<const T>(k),
                          headView<const T>(in(c, V)),
                          headView<const T>(in(c, O)),
                          headView<const T>(in(c, D_O)),
                          {},
                          {},
                          {},
                          data<float>(in(c, LSE)),
                          has(c, D_LSE) ? data<float>(in(c, D_LSE)) : nullptr,
                          all.queries};
    if (plan.wantQ) x.dQ = headView<T>(out(c, DQ));
    if (plan.wantK) x.dK = headView<T>(out(c, DK));
    if (plan.wantV) x.dV = headView<T>(out(c, DV));
    parallelFor(owners * plan.pieces, 1 + (1 << 18) / work, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t piece = item / owners, owner = item % owners;
        attendBackward<T>(plan, x, all.at(owner / plan.kvHeads), owner % plan.kvHeads, piece,
                          plan.pieces == 1 ? nullptr : partials + piece * partial,
                          static_cast<float*>(c->workspace) + worker * floats);
      }
    });
    if (plan.pieces == 1 || !plan.wantQ) return;
    const int64_t ldq = roundUp(plan.dim, VL);
    parallelFor(owners, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t owner = begin; owner < end; owner++) {
        const Sequence s = all.at(owner / plan.kvHeads);
        const int64_t h0 = owner % plan.kvHeads * plan.group;
        float* sum = partials + ((s.batch * x.queries + s.firstQuery) * plan.heads + h0 * s.queries) * ldq;
        for (int64_t row = 0; row < s.queries * plan.group; row++, sum += ldq) {
          for (int64_t piece = 1; piece < plan.pieces; piece++)
            for (int64_t j = 0; j < plan.dim; j += VL) store(sum + j, load(sum + j) + load(sum + piece * partial + j));
          packOut(plan.dim, sum, x.dQ.at(s.batch, s.firstQuery + row / plan.group, h0 + row % plan.group), plan.scale);
        }
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(attention, {"attention", "blocked", nullptr, attentionWorkspace, attention},
               {"attentionBackward", "blocked", nullptr, attentionBackwardWorkspace, attentionBackward})
