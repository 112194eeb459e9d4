// rope: rotary position embedding of queries and keys, x cos + rotateHalf(x) sin with rotateHalf(x) = [-x2, x1]
// (Su et al. 2021, arXiv 2104.09864), and ropeTable, which makes the cos and sin tables.
#pragma once
#include "ops/schema.h"

namespace mm::ops::rope {
enum In { Q, K, COS, SIN, POSITION_IDS };
enum Out { Q_EMBED, K_EMBED };
struct Attrs {
  int64_t inverse;
};
#ifdef MM_OP_SCHEMA
// A result with the order of axes of the input, but the last axis always dense.
inline void outRows(Infer& c, int slot, int inputSlot) {
  const Desc& d = c.in(inputSlot);
  int order[3] = {0, 1, 2};
  for (int i = 1; i < 3; i++)
    for (int j = i; j > 0 && d.strides[order[j]] > d.strides[order[j - 1]]; j--) std::swap(order[j], order[j - 1]);
  Shape strides(4, 1);
  int64_t step = d.shape[3];
  for (int i = 2; i >= 0; i--) strides[order[i]] = step, step *= d.shape[order[i]];
  c.out(slot, d.dtype, d.shape, strides);
}
inline void checkTable(Infer& c, int cos, int sin, int ids, int64_t batch, int64_t length, int64_t dim) {
  c.expectRank(cos, 2);
  c.require(c.dim(cos, 1) == dim && dim % 2 == 0, "ERR_SHAPE", "cos has rows of %lld; expected the even head size %lld",
            (long long)c.dim(cos, 1), (long long)dim);
  c.expectSameShape(sin, cos);
  c.expectRank(ids, 2);
  c.require((c.dim(ids, 0) == 1 || c.dim(ids, 0) == batch) && c.dim(ids, 1) == length, "ERR_SHAPE",
            "positionIds has shape %s; expected (1, %lld) or (%lld, %lld)", shapeText(c.shape(ids)).c_str(), (long long)length,
            (long long)batch, (long long)length);
}
inline void infer(Infer& c) {
  c.expectRank(Q, 4), c.expectRank(K, 4);
  c.expectShape(K, {c.dim(Q, 0), c.dim(K, 1), c.dim(Q, 2), c.dim(Q, 3)}, "(B, Hk, L, D)");
  c.expectSameDtype(K, Q);
  checkTable(c, COS, SIN, POSITION_IDS, c.dim(Q, 0), c.dim(Q, 2), c.dim(Q, 3));
  outRows(c, Q_EMBED, Q), outRows(c, K_EMBED, K);
}
MM_REGISTER_OP({
    "rope",
    "Rotary position embedding: `y = x cos[p] + [-x2, x1] sin[p]` for every head, with the position p of the token and x1, x2 "
    "the halves of a head (arXiv 2104.09864). `inverse` turns back.",
    {rows(input("q", kFloat, "(B, H, L, D)")), rows(input("k", kFloat, "(B, Hk, L, D)")),
     input("cos", kF32, "(n, D), of ropeTable"), input("sin", kF32, "(n, D)"),
     input("positionIds", kI32, "(1, L) or (B, L), each in [0, n)")},
    {flag("inverse", false, "rotate by the negative angle")},
    {{"qEmbed", "(B, H, L, D), laid out in memory like q"}, {"kEmbed", "(B, Hk, L, D), laid out like k"}},
    infer,
    "ropeBackward",
});
#endif
}  // namespace mm::ops::rope

namespace mm::ops::rope_bwd {
enum In { COS, SIN, POSITION_IDS, D_Q_EMBED, D_K_EMBED };
enum Out { DQ, DK };
struct Attrs {
  int64_t inverse, needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  for (int slot : {int(D_Q_EMBED), int(D_K_EMBED)}) {
    if (!c.has(slot)) continue;
    c.expectRank(slot, 4);
    rope::checkTable(c, COS, SIN, POSITION_IDS, c.dim(slot, 0), c.dim(slot, 2), c.dim(slot, 3));
  }
  if (c.has(D_Q_EMBED) && c.has(D_K_EMBED)) {
    const Shape& q = c.shape(D_Q_EMBED);
    c.expectShape(D_K_EMBED, {q[0], c.dim(D_K_EMBED, 1), q[2], q[3]}, "(B, Hk, L, D)");
    c.expectSameDtype(D_K_EMBED, D_Q_EMBED);
  }
  if (needs & 1 && c.has(D_Q_EMBED)) rope::outRows(c, DQ, D_Q_EMBED);
  if (needs & 2 && c.has(D_K_EMBED)) rope::outRows(c, DK, D_K_EMBED);
}
MM_REGISTER_OP({
    "ropeBackward",
    "Gradients of rope: the transposed rotation. A gradient whose upstream is absent is zero and not returned.",
    {input("cos", kF32, "(n, D)"), input("sin", kF32, "(n, D)"), input("positionIds", kI32, "(1, L) or (B, L)"),
     optional(rows(input("dQEmbed", kFloat, "(B, H, L, D)"))), optional(rows(input("dKEmbed", kFloat, "(B, Hk, L, D)")))},
    {flag("inverse", false, "as in the forward"), integer("needs", 3, "bit 0: dQ, bit 1: dK")},
    {{"dQ", "(B, H, L, D), laid out like dQEmbed"}, {"dK", "(B, Hk, L, D), laid out like dKEmbed"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::rope_bwd

namespace mm::ops::rope_table {
enum Out { COS, SIN };
enum Scaling { NONE, LINEAR, DYNAMIC };
struct Attrs {
  int64_t headDim, length;
  double theta;
  int64_t scaling;
  double factor;
  int64_t maxPosition, seqLen;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  c.require(a.headDim > 0 && a.headDim % 2 == 0, "ERR_ARGUMENT", "headDim is %lld; expected an even number",
            (long long)a.headDim);
  c.require(a.length >= 0 && a.maxPosition >= 0 && a.seqLen >= 0, "ERR_ARGUMENT",
            "length, maxPosition and seqLen must not be negative");
  c.require(a.theta > 0 && a.factor > 0, "ERR_ARGUMENT", "theta and factor must be positive, not %g and %g", a.theta, a.factor);
  c.require(a.scaling != DYNAMIC || (a.headDim > 2 && a.maxPosition > 0), "ERR_ARGUMENT",
            "dynamic scaling needs headDim above 2 and maxPosition above 0, not %lld and %lld", (long long)a.headDim,
            (long long)a.maxPosition);
  const int64_t longest = a.maxPosition > a.seqLen ? a.maxPosition : a.seqLen;
  const Shape shape = {a.length ? a.length : longest, a.headDim};
  c.out(COS, MM_F32, shape), c.out(SIN, MM_F32, shape);
}
MM_REGISTER_OP({
    "ropeTable",
    "Tables of rope: row t holds cos and sin of `t * theta^(-2i / headDim)`, twice. linear divides t by factor; dynamic (NTK), "
    "when seqLen exceeds maxPosition, raises theta by `(factor * seqLen / maxPosition - (factor - 1))^(headDim / (headDim - "
    "2))`. "
    "Angles are computed in f32, as the reference does.",
    {},
    {required(integer("headDim", 0, "channels of a head, even")), integer("length", 0, "rows; 0 is max(maxPosition, seqLen)"),
     number("theta", 10000, "base of the frequencies"),
     choice("scaling", "none|linear|dynamic", "of the positions or of the base"), number("factor", 1, "of the scaling"),
     integer("maxPosition", 0, "length the model was trained for"), integer("seqLen", 0, "length the table is made for")},
    {{"cos", "(n, headDim) f32"}, {"sin", "(n, headDim) f32"}},
    infer,
    "none: has no inputs",
});
#endif
}  // namespace mm::ops::rope_table
