// linearAttention: causal linear attention without decay (Katharopoulos et al. 2020, arXiv 2006.16236).
#pragma once
#include "ops/schema.h"

namespace mm::ops::linear_attention {
enum In { Q, K, V, INITIALSTATE, CUSEQLENS };
enum Out { O, FINALSTATE };
struct Attrs {
  double scale;
  int64_t normalize;
};
#ifdef MM_OP_SCHEMA
// Checks of q, k, v in slots 0 to 2 and of the two optional operands, which linearAttention, simpleGla and gla and
// their backward ops share; returns the shape of the states.
inline Shape check(Infer& c, int initial_slot, int cu_slot) {
  c.expectRank(Q, 4);
  c.expectRank(V, 4);
  const int64_t batch = c.dim(Q, 0), length = c.dim(Q, 1), heads = c.dim(Q, 2), k = c.dim(Q, 3), v = c.dim(V, 3);
  c.require(k > 0 && v > 0, "ERR_SHAPE", "q (B, T, H, K) and v (B, T, H, V) must have K > 0 and V > 0");
  c.expectSameShape(K, Q);
  c.expectShape(V, {batch, length, heads, v}, "(B, T, H, V)");
  c.expectSameDtype(K, Q);
  c.expectSameDtype(V, Q);
  int64_t sequences = batch;
  if (c.has(cu_slot)) {
    c.require(batch == 1, "ERR_SHAPE", "with cuSeqlens q must have batch 1, it has %lld", static_cast<long long>(batch));
    sequences = c.expectStarts(cu_slot, length);
  }
  const Shape states = {sequences, heads, k, v};
  if (c.has(initial_slot)) c.expectShape(initial_slot, states, "(B, H, K, V), or (S, H, K, V) with cuSeqlens");
  return states;
}
// Upstream gradients of the backward ops: dO like v, dFinalState like the states.
inline void checkUpstream(Infer& c, const Shape& states, int do_slot, int dfinal_slot) {
  if (c.has(do_slot)) {
    c.expectSameShape(do_slot, V);
    c.expectSameDtype(do_slot, Q);
  }
  if (c.has(dfinal_slot)) c.expectShape(dfinal_slot, states, "(B, H, K, V), or (S, H, K, V) with cuSeqlens");
}
inline void infer(Infer& c) {
  const Shape states = check(c, INITIALSTATE, CUSEQLENS);
  c.out(O, c.dtype(Q), c.shape(V));
  c.out(FINALSTATE, MM_F32, states);
}
MM_REGISTER_OP({
    "linearAttention",
    "Causal linear attention (arXiv 2006.16236): `S_t = S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`; with normalize "
    "`o_t /= scale <q_t, sum_{s<=t} k_s> + 1e-10`.",
    {rows(input("q", kFloat, "(B, T, H, K)")), rows(input("k", kFloat, "(B, T, H, K)")), rows(input("v", kFloat, "(B, T, H, V)")),
     optional(input("initialState", kF32, "(B, H, K, V), or (S, H, K, V) with cuSeqlens")),
     optional(input("cuSeqlens", kI32, "(S + 1), starts of the packed sequences, from 0 to T; B must be 1"))},
    {number("scale", 0, "of q; 0: 1/sqrt(K)"),
     flag("normalize", false, "divide by the sum of the weights (of this call's keys)")},
    {{"o", "(B, T, H, V), q's dtype"}, {"finalState", "(B or S, H, K, V), f32"}},
    infer,
    "linearAttentionBackward",
});
#endif
}  // namespace mm::ops::linear_attention

namespace mm::ops::linear_attention_bwd {
enum In { Q, K, V, INITIALSTATE, CUSEQLENS, O, DO, DFINALSTATE };
enum Out { DQ, DK, DV, DINITIALSTATE };
struct Attrs {
  double scale;
  int64_t normalize;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const Shape states = linear_attention::check(c, INITIALSTATE, CUSEQLENS);
  linear_attention::checkUpstream(c, states, DO, DFINALSTATE);
  const int64_t needs = c.attrs<Attrs>().needs;
  if (c.has(O)) {
    c.expectSameShape(O, V);
    c.expectSameDtype(O, Q);
  }
  c.require(!c.attrs<Attrs>().normalize || c.has(O), "ERR_ARGUMENT", "o, the forward's result, is needed with normalize");
  if (needs & 1) c.out(DQ, c.dtype(Q), c.shape(Q));
  if (needs & 2) c.out(DK, c.dtype(K), c.shape(K));
  if (needs & 4) c.out(DV, c.dtype(V), c.shape(V));
  if ((needs & 8) && c.has(INITIALSTATE)) c.out(DINITIALSTATE, MM_F32, states);
}
MM_REGISTER_OP({
    "linearAttentionBackward",
    "Gradients of linearAttention. An upstream gradient that is absent is zero.",
    {rows(input("q", kFloat, "(B, T, H, K)")), rows(input("k", kFloat, "(B, T, H, K)")), rows(input("v", kFloat, "(B, T, H, V)")),
     optional(input("initialState", kF32, "(B or S, H, K, V)")), optional(input("cuSeqlens", kI32, "(S + 1)")),
     optional(rows(input("o", kFloat, "(B, T, H, V), the forward's result; only used with normalize"))),
     optional(rows(input("dO", kFloat, "(B, T, H, V)"))), optional(input("dFinalState", kF32, "(B or S, H, K, V)"))},
    {number("scale", 0, "as in the forward"), flag("normalize", false, "as in the forward"),
     integer("needs", 15, "bit i: gradient of input i of linearAttention")},
    {{"dQ", "q's shape and dtype"},
     {"dK", "k's shape and dtype"},
     {"dV", "v's shape and dtype"},
     {"dInitialState", "(B or S, H, K, V), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::linear_attention_bwd
