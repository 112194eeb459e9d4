// Elementwise arithmetic with NumPy broadcasting (add, sub, mul, div), scale and unary functions.
#pragma once
#include "ops/schema.h"

namespace mm::ops::binary {
enum In { A, B };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline Shape broadcastShape(Infer& c) {
  const Shape &a = c.shape(A), &b = c.shape(B);
  Shape y(a.size() > b.size() ? a.size() : b.size());
  for (size_t i = 0; i < y.size(); i++) {
    const int64_t m = i < a.size() ? a[a.size() - 1 - i] : 1, n = i < b.size() ? b[b.size() - 1 - i] : 1;
    c.require(m == n || m == 1 || n == 1, "ERR_SHAPE",
        "a has shape %s and b %s; they cannot be broadcast together (axes, from the last, must be equal or 1)",
              shapeText(a).c_str(), shapeText(b).c_str());
    y[y.size() - 1 - i] = m == 1 ? n : m;
  }
  return y;
}
inline void infer(Infer& c) {
  c.expectSameDtype(B, A);
  c.out(Y, c.dtype(A), broadcastShape(c));
}
inline std::vector<InputSpec> inputs() {
  return {strided(input("a", kFloat, "any shape")), strided(input("b", kFloat, "a's dtype, broadcast against a"))};
}
#endif
}  // namespace mm::ops::binary

namespace mm::ops::binary_bwd {
enum In { A, B, DY };
enum Out { DA, DB };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  const int64_t needs = c.attrs<Attrs>().needs;
  c.expectSameDtype(B, A);
  c.expectSameDtype(DY, A);
  c.expectShape(DY, binary::broadcastShape(c), "the broadcast shape of a and b");
  if (needs & 1) c.out(DA, c.dtype(A), c.shape(A));
  if (needs & 2) c.out(DB, c.dtype(B), c.shape(B));
}
inline std::vector<InputSpec> inputs(const char* doc) {
  return {strided(input("a", kFloat, doc)), strided(input("b", kFloat, doc)),
      strided(input("dY", kFloat, "the broadcast shape"))};
}
inline std::vector<AttrSpec> attributes() { return {integer("needs", 3, "bit 0: dA, bit 1: dB")}; }
inline std::vector<OutputSpec> outputs() { return {{"dA", "a's shape, summed over broadcast axes"},
    {"dB", "b's shape, likewise"}}; }
#endif
}  // namespace mm::ops::binary_bwd

#ifdef MM_OP_SCHEMA
namespace mm::ops::add {
MM_REGISTER_OP({"add", "`y = a + b` with NumPy broadcasting.", binary::inputs(), {}, {{"y", "the broadcast shape"}},
    binary::infer, "addBackward"});
}
namespace mm::ops::sub {
MM_REGISTER_OP({"sub", "`y = a - b` with NumPy broadcasting.", binary::inputs(), {}, {{"y", "the broadcast shape"}},
    binary::infer, "subBackward"});
}
namespace mm::ops::mul {
MM_REGISTER_OP({"mul", "`y = a * b` with NumPy broadcasting.", binary::inputs(), {}, {{"y", "the broadcast shape"}},
    binary::infer, "mulBackward"});
}
namespace mm::ops::div {
MM_REGISTER_OP({"div", "`y = a / b` with NumPy broadcasting.", binary::inputs(), {}, {{"y", "the broadcast shape"}},
    binary::infer, "divBackward"});
}
namespace mm::ops::add_bwd {
MM_REGISTER_OP({"addBackward", "Gradients of add.", binary_bwd::inputs("only its shape is used"), binary_bwd::attributes(),
    binary_bwd::outputs(),
                binary_bwd::infer, "none: second derivatives are not provided"});
}
namespace mm::ops::sub_bwd {
MM_REGISTER_OP({"subBackward", "Gradients of sub.", binary_bwd::inputs("only its shape is used"), binary_bwd::attributes(),
    binary_bwd::outputs(),
                binary_bwd::infer, "none: second derivatives are not provided"});
}
namespace mm::ops::mul_bwd {
MM_REGISTER_OP({"mulBackward", "Gradients of mul.", binary_bwd::inputs("as in the forward"), binary_bwd::attributes(),
    binary_bwd::outputs(),
                binary_bwd::infer, "none: second derivatives are not provided"});
}
namespace mm::ops::div_bwd {
MM_REGISTER_OP({"divBackward", "Gradients of div.", binary_bwd::inputs("as in the forward"), binary_bwd::attributes(),
    binary_bwd::outputs(),
                binary_bwd::infer, "none: second derivatives are not provided"});
}
#endif

namespace mm::ops::scale {
enum In { X };
enum Out { Y };
struct Attrs {
  double factor;
  double shift;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) { c.out(Y, c.dtype(X), c.shape(X)); }
MM_REGISTER_OP({
    "scale",
    "`y = x * factor + shift`.",
    {strided(input("x", kFloat, "any shape"))},
    {number("factor", 1, ""), number("shift", 0, "")},
    {{"y", "x's shape and dtype"}},
    infer,
    "scaleBackward",
});
#endif
}  // namespace mm::ops::scale

namespace mm::ops::scale_bwd {
enum In { DY };
enum Out { DX };
struct Attrs {
  double factor;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) { c.out(DX, c.dtype(DY), c.shape(DY)); }
MM_REGISTER_OP({
    "scaleBackward",
    "Gradient of scale.",
    {strided(input("dY", kFloat, "any shape"))},
    {number("factor", 1, "as in the forward"), integer("needs", 1, "bit 0: dX")},
    {{"dX", "dY's shape and dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::scale_bwd

namespace mm::ops::unary {
enum In { X };
enum Out { Y };
enum Kind { NEG, EXP, LOG, SQRT, SIGMOID, TANH, SOFTPLUS, SQUARE, ABS };
struct Attrs {
  int64_t kind;
};
#ifdef MM_OP_SCHEMA
constexpr const char* kKinds = "neg|exp|log|sqrt|sigmoid|tanh|softplus|square|abs";
inline void infer(Infer& c) { c.out(Y, c.dtype(X), c.shape(X)); }
MM_REGISTER_OP({
    "unary",
    "An elementary function of every element.",
    {strided(input("x", kFloat, "any shape"))},
    {required(choice("kind", kKinds, "the function"))},
    {{"y", "x's shape and dtype"}},
    infer,
    "unaryBackward",
});
#endif
}  // namespace mm::ops::unary

namespace mm::ops::unary_bwd {
enum In { X, DY };
enum Out { DX };
struct Attrs {
  int64_t kind;
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectSameShape(DY, X);
  c.expectSameDtype(DY, X);
  c.out(DX, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "unaryBackward",
    "Gradient of unary.",
    {strided(input("x", kFloat, "any shape")), strided(input("dY", kFloat, "x's shape and dtype"))},
    {required(choice("kind", unary::kKinds, "as in the forward")), integer("needs", 1, "bit 0: dX")},
    {{"dX", "x's shape and dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::unary_bwd
