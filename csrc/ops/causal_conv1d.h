// causalConv1d: depthwise causal convolution along a sequence, and causalConv1dUpdate: its step by step form over a
// buffer of the last inputs. y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j}): tap W-1 is the current token.
#pragma once
#include "ops/schema.h"

namespace mm::ops::causal_conv1d {
enum In { X, WEIGHT, BIAS, INITIAL_STATES, CU_SEQLENS };
enum Out { Y, FINAL_STATES };
enum Activation { NONE, SILU };
struct Attrs {
  int64_t activation;
};
#ifdef MM_OP_SCHEMA
// Checks the operands and returns the number of sequences.
inline int64_t check(Infer& c) {
  c.expectRank(X, 3);
  c.expectRank(WEIGHT, 2);
  const int64_t batch = c.dim(X, 0), channels = c.dim(X, 1), width = c.dim(WEIGHT, 1);
  c.require(width >= 1, "ERR_SHAPE", "weight has shape %s; expected (D, W) with W >= 1", shapeText(c.shape(WEIGHT)).c_str());
  c.expectShape(WEIGHT, {channels, width}, "(D, W)");
  c.expectShape(BIAS, {channels}, "(D)");
  c.expectParameterDtype(WEIGHT, X), c.expectParameterDtype(BIAS, X);
  int64_t sequences = batch;
  if (c.has(CU_SEQLENS)) {
    c.expectRank(CU_SEQLENS, 1);
    c.require(batch == 1, "ERR_SHAPE", "x has shape %s; packed sequences (cuSeqlens) have batch 1",
        shapeText(c.shape(X)).c_str());
    c.require(c.dim(CU_SEQLENS, 0) >= 2, "ERR_SHAPE", "cuSeqlens has shape %s; expected (S + 1) with at least one sequence",
              shapeText(c.shape(CU_SEQLENS)).c_str());
    sequences = c.dim(CU_SEQLENS, 0) - 1;
  }
  c.expectShape(INITIAL_STATES, {sequences, channels, width - 1}, "(B or S, D, W-1)");
  if (c.has(INITIAL_STATES)) c.expectSameDtype(INITIAL_STATES, X);
  return sequences;
}
inline void infer(Infer& c) {
  const int64_t sequences = check(c);
  c.outLike(Y, X, c.dtype(X));
  c.out(FINAL_STATES, c.dtype(X), {sequences, c.dim(X, 1), c.dim(WEIGHT, 1) - 1});
}
inline std::vector<InputSpec> inputs() {
  return {strided(input("x", kFloat, "(B, D, L), any layout; fastest dense or channel-last (memory B, L, D)")),
          input("weight", kFloat, "(D, W), f32 or x's dtype"), optional(input("bias", kFloat, "(D), f32 or x's dtype")),
          optional(input("initialStates", kFloat, "(B or S, D, W-1): the inputs before the first, oldest first; absent: zeros")),
          optional(input("cuSeqlens", kI32, "(S + 1) starts of packed sequences, from 0 to L; B = 1"))};
}
MM_REGISTER_OP({
    "causalConv1d",
    "Depthwise causal convolution: `y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j})`.",
    inputs(),
    {choice("activation", "none|silu", "act")},
    {{"y", "(B, D, L), laid out in memory like x"}, {"finalStates",
        "(B or S, D, W-1): the last inputs of each sequence, x's dtype"}},
    infer,
    "causalConv1dBackward",
});
#endif
}  // namespace mm::ops::causal_conv1d

namespace mm::ops::causal_conv1d_bwd {
enum In { X, WEIGHT, BIAS, INITIAL_STATES, CU_SEQLENS, DY, DFINAL_STATES };
enum Out { DX, DWEIGHT, DBIAS, DINITIAL_STATES };
struct Attrs {
  int64_t activation;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  const Shape states = {causal_conv1d::check(c), c.dim(X, 1), c.dim(WEIGHT, 1) - 1};
  c.expectSameShape(DY, X);
  c.expectSameDtype(DY, X);
  c.expectShape(DFINAL_STATES, states, "(B or S, D, W-1)");
  if (c.has(DFINAL_STATES)) c.expectSameDtype(DFINAL_STATES, X);
  if (needs & 1) c.outLike(DX, X, c.dtype(X));
  if (needs & 2) c.out(DWEIGHT, MM_F32, c.shape(WEIGHT));
  if (needs & 4 && c.has(BIAS)) c.out(DBIAS, MM_F32, c.shape(BIAS));
  if (needs & 8 && c.has(INITIAL_STATES)) c.out(DINITIAL_STATES, c.dtype(X), states);
}
inline std::vector<InputSpec> inputs() {
  std::vector<InputSpec> list = causal_conv1d::inputs();
  list.push_back(strided(input("dY", kFloat, "(B, D, L), any layout")));
  list.push_back(optional(input("dFinalStates", kFloat, "(B or S, D, W-1); absent: zero")));
  return list;
}
MM_REGISTER_OP({
    "causalConv1dBackward",
    "Gradients of causalConv1d.",
    inputs(),
    {choice("activation", "none|silu", "as in the forward"),
        integer("needs", 15, "bits: 0 dX, 1 dWeight, 2 dBias, 3 dInitialStates")},
    {{"dX", "(B, D, L), laid out like x"}, {"dWeight", "(D, W), f32"}, {"dBias", "(D), f32"},
        {"dInitialStates", "(B or S, D, W-1), x's dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::causal_conv1d_bwd

namespace mm::ops::causal_conv1d_update {
enum In { X, CONV_STATE, WEIGHT, BIAS, CACHE_SEQLENS };
enum Out { Y };
struct Attrs {
  int64_t activation;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 2, 3);
  c.expectRank(CONV_STATE, 3);
  c.expectRank(WEIGHT, 2);
  const int64_t batch = c.dim(X, 0), channels = c.dim(X, 1), width = c.dim(WEIGHT, 1), length = c.dim(CONV_STATE, 2);
  c.expectShape(WEIGHT, {channels, width}, "(D, W)");
  c.expectShape(BIAS, {channels}, "(D)");
  c.expectShape(CONV_STATE, {batch, channels, length}, "(B, D, stateLen)");
  c.expectShape(CACHE_SEQLENS, {batch}, "(B)");
  c.require(width >= 1 && width <= 16, "ERR_SHAPE", "weight has shape %s; expected (D, W) with W in [1, 16]",
      shapeText(c.shape(WEIGHT)).c_str());
  c.require(length >= width - 1, "ERR_SHAPE", "convState has shape %s; weight of width %lld needs a stateLen of at least %lld",
            shapeText(c.shape(CONV_STATE)).c_str(), static_cast<long long>(width), static_cast<long long>(width - 1));
  c.require(!c.has(CACHE_SEQLENS) || length >= 1, "ERR_SHAPE",
      "convState has shape %s; a circular buffer needs a stateLen of at least 1",
            shapeText(c.shape(CONV_STATE)).c_str());
  c.expectSameDtype(CONV_STATE, X);
  c.expectParameterDtype(WEIGHT, X), c.expectParameterDtype(BIAS, X);
  c.out(Y, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "causalConv1dUpdate",
    "causalConv1d of one or a few new tokens over a buffer of earlier inputs, which is updated in place: shifted left and "
    "appended to, or with cacheSeqlens used as a ring, where token t is written at (cacheSeqlens + t) mod stateLen.",
    {strided(input("x", kFloat, "(B, D) or (B, D, S)")), mutated(input("convState", kFloat,
        "(B, D, stateLen), x's dtype, stateLen >= W-1")),
     input("weight", kFloat, "(D, W), f32 or x's dtype"), optional(input("bias", kFloat, "(D), f32 or x's dtype")),
     optional(input("cacheSeqlens", kI32, "(B): tokens seen so far; makes convState a ring"))},
    {choice("activation", "none|silu", "act")},
    {{"y", "like x"}},
    infer,
    "none: a decoding step",
});
#endif
}  // namespace mm::ops::causal_conv1d_update
