// selectiveStateUpdate: one step of the recurrence of selectiveScan (mamba1) or ssd (heads), in place on the state.
#pragma once
#include "ops/schema.h"

namespace mm::ops::selective_state_update {
enum In { STATE, X, DT, A, B, C, D, Z, DT_BIAS };
enum Out { OUT };
struct Attrs {
  int64_t dtSoftplus;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(STATE, 3, 4);
  const bool heads = c.rank(STATE) == 4;
  const Shape& s = c.shape(STATE);
  const int64_t batch = s[0], n = s.back(), h = s[1], p = heads ? s[2] : 1;
  const Shape rows(s.begin(), s.end() - 1), one(s.begin() + 1, s.end() - 1);
  c.expectShape(X, rows, heads ? "(B, H, P)" : "(B, D)");
  const bool tied = heads && c.rank(DT) == 2;
  if (tied) {
    c.expectShape(DT, {batch, h}, "(B, H), one step a head");
    c.expectShape(A, {h}, "(H), as dt is (B, H)");
    c.expectShape(DT_BIAS, {h}, "(H), as dt is (B, H)");
  } else {
    Shape full = one;
    full.push_back(n);
    c.expectShape(DT, rows, heads ? "(B, H, P) or (B, H)" : "(B, D)");
    c.expectShape(A, full, heads ? "(H, P, N), as dt is (B, H, P)" : "(D, N)");
    c.expectShape(DT_BIAS, one, heads ? "(H, P), as dt is (B, H, P)" : "(D)");
  }
  if (heads) {
    c.expectRank(B, 3);
    const int64_t groups = c.dim(B, 1);
    c.expectShape(B, {batch, groups, n}, "(B, G, N)");
    c.require(groups > 0 && h % groups == 0, "ERR_SHAPE", "B has shape %s; its %lld groups must divide the %lld heads of state",
              shapeText(c.shape(B)).c_str(), static_cast<long long>(groups), static_cast<long long>(h));
    if (c.has(D) && c.rank(D) == 1) c.expectShape(D, {h}, "(H)");
    else c.expectShape(D, {h, p}, "(H, P) or (H)");
  } else {
    c.expectShape(B, {batch, n}, "(B, N)");
    c.expectShape(D, one, "(D)");
  }
  c.expectSameShape(C, B);
  c.expectSameDtype(B, X);
  c.expectSameDtype(C, X);
  if (c.has(Z)) {
    c.expectSameShape(Z, X);
    c.expectSameDtype(Z, X);
  }
  c.expectParameterDtype(A, X);
  c.out(OUT, c.dtype(X), rows);
}
MM_REGISTER_OP({
    "selectiveStateUpdate",
    "One decoding step of a selective scan: `d = dt + dtBias` (softplus of it with dtSoftplus), `state = exp(d A) state + d x B`, "
    "`out = (<C, state> + D x) * silu(z)`. The state is updated in place. Mamba-1: state (B, D, N); heads: (B, H, P, N), with "
    "per-channel parameters or, where dt is (B, H), one dt, A and dtBias a head.",
    {mutated(input("state", kF32, "(B, D, N) or (B, H, P, N)")), rows(input("x", kFloat, "(B, D) or (B, H, P)")),
     rows(input("dt", kFloat, "like x, or (B, H)")), input("A", kFloat, "(D, N), (H, P, N) or (H), negative"),
     rows(input("B", kFloat, "(B, N) or (B, G, N), x's dtype")), rows(input("C", kFloat, "like B")),
     optional(input("D", kFloat, "(D), (H, P) or (H)")), optional(rows(input("z", kFloat, "like x, gate"))),
     optional(input("dtBias", kFloat, "(D), (H, P) or (H)"))},
    {flag("dtSoftplus", false, "step = softplus(dt + dtBias)")},
    {{"out", "like x"}},
    infer,
    "none: a decoding step",
});
#endif
}  // namespace mm::ops::selective_state_update
