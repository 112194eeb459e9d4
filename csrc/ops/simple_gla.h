// simpleGla: gated linear attention with one decay a head and step (as in RetNet and Mamba-2).
#pragma once
#include "ops/linear_attention.h"

namespace mm::ops::simple_gla {
enum In { Q, K, V, G, INITIALSTATE, CUSEQLENS };
enum Out { O, FINALSTATE };
struct Attrs {
  double scale;
};
#ifdef MM_OP_SCHEMA
inline Shape check(Infer& c) {
  const Shape states = linear_attention::check(c, INITIALSTATE, CUSEQLENS);
  c.expectShape(G, {c.dim(Q, 0), c.dim(Q, 1), c.dim(Q, 2)}, "(B, T, H)");
  c.expectParameterDtype(G, Q);
  return states;
}
inline void infer(Infer& c) {
  const Shape states = check(c);
  c.out(O, c.dtype(Q), c.shape(V));
  c.out(FINALSTATE, MM_F32, states);
}
MM_REGISTER_OP({
    "simpleGla",
    "Linear attention with a decay per head and step: `S_t = exp(g_t) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`.",
    {rows(input("q", kFloat, "(B, T, H, K)")), rows(input("k", kFloat, "(B, T, H, K)")), rows(input("v", kFloat, "(B, T, H, V)")),
     rows(input("g", kFloat, "(B, T, H), log-decay, q's dtype or f32")),
     optional(input("initialState", kF32, "(B, H, K, V), or (S, H, K, V) with cuSeqlens")),
     optional(input("cuSeqlens", kI32, "(S + 1), starts of the packed sequences, from 0 to T; B must be 1"))},
    {number("scale", 0, "of q; 0: 1/sqrt(K)")},
    {{"o", "(B, T, H, V), q's dtype"}, {"finalState", "(B or S, H, K, V), f32"}},
    infer,
    "simpleGlaBackward",
});
#endif
}  // namespace mm::ops::simple_gla

namespace mm::ops::simple_gla_bwd {
enum In { Q, K, V, G, INITIALSTATE, CUSEQLENS, DO, DFINALSTATE };
enum Out { DQ, DK, DV, DG, DINITIALSTATE };
struct Attrs {
  double scale;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Shape states = simple_gla::check(c);
  linear_attention::checkUpstream(c, states, DO, DFINALSTATE);
  const int64_t needs = c.attrs<Attrs>().needs;
  if (needs & 1) c.out(DQ, c.dtype(Q), c.shape(Q));
  if (needs & 2) c.out(DK, c.dtype(K), c.shape(K));
  if (needs & 4) c.out(DV, c.dtype(V), c.shape(V));
  if (needs & 8) c.out(DG, c.dtype(G), c.shape(G));
  if ((needs & 16) && c.has(INITIALSTATE)) c.out(DINITIALSTATE, MM_F32, states);
}
MM_REGISTER_OP({
    "simpleGlaBackward",
    "Gradients of simpleGla. An upstream gradient that is absent is zero.",
    {rows(input("q", kFloat, "(B, T, H, K)")), rows(input("k", kFloat, "(B, T, H, K)")), rows(input("v", kFloat, "(B, T, H, V)")),
     rows(input("g", kFloat, "(B, T, H)")), optional(input("initialState", kF32, "(B or S, H, K, V)")),
     optional(input("cuSeqlens", kI32, "(S + 1)")), optional(rows(input("dO", kFloat, "(B, T, H, V)"))),
     optional(input("dFinalState", kF32, "(B or S, H, K, V)"))},
    {number("scale", 0, "as in the forward"), integer("needs", 31, "bit i: gradient of input i of simpleGla")},
    {{"dQ", "q's shape and dtype"},
     {"dK", "k's shape and dtype"},
     {"dV", "v's shape and dtype"},
     {"dG", "g's shape and dtype"},
     {"dInitialState", "(B or S, H, K, V), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::simple_gla_bwd
