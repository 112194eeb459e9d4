// selectiveScan: the state space recurrence of Mamba (Gu & Dao 2023, arXiv 2312.00752), with the input-dependent step,
// B and C, the skip D, and the gate z fused.
#pragma once
#include "ops/schema.h"

namespace mm::ops::selective_scan {
enum In { U, DELTA, A, B, C, D, Z, DELTA_BIAS };
enum Out { OUT, LAST_STATE };
struct Attrs {
  int64_t deltaSoftplus;
};
#ifdef MM_OP_SCHEMA
// (D, N) is constant; (B, N, L) and (B, G, N, L) vary in time.
inline int64_t checkProjection(Infer& c, int slot, const char* name) {
  const int64_t batch = c.dim(U, 0), channels = c.dim(U, 1), length = c.dim(U, 2), state = c.dim(A, 1);
  c.expectRank(slot, 2, 4);
  if (c.rank(slot) == 2) {
    c.expectShape(slot, {channels, state}, "(D, N)");
    return 0;
  }
  c.expectSameDtype(slot, U);
  const int64_t groups = c.rank(slot) == 3 ? 1 : c.dim(slot, 1);
  if (c.rank(slot) == 3) c.expectShape(slot, {batch, state, length}, "(B, N, L)");
  else c.expectShape(slot, {batch, groups, state, length}, "(B, G, N, L)");
  c.require(groups > 0 && channels % groups == 0, "ERR_SHAPE",
      "%s has shape %s; its %lld groups must divide the %lld channels of u", name,
            shapeText(c.shape(slot)).c_str(), static_cast<long long>(groups), static_cast<long long>(channels));
  return groups;
}
inline void check(Infer& c) {
  c.expectRank(U, 3);
  c.expectRank(A, 2);
  c.expectSameShape(DELTA, U);
  c.expectShape(A, {c.dim(U, 1), c.dim(A, 1)}, "(D, N)");
  const int64_t groupsB = checkProjection(c, B, "B"), groupsC = checkProjection(c, C, "C");
  c.require(!groupsB || !groupsC || groupsB == groupsC, "ERR_SHAPE",
      "B has shape %s and C %s; they need the same number of groups",
            shapeText(c.shape(B)).c_str(), shapeText(c.shape(C)).c_str());
  c.expectShape(D, {c.dim(U, 1)}, "(D)");
  c.expectShape(DELTA_BIAS, {c.dim(U, 1)}, "(D)");
  c.expectSameDtype(DELTA, U);
  c.expectParameterDtype(A, U);
  if (c.has(Z)) {
    c.expectSameShape(Z, U);
    c.expectSameDtype(Z, U);
  }
}
inline void infer(Infer& c) {
  check(c);
  c.outLike(OUT, U, c.dtype(U));
  c.out(LAST_STATE, MM_F32, {c.dim(U, 0), c.dim(U, 1), c.dim(A, 1)});
}
inline std::vector<InputSpec> inputs() {
  return {strided(input("u", kFloat, "(B, D, L), any layout; fastest dense or channel-last")),
      strided(input("delta", kFloat, "(B, D, L)")),
          input("A", kFloat, "(D, N), negative, f32 or u's dtype"), input("B", kFloat, "(D, N), (B, N, L) or (B, G, N, L)"),
          input("C", kFloat, "(D, N), (B, N, L) or (B, G, N, L)"), optional(input("D", kFloat, "(D), skip connection")),
          optional(strided(input("z", kFloat, "(B, D, L), gate"))), optional(input("deltaBias", kFloat, "(D)"))};
}
MM_REGISTER_OP({
    "selectiveScan",
    "Mamba's selective scan: `d = delta + deltaBias` (softplus of it with deltaSoftplus), `s_t = exp(d_t A) s_{t-1} + d_t B_t u_t`, "
    "`out_t = (<C_t, s_t> + D u_t) * silu(z_t)` (arXiv 2312.00752).",
    inputs(),
    {flag("deltaSoftplus", false, "step = softplus(delta + deltaBias)")},
    {{"out", "(B, D, L), laid out like u"}, {"lastState", "(B, D, N), f32"}},
    infer,
    "selectiveScanBackward",
});
#endif
}  // namespace mm::ops::selective_scan

namespace mm::ops::selective_scan_bwd {
enum In { U, DELTA, A, B, C, D, Z, DELTA_BIAS, DOUT, DLAST_STATE };
enum Out { DU, DDELTA, DA, DB, DC, DD, DZ, DDELTA_BIAS };
struct Attrs {
  int64_t deltaSoftplus;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  selective_scan::check(c);
  c.expectSameShape(DOUT, U);
  c.expectSameDtype(DOUT, U);
  c.expectShape(DLAST_STATE, {c.dim(U, 0), c.dim(U, 1), c.dim(A, 1)}, "(B, D, N)");
  if (needs & 1) c.outLike(DU, U, c.dtype(U));
  if (needs & 2) c.outLike(DDELTA, DELTA, c.dtype(U));
  if (needs & 4) c.out(DA, MM_F32, c.shape(A));
  if (needs & 8) c.out(DB, c.rank(B) == 2 ? int32_t(MM_F32) : c.dtype(B), c.shape(B));
  if (needs & 16) c.out(DC, c.rank(C) == 2 ? int32_t(MM_F32) : c.dtype(C), c.shape(C));
  if (needs & 32 && c.has(D)) c.out(DD, MM_F32, c.shape(D));
  if (needs & 64 && c.has(Z)) c.outLike(DZ, Z, c.dtype(U));
  if (needs & 128 && c.has(DELTA_BIAS)) c.out(DDELTA_BIAS, MM_F32, c.shape(DELTA_BIAS));
}
inline std::vector<InputSpec> inputs() {
  std::vector<InputSpec> list = selective_scan::inputs();
  list.push_back(strided(input("dOut", kFloat, "(B, D, L)")));
  list.push_back(optional(input("dLastState", kF32, "(B, D, N); absent: zero")));
  return list;
}
MM_REGISTER_OP({
    "selectiveScanBackward",
    "Gradients of selectiveScan; the states are computed again.",
    inputs(),
    {flag("deltaSoftplus", false, "as in the forward"),
     integer("needs", 255, "bits: 0 dU, 1 dDelta, 2 dA, 3 dB, 4 dC, 5 dD, 6 dZ, 7 dDeltaBias")},
    {{"dU", "(B, D, L)"}, {"dDelta", "(B, D, L)"}, {"dA", "(D, N), f32"}, {"dB", "B's shape; f32 when constant"},
     {"dC", "C's shape; f32 when constant"}, {"dD", "(D), f32"}, {"dZ", "(B, D, L)"}, {"dDeltaBias", "(D), f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::selective_scan_bwd
