// silu, gelu and swiglu, elementwise.
#pragma once
#include "ops/schema.h"

namespace mm::ops::activation {  // silu, gelu
enum In { X };
enum Out { Y };
struct Attrs {};
}  // namespace mm::ops::activation

namespace mm::ops::activation_bwd {
enum In { X, DY };
enum Out { DX };
struct Attrs {
  int64_t needs;
};
}  // namespace mm::ops::activation_bwd

namespace mm::ops::swiglu {
enum In { A, B };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectSameShape(B, A), c.expectSameDtype(B, A);
  c.out(Y, c.dtype(A), c.shape(A));
}
MM_REGISTER_OP({
    "swiglu",
    "Gated product: `y = a * sigmoid(a) * b` (arXiv 2002.05202).",
    {rows(input("a", kFloat, "any shape; a slice of a fused projection is fine")),
     rows(input("b", kFloat, "a's shape and dtype"))},
    {},
    {{"y", "a's shape and dtype"}},
    infer,
    "swigluBackward",
});
#endif
}  // namespace mm::ops::swiglu

namespace mm::ops::swiglu_bwd {
enum In { A, B, DY };
enum Out { DA, DB };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectSameShape(B, A), c.expectSameDtype(B, A);
  c.expectSameShape(DY, A), c.expectSameDtype(DY, A);
  if (needs & 1) c.out(DA, c.dtype(A), c.shape(A));
  if (needs & 2) c.out(DB, c.dtype(A), c.shape(A));
}
MM_REGISTER_OP({
    "swigluBackward",
    "Gradients of swiglu.",
    {rows(input("a", kFloat, "any shape")), rows(input("b", kFloat, "a's shape")), rows(input("dY", kFloat, "a's shape"))},
    {integer("needs", 3, "bit 0: dA, bit 1: dB")},
    {{"dA", "a's shape and dtype"}, {"dB", "a's shape and dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::swiglu_bwd

#ifdef MM_OP_SCHEMA
namespace mm::ops::activation {
inline void infer(Infer& c) { c.out(Y, c.dtype(X), c.shape(X)); }
MM_REGISTER_OP({"silu",
                "`y = x * sigmoid(x)`.",
                {rows(input("x", kFloat, "any shape"))},
                {},
                {{"y", "x's shape and dtype"}},
                infer,
                "siluBackward"});
namespace gelu {
MM_REGISTER_OP({"gelu",
                "Exact Gaussian error linear unit: `y = x / 2 * (1 + erf(x / sqrt 2))` (arXiv 1606.08415).",
                {rows(input("x", kFloat, "any shape"))},
                {},
                {{"y", "x's shape and dtype"}},
                infer,
                "geluBackward"});
}
}  // namespace mm::ops::activation
namespace mm::ops::activation_bwd {
inline void infer(Infer& c) {
  c.expectSameShape(DY, X), c.expectSameDtype(DY, X);
  c.out(DX, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({"siluBackward",
                "Gradient of silu.",
                {rows(input("x", kFloat, "any shape")), rows(input("dY", kFloat, "x's shape"))},
                {integer("needs", 1, "bit 0: dX")},
                {{"dX", "x's shape and dtype"}},
                infer,
                "none: second derivatives are not provided"});
namespace gelu {
MM_REGISTER_OP({"geluBackward",
                "Gradient of gelu.",
                {rows(input("x", kFloat, "any shape")), rows(input("dY", kFloat, "x's shape"))},
                {integer("needs", 1, "bit 0: dX")},
                {{"dX", "x's shape and dtype"}},
                infer,
                "none: second derivatives are not provided"});
}
}  // namespace mm::ops::activation_bwd
#endif
