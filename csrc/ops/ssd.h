// ssd: the state-space-dual scan of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060).
#pragma once
#include "ops/schema.h"

namespace mm::ops::ssd {
enum In { X, DT, A, B, C, D, Z, DTBIAS, INITIALSTATES, CUSEQLENS };
enum Out { Y, FINALSTATES };
struct Attrs {
  int64_t dtSoftplus;
};
#ifdef MM_OP_SCHEMA
// Checks shared with the backward op, whose inputs begin alike; returns the shape of the states.
inline Shape check(Infer& c) {
  c.expectRank(X, 4);
  c.expectRank(B, 4);
  const int64_t batch = c.dim(X, 0), length = c.dim(X, 1), heads = c.dim(X, 2), p = c.dim(X, 3);
  const int64_t groups = c.dim(B, 2), n = c.dim(B, 3);
  c.require(groups > 0 && heads % groups == 0, "ERR_SHAPE", "B has %lld groups, which must divide the %lld heads of x",
            static_cast<long long>(groups), static_cast<long long>(heads));
  c.require(n > 0 && p > 0, "ERR_SHAPE", "x (B, L, H, P) and B (B, L, G, N) must have P > 0 and N > 0");
  c.expectShape(DT, {batch, length, heads}, "(B, L, H)");
  c.expectShape(A, {heads}, "(H)");
  c.expectShape(B, {batch, length, groups, n}, "(B, L, G, N)");
  c.expectShape(C, {batch, length, groups, n}, "(B, L, G, N)");
  c.expectSameDtype(B, X);
  c.expectSameDtype(C, X);
  c.expectParameterDtype(DT, X);
  c.expectParameterDtype(A, X);
  if (c.has(D)) {
    c.expectRank(D, 1, 2);
    if (c.rank(D) == 1) c.expectShape(D, {heads}, "(H) or (H, P)");
    else c.expectShape(D, {heads, p}, "(H) or (H, P)");
    c.expectParameterDtype(D, X);
  }
  if (c.has(Z)) {
    c.expectSameShape(Z, X);
    c.expectSameDtype(Z, X);
  }
  if (c.has(DTBIAS)) {
    c.expectShape(DTBIAS, {heads}, "(H)");
    c.expectParameterDtype(DTBIAS, X);
  }
  int64_t sequences = batch;
  if (c.has(CUSEQLENS)) {
    c.require(batch == 1, "ERR_SHAPE", "with cuSeqlens x must have batch 1, it has %lld", static_cast<long long>(batch));
    sequences = c.expectStarts(CUSEQLENS, c.dim(X, 1));
  }
  const Shape states = {sequences, heads, p, n};
  if (c.has(INITIALSTATES)) c.expectShape(INITIALSTATES, states, "(B, H, P, N), or (S, H, P, N) with cuSeqlens");
  return states;
}
inline void infer(Infer& c) {
  Shape states = check(c);
  c.out(Y, c.dtype(X), c.shape(X));
  c.out(FINALSTATES, MM_F32, states);
}
MM_REGISTER_OP({
    "ssd",
    "Mamba-2's scan in its state-space-dual form (arXiv 2405.21060): `d = softplus(dt + dtBias)` (or without softplus), "
    "`s_t = exp(d_t A) s_{t-1} + d_t x_t B_t^T`, `y_t = (s_t C_t + D x_t) * silu(z_t)`.",
    {rows(input("x", kFloat, "(B, L, H, P)")), rows(input("dt", kFloat, "(B, L, H), x's dtype or f32")),
     input("A", kFloat, "(H), negative, x's dtype or f32"), rows(input("B", kFloat, "(B, L, G, N), G divides H")),
     rows(input("C", kFloat, "(B, L, G, N)")), optional(input("D", kFloat, "(H) or (H, P), x's dtype or f32")),
     optional(rows(input("z", kFloat, "(B, L, H, P), gate"))), optional(input("dtBias", kFloat, "(H), x's dtype or f32")),
     optional(input("initialStates", kF32, "(B, H, P, N), or (S, H, P, N) with cuSeqlens")),
     optional(input("cuSeqlens", kI32, "(S + 1), starts of the packed sequences, from 0 to L; B must be 1"))},
    {flag("dtSoftplus", true, "apply softplus to dt + dtBias")},
    {{"y", "(B, L, H, P), x's dtype"}, {"finalStates", "(B or S, H, P, N), f32"}},
    infer,
    "ssdBackward",
});
#endif
}  // namespace mm::ops::ssd

namespace mm::ops::ssd_bwd {
enum In { X, DT, A, B, C, D, Z, DTBIAS, INITIALSTATES, CUSEQLENS, DY, DFINALSTATES };
enum Out { DX, DDT, DA, DB, DC, DD, DZ, DDTBIAS, DINITIALSTATES };
struct Attrs {
  int64_t dtSoftplus;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Shape states = ssd::check(c);
  const int64_t needs = c.attrs<Attrs>().needs;
  if (c.has(DY)) {
    c.expectSameShape(DY, X);
    c.expectSameDtype(DY, X);
  }
  if (c.has(DFINALSTATES)) c.expectShape(DFINALSTATES, states, "(B, H, P, N), or (S, H, P, N) with cuSeqlens");
  const auto wanted = [&](int slot) { return (needs >> slot & 1) && c.has(slot); };
  if (wanted(X)) c.out(DX, c.dtype(X), c.shape(X));
  if (wanted(DT)) c.out(DDT, c.dtype(DT), c.shape(DT));
  if (wanted(A)) c.out(DA, MM_F32, c.shape(A));
  if (wanted(B)) c.out(DB, c.dtype(B), c.shape(B));
  if (wanted(C)) c.out(DC, c.dtype(C), c.shape(C));
  if (wanted(D)) c.out(DD, MM_F32, c.shape(D));
  if (wanted(Z)) c.out(DZ, c.dtype(Z), c.shape(Z));
  if (wanted(DTBIAS)) c.out(DDTBIAS, MM_F32, c.shape(DTBIAS));
  if (wanted(INITIALSTATES)) c.out(DINITIALSTATES, MM_F32, states);
}
MM_REGISTER_OP({
    "ssdBackward",
    "Gradients of ssd. An upstream gradient that is absent is zero.",
    {rows(input("x", kFloat, "(B, L, H, P)")), rows(input("dt", kFloat, "(B, L, H)")), input("A", kFloat, "(H)"),
     rows(input("B", kFloat, "(B, L, G, N)")), rows(input("C", kFloat, "(B, L, G, N)")),
     optional(input("D", kFloat, "(H) or (H, P)")), optional(rows(input("z", kFloat, "(B, L, H, P)"))),
     optional(input("dtBias", kFloat, "(H)")),
     optional(input("initialStates", kF32, "(B or S, H, P, N)")), optional(input("cuSeqlens", kI32, "(S + 1)")),
     optional(rows(input("dY", kFloat, "(B, L, H, P)"))), optional(input("dFinalStates", kF32, "(B or S, H, P, N)"))},
    {flag("dtSoftplus", true, "as in the forward"), integer("needs", 511, "bit i: gradient of input i of ssd")},
    {{"dX", "x's shape and dtype"},
     {"dDt", "dt's shape and dtype"},
     {"dA", "(H), f32"},
     {"dB", "B's shape and dtype"},
     {"dC", "C's shape and dtype"},
     {"dD", "D's shape, f32"},
     {"dZ", "z's shape and dtype"},
     {"dDtBias", "(H), f32"},
     {"dInitialStates", "(B or S, H, P, N), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::ssd_bwd
