// gatedRmsNorm: y = rmsNorm(x) * gate * sigmoid(gate), over the last axis; the norm before the gate of Mamba-2
// (Dao & Gu 2024, arXiv 2405.21060).
#pragma once
#include "ops/schema.h"

namespace mm::ops::gated_rms_norm {
enum In { X, GATE, WEIGHT };
enum Out { Y };
struct Attrs {
  double eps;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectSameShape(GATE, X), c.expectSameDtype(GATE, X);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(P)"), c.expectParameterDtype(WEIGHT, X);
  c.out(Y, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "gatedRmsNorm",
    "Root-mean-square norm over the last axis, then a SiLU gate: `y = x / sqrt(mean(x^2) + eps) * weight * gate * "
    "sigmoid(gate)` (arXiv 2405.21060).",
    {rows(input("x", kFloat, "(..., P)")), rows(input("gate", kFloat, "(..., P), x's shape and dtype")),
     input("weight", kFloat, "(P), f32 or x's dtype")},
    {number("eps", 1e-5, "added to the mean square")},
    {{"y", "(..., P), x's dtype"}},
    infer,
    "gatedRmsNormBackward",
});
#endif
}  // namespace mm::ops::gated_rms_norm

namespace mm::ops::gated_rms_norm_bwd {
enum In { X, GATE, WEIGHT, DY };
enum Out { DX, DGATE, DWEIGHT };
struct Attrs {
  double eps;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectSameShape(GATE, X), c.expectSameDtype(GATE, X);
  c.expectSameShape(DY, X), c.expectSameDtype(DY, X);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(P)"), c.expectParameterDtype(WEIGHT, X);
  if (needs & 1) c.out(DX, c.dtype(X), c.shape(X));
  if (needs & 2) c.out(DGATE, c.dtype(X), c.shape(X));
  if (needs & 4) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
}
MM_REGISTER_OP({
    "gatedRmsNormBackward",
    "Gradients of gatedRmsNorm.",
    {rows(input("x", kFloat, "(..., P)")), rows(input("gate", kFloat, "(..., P)")), input("weight", kFloat, "(P)"),
     rows(input("dY", kFloat, "(..., P)"))},
    {number("eps", 1e-5, "as in the forward"), integer("needs", 7, "bit 0: dX, bit 1: dGate, bit 2: dWeight")},
    {{"dX", "(..., P), x's dtype"}, {"dGate", "(..., P), x's dtype"}, {"dWeight", "(P), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::gated_rms_norm_bwd
