// layerNorm: y = (x - mean) / sqrt(var + eps) * weight + bias, over the last axis (Ba et al. 2016, arXiv 1607.06450).
#pragma once
#include "ops/schema.h"

namespace mm::ops::layer_norm {
enum In { X, WEIGHT, BIAS };
enum Out { Y };
struct Attrs {
  double eps;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(C)"), c.expectShape(BIAS, {c.dim(X, -1)}, "(C)");
  c.expectParameterDtype(WEIGHT, X), c.expectParameterDtype(BIAS, X);
  if (c.has(WEIGHT) && c.has(BIAS)) c.expectSameDtype(BIAS, WEIGHT);
  c.out(Y, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "layerNorm",
    "Layer norm over the last axis: `y = (x - mean) / sqrt(var + eps) * weight + bias`, var without Bessel's correction "
    "(arXiv 1607.06450).",
    {input("x", kFloat, "(..., C)"), optional(input("weight", kFloat, "(C), f32 or x's dtype; absent is 1")),
     optional(input("bias", kFloat, "(C), weight's dtype; absent is 0"))},
    {number("eps", 1e-5, "added to the variance")},
    {{"y", "(..., C), x's dtype"}},
    infer,
    "layerNormBackward",
});
#endif
}  // namespace mm::ops::layer_norm

namespace mm::ops::layer_norm_bwd {
enum In { X, WEIGHT, BIAS, DY };
enum Out { DX, DWEIGHT, DBIAS };
struct Attrs {
  double eps;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(C)"), c.expectShape(BIAS, {c.dim(X, -1)}, "(C)");
  c.expectParameterDtype(WEIGHT, X), c.expectParameterDtype(BIAS, X);
  c.expectSameShape(DY, X), c.expectSameDtype(DY, X);
  if (needs & 1) c.out(DX, c.dtype(X), c.shape(X));
  if (needs & 2 && c.has(WEIGHT)) c.out(DWEIGHT, MM_F32, {c.dim(X, -1)});
  if (needs & 4 && c.has(BIAS)) c.out(DBIAS, MM_F32, {c.dim(X, -1)});
}
MM_REGISTER_OP({
    "layerNormBackward",
    "Gradients of layerNorm.",
    {input("x", kFloat, "(..., C)"), optional(input("weight", kFloat, "(C)")),
     optional(input("bias", kFloat, "(C), only its presence is used")), input("dY", kFloat, "(..., C)")},
    {number("eps", 1e-5, "as in the forward"), integer("needs", 7, "bit 0: dX, bit 1: dWeight, bit 2: dBias")},
    {{"dX", "(..., C), x's dtype"}, {"dWeight", "(C), f32"}, {"dBias", "(C), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::layer_norm_bwd
