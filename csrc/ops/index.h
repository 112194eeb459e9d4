// Moving rows by index (gatherRows, scatterRows, scatterAddRows), joining tensors (concat) and the gradient of a slice.
#pragma once
#include "ops/schema.h"

namespace mm::ops::gather_rows {
enum In { X, INDEX };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
// x's shape with its first axis replaced by `rows`
inline Shape withRows(const Shape& x, int64_t rows) {
  Shape s = x;
  s[0] = rows;
  return s;
}
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectRank(INDEX, 1);
  c.out(Y, c.dtype(X), withRows(c.shape(X), c.dim(INDEX, 0)));
}
MM_REGISTER_OP({
    "gatherRows",
    "`y[m] = x[index[m]]`: picks rows, an index may repeat.",
    {input("x", kAny, "(N, ...)"), input("index", kI32, "(M), each in [0, N)")},
    {},
    {{"y", "(M, ...), x's dtype"}},
    infer,
    "gatherRowsBackward",
});
#endif
}  // namespace mm::ops::gather_rows

namespace mm::ops::gather_rows_bwd {
enum In { X, INDEX, DY };
enum Out { DX };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectRank(INDEX, 1);
  c.expectSameDtype(DY, X);
  c.expectShape(DY, gather_rows::withRows(c.shape(X), c.dim(INDEX, 0)), "(M, ...)");
  c.out(DX, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "gatherRowsBackward",
    "Gradient of gatherRows: the rows of dY added up where their index points, in their order.",
    {strided(input("x", kFloat, "(N, ...); only its shape is used")), input("index", kI32, "(M), each in [0, N)"),
        input("dY", kFloat, "(M, ...)")},
    {integer("needs", 1, "bit 0: dX")},
    {{"dX", "(N, ...), x's dtype, accumulated in f32"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::gather_rows_bwd

namespace mm::ops::scatter_rows {
enum In { X, INDEX, SRC };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectRank(X, 1, MM_MAX_DIMS);
  c.expectRank(INDEX, 1);
  c.expectSameDtype(SRC, X);
  c.expectShape(SRC, gather_rows::withRows(c.shape(X), c.dim(INDEX, 0)), "(M, ...)");
  c.out(Y, c.dtype(X), c.shape(X));
}
inline std::vector<InputSpec> inputs() {
  return {input("x", kFloat, "(N, ...)"), input("index", kI32, "(M), each in [0, N)"),
      input("src", kFloat, "(M, ...), x's dtype")};
}
MM_REGISTER_OP({
    "scatterRows",
    "A copy of x with `y[index[m]] = src[m]`; of rows with the same index the last one stays.",
    inputs(),
    {},
    {{"y", "(N, ...), x's dtype"}},
    infer,
    "scatterRowsBackward",
});
#endif
}  // namespace mm::ops::scatter_rows

namespace mm::ops::scatter_rows_bwd {
enum In { INDEX, DY };
enum Out { DX, DSRC };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectRank(INDEX, 1);
  c.expectRank(DY, 1, MM_MAX_DIMS);
  if (needs & 1) c.out(DX, c.dtype(DY), c.shape(DY));
  if (needs & 4) c.out(DSRC, c.dtype(DY), gather_rows::withRows(c.shape(DY), c.dim(INDEX, 0)));
}
inline std::vector<InputSpec> inputs() { return {input("index", kI32, "(M), each in [0, N)"), input("dY", kFloat, "(N, ...)")}; }
inline std::vector<AttrSpec> attributes() { return {integer("needs", 5, "bit 0: dX, bit 2: dSrc")}; }
MM_REGISTER_OP({
    "scatterRowsBackward",
    "Gradients of scatterRows: dX is dY without the replaced rows, dSrc the replaced rows (0 for rows written over).",
    inputs(),
    attributes(),
    {{"dX", "(N, ...)"}, {"dSrc", "(M, ...)"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::scatter_rows_bwd

namespace mm::ops::scatter_add_rows {
#ifdef MM_OP_SCHEMA
MM_REGISTER_OP({
    "scatterAddRows",
    "`y = x`, then `y[index[m]] += src[m]` in the order of m, accumulated in f32.",
    scatter_rows::inputs(),
    {},
    {{"y", "(N, ...), x's dtype"}},
    scatter_rows::infer,
    "scatterAddRowsBackward",
});
#endif
}  // namespace mm::ops::scatter_add_rows

namespace mm::ops::scatter_add_rows_bwd {
#ifdef MM_OP_SCHEMA
MM_REGISTER_OP({
    "scatterAddRowsBackward",
    "Gradients of scatterAddRows: dX = dY, dSrc = the rows of dY at index.",
    scatter_rows_bwd::inputs(),
    scatter_rows_bwd::attributes(),
    {{"dX", "(N, ...)"}, {"dSrc", "(M, ...)"}},
    scatter_rows_bwd::infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::scatter_add_rows_bwd

namespace mm::ops::concat {
enum In { X };
enum Out { Y };
struct Attrs {
  int64_t axis;
};
#ifdef MM_OP_SCHEMA
inline int64_t checkedAxis(Infer& c, int64_t axis) {
  c.require(c.count(X) > 0, "ERR_ARGUMENT", "x is an empty list; expected at least one tensor");
  c.expectRank(X, 1, MM_MAX_DIMS);
  const int64_t rank = c.rank(X);
  c.require(axis >= -rank && axis < rank, "ERR_ARGUMENT", "axis is %lld; x[0] has shape %s, so expected -%lld..%lld",
      static_cast<long long>(axis),
            shapeText(c.shape(X)).c_str(), static_cast<long long>(rank), static_cast<long long>(rank - 1));
  return axis < 0 ? axis + rank : axis;
}
inline Shape joinedShape(Infer& c, int64_t axis) {
  Shape y = c.shape(X);
  y[axis] = 0;
  for (int i = 0; i < c.count(X); i++) {
    Shape s = c.shape(X, i);
    c.require(s.size() == y.size(), "ERR_SHAPE", "x[%d] has shape %s; expected the rank of x[0], %s", i, shapeText(s).c_str(),
        shapeText(c.shape(X)).c_str());
    y[axis] += s[axis];
    s[axis] = c.shape(X)[axis];
    c.require(s == c.shape(X), "ERR_SHAPE", "x[%d] has shape %s; expected the shape of x[0], %s, except along axis %lld", i,
              shapeText(c.shape(X, i)).c_str(), shapeText(c.shape(X)).c_str(), static_cast<long long>(axis));
  }
  return y;
}
inline void infer(Infer& c) {
  const int64_t axis = checkedAxis(c, c.attrs<Attrs>().axis);
  c.expectSameDtype(X, X);
  c.out(Y, c.dtype(X), joinedShape(c, axis));
}
MM_REGISTER_OP({
    "concat",
    "Joins tensors along one axis.",
    {strided(list(input("x", kAny, "tensors of one dtype and, except along axis, one shape")))},
    {integer("axis", 0, "negative from the end")},
    {{"y", "the inputs one after the other"}},
    infer,
    "concatBackward",
});
#endif
}  // namespace mm::ops::concat

namespace mm::ops::concat_bwd {
enum In { X, DY };
enum Out { DX };
struct Attrs {
  int64_t axis;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t axis = concat::checkedAxis(c, c.attrs<Attrs>().axis);
  c.expectSameDtype(DY, X);
  c.expectShape(DY, concat::joinedShape(c, axis), "the joined shape");
  for (int i = 0; i < c.count(X); i++) c.out(DX, c.dtype(X), c.shape(X, i));
}
MM_REGISTER_OP({
    "concatBackward",
    "Gradients of concat: the slices of dY.",
    {strided(list(input("x", kFloat, "only their shapes are used"))), strided(input("dY", kFloat, "the joined shape"))},
    {integer("axis", 0, "as in the forward"), integer("needs", 1, "bit 0: dX, one result an input")},
    {{"dX", "like x"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::concat_bwd

namespace mm::ops::slice_bwd {
enum In { DY };
enum Out { DX };
struct Attrs {
  int64_t axis;
  int64_t start;
  int64_t length;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const auto& a = c.attrs<Attrs>();
  c.expectRank(DY, 1, MM_MAX_DIMS);
  const int64_t rank = c.rank(DY), axis = a.axis < 0 ? a.axis + rank : a.axis;
  c.require(axis >= 0 && axis < rank, "ERR_ARGUMENT", "axis is %lld; dY has shape %s", static_cast<long long>(a.axis),
      shapeText(c.shape(DY)).c_str());
  c.require(a.start >= 0 && c.shape(DY)[axis] <= a.length - a.start, "ERR_ARGUMENT",
      "a slice of %lld from %lld does not lie in an axis of %lld",
            static_cast<long long>(c.shape(DY)[axis]), static_cast<long long>(a.start), static_cast<long long>(a.length));
  Shape x = c.shape(DY);
  x[axis] = a.length;
  c.out(DX, c.dtype(DY), x);
}
MM_REGISTER_OP({
    "sliceBackward",
    "Gradient of a slice along one axis: dY between zeros.",
    {strided(input("dY", kFloat, "the slice"))},
    {integer("axis", 0, "negative from the end"), integer("start", 0, "first index of the slice"),
        required(integer("length", 0, "of the whole axis"))},
    {{"dX", "dY's shape with `length` along axis"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::slice_bwd
