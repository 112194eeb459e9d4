// crossEntropy, klDiv (distillation of logits) and mse. Sums over positions run in a fixed order, in double.
#pragma once
#include "ops/schema.h"

namespace mm::ops::cross_entropy {
enum In { LOGITS, LABELS, LOSS_WEIGHT };
enum Out { LOSS, PER_TOKEN, LSE };
struct Attrs {
  int64_t ignoreIndex;
  double labelSmoothing;
};
#ifdef MM_OP_SCHEMA
// The shape of `slot` without its last axis.
inline Shape positions(Infer& c, int slot) {
  c.expectRank(slot, 1, MM_MAX_DIMS);
  Shape s = c.shape(slot);
  s.pop_back();
  return s;
}
inline void check(Infer& c, double smoothing) {
  const Shape rows = positions(c, LOGITS);
  c.require(c.dim(LOGITS, -1) > 0, "ERR_SHAPE", "logits has shape %s; expected (..., V) with V > 0",
      shapeText(c.shape(LOGITS)).c_str());
  c.expectShape(LABELS, rows, "(...)");
  c.expectShape(LOSS_WEIGHT, rows, "(...)");
  c.require(smoothing >= 0 && smoothing < 1, "ERR_ARGUMENT", "labelSmoothing is %g; expected a number in [0, 1)", smoothing);
}
inline void infer(Infer& c) {
  check(c, c.attrs<Attrs>().labelSmoothing);
  const Shape rows = positions(c, LOGITS);
  c.out(LOSS, MM_F32, {});
  c.out(PER_TOKEN, MM_F32, rows);
  c.out(LSE, MM_F32, rows);
}
inline std::vector<InputSpec> inputs() {
  return {input("logits", kFloat, "(..., V)"), input("labels", kI32, "(...), in [0, V) or ignoreIndex"),
          optional(input("lossWeight", kF32, "(...), takes no gradient"))};
}
inline std::vector<AttrSpec> attributes() {
  return {integer("ignoreIndex", -100, "label of positions that do not count"),
          number("labelSmoothing", 0, "e: the target is (1 - e) onehot + e / V")};
}
MM_REGISTER_OP({
    "crossEntropy",
    "Cross entropy of softmax(logits) with the labels; `loss` = sum(perToken) / counted positions, or with weights "
    "sum(w perToken) / sum(w) over all positions; 0 when the divisor is 0. Ignored positions have perToken 0.",
    inputs(),
    attributes(),
    {{"loss", "(), f32"}, {"perToken", "(...), f32, unweighted"},
        {"lse", "(...), f32, log-sum-exp of the logits; takes no gradient"}},
    infer,
    "crossEntropyBackward",
});
#endif
}  // namespace mm::ops::cross_entropy

namespace mm::ops::cross_entropy_bwd {
enum In { LOGITS, LABELS, LOSS_WEIGHT, LSE, DLOSS, DPER_TOKEN };
enum Out { DLOGITS };
struct Attrs {
  int64_t ignoreIndex;
  double labelSmoothing;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  cross_entropy::check(c, c.attrs<Attrs>().labelSmoothing);
  const Shape rows = cross_entropy::positions(c, LOGITS);
  c.expectShape(LSE, rows, "(...)");
  c.expectShape(DLOSS, {}, "()");
  c.expectShape(DPER_TOKEN, rows, "(...)");
  c.out(DLOGITS, c.dtype(LOGITS), c.shape(LOGITS));
}
inline std::vector<InputSpec> inputs() {
  std::vector<InputSpec> list = cross_entropy::inputs();
  list.push_back(input("lse", kF32, "(...), from the forward"));
  list.push_back(optional(input("dLoss", kF32, "()")));
  list.push_back(optional(input("dPerToken", kF32, "(...)")));
  return list;
}
inline std::vector<AttrSpec> attributes() {
  std::vector<AttrSpec> list = cross_entropy::attributes();
  list.push_back(integer("needs", 1, "bit 0: dLogits"));
  return list;
}
MM_REGISTER_OP({
    "crossEntropyBackward",
    "Gradient of crossEntropy: (softmax - target) times the position's weight.",
    inputs(),
    attributes(),
    {{"dLogits", "(..., V), the dtype of logits"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::cross_entropy_bwd

namespace mm::ops::kl_div {
enum In { STUDENT, TEACHER, MASK };
enum Out { LOSS, PER_POSITION, LSE_STUDENT, LSE_TEACHER };
struct Attrs {
  double temperature;
  double divisor;
};
#ifdef MM_OP_SCHEMA
inline void check(Infer& c, double temperature) {
  const Shape rows = cross_entropy::positions(c, STUDENT);
  c.require(c.dim(STUDENT, -1) > 0, "ERR_SHAPE", "student has shape %s; expected (..., V) with V > 0",
      shapeText(c.shape(STUDENT)).c_str());
  c.expectSameShape(TEACHER, STUDENT);
  c.expectSameDtype(TEACHER, STUDENT);
  c.expectShape(MASK, rows, "(...)");
  c.require(temperature > 0, "ERR_ARGUMENT", "temperature is %g; expected a number above 0", temperature);
}
inline void infer(Infer& c) {
  check(c, c.attrs<Attrs>().temperature);
  const Shape rows = cross_entropy::positions(c, STUDENT);
  c.out(LOSS, MM_F32, {});
  for (int slot : {int(PER_POSITION), int(LSE_STUDENT), int(LSE_TEACHER)}) c.out(slot, MM_F32, rows);
}
inline std::vector<InputSpec> inputs() {
  return {input("student", kFloat, "(..., V) logits"), input("teacher", kFloat, "(..., V) logits, takes no gradient"),
          optional(input("mask", kF32, "(...), weight of each position, takes no gradient"))};
}
inline std::vector<AttrSpec> attributes() {
  return {number("temperature", 1, "T"), number("divisor", 0,
      "of the sum over positions; 0: the size of axis 0 (batchmean), 1 for a single row")};
}
MM_REGISTER_OP({
    "klDiv",
    "KL divergence of the student from the teacher: `perPosition = T^2 sum_v p_t (log p_t - log p_s)`, p = softmax(logits / T); "
    "`loss = sum(mask perPosition) / divisor`.",
    inputs(),
    attributes(),
    {{"loss", "(), f32"}, {"perPosition", "(...), f32, unmasked"}, {"lseStudent", "(...), f32, of logits / T; takes no gradient"},
     {"lseTeacher", "(...), f32, likewise"}},
    infer,
    "klDivBackward",
});
#endif
}  // namespace mm::ops::kl_div

namespace mm::ops::kl_div_bwd {
enum In { STUDENT, TEACHER, MASK, LSE_STUDENT, LSE_TEACHER, DLOSS, DPER_POSITION };
enum Out { DSTUDENT };
struct Attrs {
  double temperature;
  double divisor;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  kl_div::check(c, c.attrs<Attrs>().temperature);
  const Shape rows = cross_entropy::positions(c, STUDENT);
  c.expectShape(LSE_STUDENT, rows, "(...)");
  c.expectShape(LSE_TEACHER, rows, "(...)");
  c.expectShape(DLOSS, {}, "()");
  c.expectShape(DPER_POSITION, rows, "(...)");
  c.out(DSTUDENT, c.dtype(STUDENT), c.shape(STUDENT));
}
inline std::vector<InputSpec> inputs() {
  std::vector<InputSpec> list = kl_div::inputs();
  list.push_back(input("lseStudent", kF32, "(...), from the forward"));
  list.push_back(input("lseTeacher", kF32, "(...), from the forward"));
  list.push_back(optional(input("dLoss", kF32, "()")));
  list.push_back(optional(input("dPerPosition", kF32, "(...)")));
  return list;
}
inline std::vector<AttrSpec> attributes() {
  std::vector<AttrSpec> list = kl_div::attributes();
  list.push_back(integer("needs", 1, "bit 0: dStudent"));
  return list;
}
MM_REGISTER_OP({
    "klDivBackward",
    "Gradient of klDiv: T (p_s - p_t) times the position's weight.",
    inputs(),
    attributes(),
    {{"dStudent", "(..., V), the dtype of student"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::kl_div_bwd

namespace mm::ops::mse {
enum In { PRED, TARGET };
enum Out { LOSS };
struct Attrs {
  double factor;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectSameShape(TARGET, PRED);
  c.expectSameDtype(TARGET, PRED);
  c.out(LOSS, MM_F32, {});
}
MM_REGISTER_OP({
    "mse",
    "`loss = factor * mean((pred - target)^2)`.",
    {input("pred", kFloat, "any shape"), input("target", kFloat, "the shape and dtype of pred")},
    {number("factor", 1, "")},
    {{"loss", "(), f32"}},
    infer,
    "mseBackward",
});
#endif
}  // namespace mm::ops::mse

namespace mm::ops::mse_bwd {
enum In { PRED, TARGET, DLOSS };
enum Out { DPRED, DTARGET };
struct Attrs {
  double factor;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectSameShape(TARGET, PRED);
  c.expectSameDtype(TARGET, PRED);
  c.expectShape(DLOSS, {}, "()");
  if (needs & 1) c.out(DPRED, c.dtype(PRED), c.shape(PRED));
  if (needs & 2) c.out(DTARGET, c.dtype(PRED), c.shape(PRED));
}
MM_REGISTER_OP({
    "mseBackward",
    "Gradients of mse.",
    {input("pred", kFloat, "any shape"), input("target", kFloat, "the shape and dtype of pred"), input("dLoss", kF32, "()")},
    {number("factor", 1, "as in the forward"), integer("needs", 3, "bit 0: dPred, bit 1: dTarget")},
    {{"dPred", "the shape and dtype of pred"}, {"dTarget", "likewise"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::mse_bwd
