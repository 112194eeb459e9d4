// linear: y = act(x weight^T + bias) + residual, over the last axis.
#pragma once
#include "ops/schema.h"

namespace mm::ops::linear {
enum In { X, WEIGHT, BIAS, RESIDUAL };
enum Out { Y };
struct Attrs {
  int64_t activation;  // none, gelu, silu
};
#ifdef MM_OP_SCHEMA
inline void checkOperands(Infer& c, int bias) {
  c.expectRank(0, 1, MM_MAX_DIMS);
  c.expectRank(1, 2);
  c.require(c.dim(1, 1) == c.dim(0, -1), "ERR_SHAPE",
            "x has shape %s and weight %s; expected (..., K) and (N, K): %lld inputs against %lld", shapeText(c.shape(0)).c_str(),
            shapeText(c.shape(1)).c_str(), static_cast<long long>(c.dim(0, -1)), static_cast<long long>(c.dim(1, 1)));
  c.expectSameDtype(1, 0);
  c.expectShape(bias, {c.dim(1, 0)}, "(N)");
  c.expectParameterDtype(bias, 0);
}
inline Shape resultShape(const Infer& c) {
  Shape s = c.shape(0);
  s.back() = c.dim(1, 0);
  return s;
}
inline void infer(Infer& c) {
  checkOperands(c, BIAS);
  const Shape y = resultShape(c);
  c.expectShape(RESIDUAL, y, "(..., N)");
  if (c.has(RESIDUAL)) c.expectSameDtype(RESIDUAL, X);
  c.out(Y, c.dtype(X), y);
}
MM_REGISTER_OP({
    "linear",
    "Dense layer over the last axis: `y = act(x weight^T + bias) + residual`. gelu is the exact one (erf).",
    {input("x", kFloat, "(..., K)"), input("weight", kFloat, "(N, K), x's dtype"),
     optional(input("bias", kFloat, "(N), f32 or x's dtype")),
     optional(input("residual", kFloat, "(..., N), x's dtype; added last"))},
    {choice("activation", "none|gelu|silu", "applied before the residual is added")},
    {{"y", "(..., N), x's dtype"}},
    infer,
    "linearBackward",
});
#endif
}  // namespace mm::ops::linear

namespace mm::ops::linear_bwd {
enum In { X, WEIGHT, BIAS, DY };
enum Out { DX, DWEIGHT, DBIAS, DRESIDUAL };
struct Attrs {
  int64_t activation;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  linear::checkOperands(c, BIAS);
  c.expectShape(DY, linear::resultShape(c), "(..., N)");
  c.expectSameDtype(DY, X);
  if (needs & 1) c.out(DX, c.dtype(X), c.shape(X));
  if (needs & 2) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
  if (needs & 4) c.out(DBIAS, MM_F32, {c.dim(WEIGHT, 0)});
  if (needs & 8) c.out(DRESIDUAL, c.dtype(DY), c.shape(DY));
}
MM_REGISTER_OP({
    "linearBackward",
    "Gradients of linear. With an activation, its argument is computed again.",
    {input("x", kFloat, "(..., K)"), input("weight", kFloat, "(N, K), x's dtype"),
     optional(input("bias", kFloat, "(N), f32 or x's dtype")), input("dY", kFloat, "(..., N), x's dtype")},
    {choice("activation", "none|gelu|silu", "as in the forward"),
     integer("needs", 7, "bits 0 to 3: dX, dWeight, dBias, dResidual")},
    {{"dX", "(..., K), x's dtype"}, {"dWeight", "(N, K), f32"}, {"dBias", "(N), f32"}, {"dResidual", "(..., N), x's dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::linear_bwd
