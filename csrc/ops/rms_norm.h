// rmsNorm: y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467).
#pragma once
#include "ops/schema.h"

namespace mm::ops::rms_norm {
enum In { X, WEIGHT };
enum Out { Y };
struct Attrs {
  double eps;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(C)"), c.expectParameterDtype(WEIGHT, X);
  c.out(Y, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "rmsNorm",
    "Root-mean-square norm over the last axis: `y = x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).",
    {input("x", kFloat, "(..., C)"), input("weight", kFloat, "(C), f32 or x's dtype")},
    {number("eps", 1e-6, "added to the mean square")},
    {{"y", "(..., C), x's dtype"}},
    infer,
    "rmsNormBackward",
});
#endif
}  // namespace mm::ops::rms_norm

namespace mm::ops::rms_norm_bwd {
enum In { X, WEIGHT, DY };
enum Out { DX, DWEIGHT };
struct Attrs {
  double eps;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectShape(WEIGHT, {c.dim(X, -1)}, "(C)"), c.expectParameterDtype(WEIGHT, X);
  c.expectSameShape(DY, X), c.expectSameDtype(DY, X);
  if (needs & 1) c.out(DX, c.dtype(X), c.shape(X));
  if (needs & 2) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
}
MM_REGISTER_OP({
    "rmsNormBackward",
    "Gradients of rmsNorm.",
    {input("x", kFloat, "(..., C)"), input("weight", kFloat, "(C)"), input("dY", kFloat, "(..., C)")},
    {number("eps", 1e-6, "as in the forward"), integer("needs", 3, "bit 0: dX, bit 1: dWeight")},
    {{"dX", "(..., C), x's dtype"}, {"dWeight", "(C), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::rms_norm_bwd
