// matmul: y = a b over the last two axes, batched over the others with broadcasting.
#pragma once
#include "ops/schema.h"

namespace mm::ops::matmul {
enum In { A, B };
enum Out { Y };
struct Attrs {
  int64_t transposeA;
  int64_t transposeB;
};
#ifdef MM_OP_SCHEMA
// Checks a and b against each other and returns the shape of y.
inline Shape productShape(Infer& c, bool transposeA, bool transposeB) {
  c.expectRank(A, 2, MM_MAX_DIMS);
  c.expectRank(B, 2, MM_MAX_DIMS);
  c.expectSameDtype(B, A);
  const int64_t m = c.dim(A, transposeA ? -1 : -2), ka = c.dim(A, transposeA ? -2 : -1);
  const int64_t kb = c.dim(B, transposeB ? -1 : -2), n = c.dim(B, transposeB ? -2 : -1);
  c.require(ka == kb, "ERR_SHAPE", "a has shape %s%s and b %s%s: the sum would run over %lld elements of a and %lld of b",
            shapeText(c.shape(A)).c_str(), transposeA ? " (transposed)" : "", shapeText(c.shape(B)).c_str(),
            transposeB ? " (transposed)" : "", static_cast<long long>(ka), static_cast<long long>(kb));
  const int rank = c.rank(A) > c.rank(B) ? c.rank(A) : c.rank(B);
  Shape y;
  for (int axis = -rank; axis < -2; axis++) {
    const int64_t sa = axis < -c.rank(A) ? 1 : c.dim(A, axis), sb = axis < -c.rank(B) ? 1 : c.dim(B, axis);
    c.require(sa == sb || sa == 1 || sb == 1, "ERR_SHAPE",
              "a has shape %s and b %s: batch axes must be equal or 1 (%lld against %lld)", shapeText(c.shape(A)).c_str(),
              shapeText(c.shape(B)).c_str(), static_cast<long long>(sa), static_cast<long long>(sb));
    y.push_back(sa == 1 ? sb : sa);
  }
  y.push_back(m), y.push_back(n);
  return y;
}
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  c.out(Y, c.dtype(A), productShape(c, a.transposeA, a.transposeB));
}
MM_REGISTER_OP({
    "matmul",
    "Matrix product over the last two axes, `y = a b`; the axes before them are batches, equal or broadcast from 1.",
    {rows(input("a", kFloat, "(..., M, K), or (..., K, M) with transposeA")),
     rows(input("b", kFloat, "(..., K, N), or (..., N, K) with transposeB; a's dtype"))},
    {flag("transposeA", false, "a is stored transposed"), flag("transposeB", false, "b is stored transposed")},
    {{"y", "(..., M, N), a's dtype"}},
    infer,
    "matmulBackward",
});
#endif
}  // namespace mm::ops::matmul

namespace mm::ops::matmul_bwd {
enum In { A, B, DY };
enum Out { DA, DB };
struct Attrs {
  int64_t transposeA;
  int64_t transposeB;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Attrs& a = c.attrs<Attrs>();
  c.expectShape(DY, matmul::productShape(c, a.transposeA, a.transposeB), "(..., M, N)");
  c.expectSameDtype(DY, A);
  if (a.needs & 1) c.out(DA, c.dtype(A), c.shape(A));
  if (a.needs & 2) c.out(DB, c.dtype(B), c.shape(B));
}
MM_REGISTER_OP({
    "matmulBackward",
    "Gradients of matmul, summed over the batch axes along which an operand was broadcast.",
    {rows(input("a", kFloat, "as in the forward")), rows(input("b", kFloat, "as in the forward")),
     rows(input("dY", kFloat, "(..., M, N), a's dtype"))},
    {flag("transposeA", false, "as in the forward"), flag("transposeB", false, "as in the forward"),
     integer("needs", 3, "bit 0: dA, bit 1: dB")},
    {{"dA", "a's shape and dtype"}, {"dB", "b's shape and dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::matmul_bwd
