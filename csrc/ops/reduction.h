// sum, mean and max over one axis or over everything.
#pragma once
#include "ops/schema.h"

namespace mm::ops::reduction {
constexpr int64_t kAllAxes = -1000;
enum In { X };
enum Out { Y };
struct Attrs {
  int64_t axis;
  int64_t keepDims;
};
// The reduced axes [first, last) of a tensor of this rank.
inline void axisRange(int64_t axis, int64_t rank, int64_t* first, int64_t* last) {
  *first = axis == kAllAxes ? 0 : axis < 0 ? axis + rank : axis;
  *last = axis == kAllAxes ? rank : *first + 1;
}
#ifdef MM_OP_SCHEMA
inline Shape reducedShape(Infer& c, int64_t axis, bool keepDims) {
  const Shape& x = c.shape(X);
  const int64_t rank = int64_t(x.size());
  c.require(axis == kAllAxes || (axis >= -rank && axis < rank), "ERR_ARGUMENT",
      "axis is %lld; x has shape %s, so expected -%lld..%lld, or -1000 for all axes",
            static_cast<long long>(axis), shapeText(x).c_str(), static_cast<long long>(rank), static_cast<long long>(rank - 1));
  int64_t first, last;
  axisRange(axis, rank, &first, &last);
  Shape y;
  for (int64_t i = 0; i < rank; i++)
    if (i < first || i >= last) y.push_back(x[i]);
    else if (keepDims) y.push_back(1);
  return y;
}
inline void infer(Infer& c) {
  const auto& a = c.attrs<Attrs>();
  c.out(Y, c.dtype(X), reducedShape(c, a.axis, a.keepDims));
}
inline void inferMax(Infer& c) {
  infer(c);
  const auto& a = c.attrs<Attrs>();
  int64_t first, last;
  axisRange(a.axis, c.rank(X), &first, &last);
  for (int64_t i = first; i < last; i++)
    c.require(c.shape(X)[i] > 0, "ERR_SHAPE", "x has shape %s; the maximum over no elements is undefined",
        shapeText(c.shape(X)).c_str());
}
inline std::vector<InputSpec> inputs() { return {strided(input("x", kFloat, "any shape"))}; }
inline std::vector<AttrSpec> attributes() {
  return {integer("axis", kAllAxes, "the reduced axis, negative from the end; -1000: all"),
      flag("keepDims", false, "keep reduced axes with size 1")};
}
inline std::vector<OutputSpec> outputs() { return {{"y", "x's dtype, accumulated in f32"}}; }
MM_REGISTER_OP({"sum", "Sum over an axis or over all elements.", inputs(), attributes(), outputs(), infer, "sumBackward"});
#endif
}  // namespace mm::ops::reduction

namespace mm::ops::reduction_bwd {
enum In { X, DY };
enum Out { DX };
struct Attrs {
  int64_t axis;
  int64_t keepDims;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const auto& a = c.attrs<Attrs>();
  c.expectShape(DY, reduction::reducedShape(c, a.axis, a.keepDims), "the reduced shape");
  c.expectSameDtype(DY, X);
  c.out(DX, c.dtype(X), c.shape(X));
}
inline std::vector<InputSpec> inputs() {
  return {strided(input("x", kFloat, "only its shape is used")), strided(input("dY", kFloat, "the reduced shape"))};
}
inline std::vector<AttrSpec> attributes() {
  return {integer("axis", reduction::kAllAxes, "as in the forward"), flag("keepDims", false, "as in the forward"),
      integer("needs", 1, "bit 0: dX")};
}
inline std::vector<OutputSpec> outputs() { return {{"dX", "x's shape and dtype"}}; }
MM_REGISTER_OP({"sumBackward", "Gradient of sum: dY, broadcast.", inputs(), attributes(), outputs(), infer,
    "none: second derivatives are not provided"});
#endif
}  // namespace mm::ops::reduction_bwd

namespace mm::ops::mean {
#ifdef MM_OP_SCHEMA
MM_REGISTER_OP({"mean", "Mean over an axis or over all elements.", reduction::inputs(), reduction::attributes(),
    reduction::outputs(), reduction::infer,
                "meanBackward"});
#endif
}  // namespace mm::ops::mean

namespace mm::ops::mean_bwd {
#ifdef MM_OP_SCHEMA
MM_REGISTER_OP({"meanBackward", "Gradient of mean: dY / count, broadcast.", reduction_bwd::inputs(), reduction_bwd::attributes(),
                reduction_bwd::outputs(), reduction_bwd::infer, "none: second derivatives are not provided"});
#endif
}  // namespace mm::ops::mean_bwd

namespace mm::ops::max {
#ifdef MM_OP_SCHEMA
MM_REGISTER_OP({"max", "Maximum over an axis or over all elements; NaN wins.", reduction::inputs(), reduction::attributes(),
    reduction::outputs(),
                reduction::inferMax, "maxBackward"});
#endif
}  // namespace mm::ops::max

namespace mm::ops::max_bwd {
enum In { X, Y, DY };
enum Out { DX };
using Attrs = reduction_bwd::Attrs;
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const auto& a = c.attrs<Attrs>();
  const Shape reduced = reduction::reducedShape(c, a.axis, a.keepDims);
  c.expectShape(Y, reduced, "the reduced shape");
  c.expectShape(DY, reduced, "the reduced shape");
  c.expectSameDtype(Y, X);
  c.expectSameDtype(DY, X);
  c.out(DX, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "maxBackward",
    "Gradient of max: dY at the first element that equals the maximum, 0 elsewhere.",
    {strided(input("x", kFloat, "any shape")), input("y", kFloat, "the maxima"), input("dY", kFloat, "the reduced shape")},
    reduction_bwd::attributes(),
    reduction_bwd::outputs(),
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::max_bwd
