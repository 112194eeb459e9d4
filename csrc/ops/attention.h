// attention: softmax(scale q k^T + mask) v with grouped key-value heads (Dao 2023, arXiv 2307.08691). Head h reads
// key-value head h / (H / Hk). Query i stands at key position p = i + Lk - Lq (bottom right): causal allows j <= p, a
// window allows p - windowLeft <= j <= p + windowRight. Packed sequences: batch 1, and cuSeqlens holds their starts.
#pragma once
#include "ops/schema.h"

namespace mm::ops::attention {
enum In { Q, K, V, CU_SEQLENS_Q, CU_SEQLENS_K };
enum Out { O, LSE };
struct Attrs {
  double scale;
  int64_t causal, windowLeft, windowRight;
};
#ifdef MM_OP_SCHEMA
inline void checkShapes(Infer& c, int q, int k, int v) {
  c.expectRank(q, 4), c.expectRank(k, 4), c.expectRank(v, 4);
  const int64_t batch = c.dim(q, 0), heads = c.dim(q, 2), dim = c.dim(q, 3), kvHeads = c.dim(k, 2);
  c.require(dim >= 1 && dim <= 256, "ERR_SHAPE", "q has heads of %lld channels; 1 to 256 are possible", (long long)dim);
  c.require(kvHeads >= 1 && heads % kvHeads == 0, "ERR_SHAPE",
            "q has %lld heads, which must be a multiple of the %lld heads of k and v", (long long)heads, (long long)kvHeads);
  c.expectShape(k, {batch, c.dim(k, 1), kvHeads, dim}, "(B, Lk, Hk, D)");
  c.expectShape(v, {batch, c.dim(k, 1), kvHeads, dim}, "(B, Lk, Hk, D)");
  c.expectSameDtype(k, q), c.expectSameDtype(v, q);
}
inline void checkMask(Infer& c, int q, int k, int cuQ, int cuK, int64_t windowLeft, int64_t windowRight) {
  c.require(windowLeft >= -1 && windowRight >= -1, "ERR_ARGUMENT",
            "windowLeft and windowRight are at least -1 (unlimited), not %lld and %lld", (long long)windowLeft,
            (long long)windowRight);
  c.require(c.has(cuQ) == c.has(cuK), "ERR_ARGUMENT", "cuSeqlensQ and cuSeqlensK come together");
  if (!c.has(cuQ)) return;
  c.require(c.dim(q, 0) == 1, "ERR_SHAPE", "packed sequences stand in one batch row, but q has %lld", (long long)c.dim(q, 0));
  c.expectStarts(cuQ, c.dim(q, 1)), c.expectStarts(cuK, c.dim(k, 1));
  c.expectShape(cuK, c.shape(cuQ), "(S + 1)");
}
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  checkShapes(c, Q, K, V);
  checkMask(c, Q, K, CU_SEQLENS_Q, CU_SEQLENS_K, a.windowLeft, a.windowRight);
  c.out(O, c.dtype(Q), c.shape(Q));
  c.out(LSE, MM_F32, {c.dim(Q, 0), c.dim(Q, 2), c.dim(Q, 1)});
}
MM_REGISTER_OP({
    "attention",
    "Softmax attention without the matrix of scores: `o = softmax(scale q k^T) v` and `lse = log sum exp` of the scores "
    "(FlashAttention, arXiv 2307.08691). Query i stands at key position `i + Lk - Lq`. A query without any allowed key "
    "gives o = 0 and lse = -inf.",
    {rows(input("q", kFloat, "(B, Lq, H, D), D up to 256")), rows(input("k", kFloat, "(B, Lk, Hk, D), Hk divides H")),
     rows(input("v", kFloat, "(B, Lk, Hk, D)")),
     optional(input("cuSeqlensQ", kI32, "(S + 1) starts of packed query sequences and the end; B is 1")),
     optional(input("cuSeqlensK", kI32, "(S + 1) the same of keys and values"))},
    {number("scale", 0, "factor of the scores; 0 is 1 / sqrt(D)"),
     flag("causal", false, "a query sees the keys up to its own position"),
     integer("windowLeft", -1, "keys this far before the query are seen; -1 is unlimited"),
     integer("windowRight", -1, "keys this far behind the query are seen; -1 is unlimited, causal makes it 0")},
    {{"o", "(B, Lq, H, D), q's dtype"}, {"lse", "(B, H, Lq) f32, natural logarithm"}},
    infer,
    "attentionBackward",
});
#endif
}  // namespace mm::ops::attention

namespace mm::ops::attention_bwd {
enum In { Q, K, V, CU_SEQLENS_Q, CU_SEQLENS_K, O, LSE, D_O, D_LSE };
enum Out { DQ, DK, DV };
struct Attrs {
  double scale;
  int64_t causal, windowLeft, windowRight, needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  attention::checkShapes(c, Q, K, V);
  attention::checkMask(c, Q, K, CU_SEQLENS_Q, CU_SEQLENS_K, a.windowLeft, a.windowRight);
  c.expectSameShape(O, Q), c.expectSameDtype(O, Q);
  c.expectSameShape(D_O, Q), c.expectSameDtype(D_O, Q);
  const Shape lse = {c.dim(Q, 0), c.dim(Q, 2), c.dim(Q, 1)};
  c.expectShape(LSE, lse, "(B, H, Lq)"), c.expectShape(D_LSE, lse, "(B, H, Lq)");
  if (a.needs & 1) c.out(DQ, c.dtype(Q), c.shape(Q));
  if (a.needs & 2) c.out(DK, c.dtype(K), c.shape(K));
  if (a.needs & 4) c.out(DV, c.dtype(V), c.shape(V));
}
MM_REGISTER_OP({
    "attentionBackward",
    "Gradients of attention; the probabilities are recomputed from lse.",
    {rows(input("q", kFloat, "(B, Lq, H, D)")), rows(input("k", kFloat, "(B, Lk, Hk, D)")),
     rows(input("v", kFloat, "(B, Lk, Hk, D)")), optional(input("cuSeqlensQ", kI32, "(S + 1)")),
     optional(input("cuSeqlensK", kI32, "(S + 1)")), rows(input("o", kFloat, "(B, Lq, H, D)")), input("lse", kF32, "(B, H, Lq)"),
     rows(input("dO", kFloat, "(B, Lq, H, D)")), optional(input("dLse", kF32, "(B, H, Lq); absent is zero"))},
    {number("scale", 0, "as in the forward"), flag("causal", false, "as in the forward"),
     integer("windowLeft", -1, "as in the forward"), integer("windowRight", -1, "as in the forward"),
     integer("needs", 7, "bit 0: dQ, bit 1: dK, bit 2: dV")},
    {{"dQ", "(B, Lq, H, D), q's dtype"}, {"dK", "(B, Lk, Hk, D)"}, {"dV", "(B, Lk, Hk, D)"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::attention_bwd
