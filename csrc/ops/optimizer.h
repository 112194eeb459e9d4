// adamW: one fused update of any number of parameters, and gradNorm: their gradients' global norm for clipping.
#pragma once
#include "ops/schema.h"

namespace mm::ops::adam_w {
enum In { PARAMS, GRADS, EXP_AVG, EXP_AVG_SQ, COMPUTE, GRAD_SCALE };
struct Attrs {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weightDecay;
  int64_t step;
};
#ifdef MM_OP_SCHEMA
inline bool isDense(const Desc& d) {
  int64_t step = 1;
  for (size_t i = d.shape.size(); i-- > 0;) {
    if (d.shape[i] > 1 && !d.strides.empty() && d.strides[i] != step) return false;
    step *= d.shape[i];
  }
  return true;
}
inline void infer(Infer& c) {
  const int n = c.count(PARAMS);
  const auto checkList = [&](int slot, const char* name) {
    c.require(c.count(slot) == n, "ERR_ARGUMENT", "%s has %d tensors; expected one for each of the %d params", name,
        c.count(slot), n);
    for (int i = 0; i < n; i++) {
      c.require(c.shape(slot, i) == c.shape(PARAMS, i), "ERR_SHAPE", "%s[%d] has shape %s; expected the shape of params[%d], %s",
          name, i,
                shapeText(c.shape(slot, i)).c_str(), i, shapeText(c.shape(PARAMS, i)).c_str());
      c.require(slot == GRADS || isDense(c.in(slot, i)), "ERR_ARGUMENT",
          "%s[%d] is a strided view; it is written in place and must be dense", name, i);
    }
  };
  checkList(PARAMS, "params");
  checkList(GRADS, "grads");
  checkList(EXP_AVG, "expAvg");
  checkList(EXP_AVG_SQ, "expAvgSq");
  if (c.has(COMPUTE)) checkList(COMPUTE, "compute");
  c.expectShape(GRAD_SCALE, {}, "()");
  c.require(c.attrs<Attrs>().step >= 1, "ERR_ARGUMENT", "step is %lld; expected the number of this update, counted from 1",
            static_cast<long long>(c.attrs<Attrs>().step));
}
MM_REGISTER_OP({
    "adamW",
    "One step of AdamW with decoupled weight decay, in place (torch.optim.AdamW): p *= 1 - lr wd; m = b1 m + (1 - b1) g; "
    "v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^step) m / (sqrt(v) / sqrt(1 - b2^step) + eps), g = grad * gradScale.",
    {mutated(list(input("params", kF32, "master weights, any shapes"))),
        list(input("grads", kFloat, "gradients, in the order of params")),
     mutated(list(input("expAvg", kF32, "first moments m, zeros before step 1"))),
         mutated(list(input("expAvgSq", kF32, "second moments v, likewise"))),
     optional(mutated(list(input("compute", kFloat, "copies of params to compute with, usually 16-bit, rewritten")))),
     optional(input("gradScale", kF32, "(), factor of all gradients, such as gradNorm's scale"))},
    {required(number("lr", 1e-3, "learning rate")), number("beta1", 0.9, ""), number("beta2", 0.999, ""), number("eps", 1e-8, ""),
     number("weightDecay", 0.01, ""), required(integer("step", 1, "number of this update, counted from 1"))},
    {},
    infer,
    "none: an optimizer step",
});
#endif
}  // namespace mm::ops::adam_w

namespace mm::ops::grad_norm {
enum In { GRADS };
enum Out { NORM, SCALE };
struct Attrs {
  double maxNorm;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.out(NORM, MM_F32, {});
  c.out(SCALE, MM_F32, {});
}
MM_REGISTER_OP({
    "gradNorm",
    "The Euclidean norm of all gradients as one vector, and the factor that clips it: `scale = min(1, maxNorm / (norm + 1e-6))`, "
    "1 without a limit (torch.nn.utils.clip_grad_norm_).",
    {list(input("grads", kFloat, "any shapes and float dtypes"))},
    {number("maxNorm", 0, "0: no limit")},
    {{"norm", "(), f32"}, {"scale", "(), f32"}},
    infer,
    "none: it only measures",
});
#endif
}  // namespace mm::ops::grad_norm
