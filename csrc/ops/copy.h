// Moving data: copy (any layout -> dense), copyInto (into an existing tensor), cast (between dtypes), fill.
#pragma once
#include "ops/schema.h"

namespace mm::ops::copy {
enum In { X };
enum Out { Y };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) { c.out(Y, c.dtype(X), c.shape(X)); }
MM_REGISTER_OP({
    "copy",
    "A dense copy of a tensor of any layout.",
    {strided(input("x", kAny, "any shape and strides"))},
    {},
    {{"y", "x's shape and dtype, dense"}},
    infer,
    "copyBackward",
});
#endif
}  // namespace mm::ops::copy

namespace mm::ops::copy_bwd {
enum In { DY };
enum Out { DX };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) { c.out(DX, c.dtype(DY), c.shape(DY)); }
MM_REGISTER_OP({
    "copyBackward",
    "Gradient of copy.",
    {strided(input("dY", kFloat, "any shape and strides"))},
    {integer("needs", 1, "bit 0: dX")},
    {{"dX", "dY's shape and dtype, dense"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::copy_bwd

namespace mm::ops::copy_into {
enum In { DST, SRC };
struct Attrs {};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectSameShape(SRC, DST);
  c.expectSameDtype(SRC, DST);
}
inline InputSpec anyStrides(InputSpec s) { return s.lastDense = false, s; }
MM_REGISTER_OP({
    "copyInto",
    "Overwrites dst with src, both of any layout; they must not overlap in memory.",
    {anyStrides(mutated(input("dst", kAny, "any shape and strides"))), strided(input("src", kAny, "dst's shape and dtype"))},
    {},
    {},
    infer,
    "none: writes in place",
});
#endif
}  // namespace mm::ops::copy_into

namespace mm::ops::cast {
enum In { X };
enum Out { Y };
struct Attrs {
  int64_t dtype;  // MMDtype
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) { c.out(Y, int32_t(c.attrs<Attrs>().dtype), c.shape(X)); }
MM_REGISTER_OP({
    "cast",
    "Converts to another dtype: to 16 bits with round to nearest even; to integers towards zero, saturated, NaN -> 0.",
    {strided(input("x", kAny, "any shape and strides"))},
    {required(choice("dtype", "f32|bf16|f16|i32|u8", "of the result"))},
    {{"y", "x's shape, dense"}},
    infer,
    "castBackward",
});
#endif
}  // namespace mm::ops::cast

namespace mm::ops::cast_bwd {
enum In { X, DY };
enum Out { DX };
struct Attrs {
  int64_t needs;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer& c) {
  c.expectSameShape(DY, X);
  c.out(DX, c.dtype(X), c.shape(X));
}
MM_REGISTER_OP({
    "castBackward",
    "Gradient of cast: dY in x's dtype.",
    {strided(input("x", kFloat, "only its shape and dtype are used")), strided(input("dY", kFloat, "x's shape"))},
    {integer("needs", 1, "bit 0: dX")},
    {{"dX", "x's shape and dtype"}},
    infer,
    "none: second derivatives are not provided",
});
#endif
}  // namespace mm::ops::cast_bwd

namespace mm::ops::fill {
enum In { X };
struct Attrs {
  double value;
};
#ifdef MM_OP_SCHEMA
inline void infer(Infer&) {}
MM_REGISTER_OP({
    "fill",
    "Sets every element of x to one value, in place.",
    {copy_into::anyStrides(mutated(input("x", kAny, "any shape and strides")))},
    {number("value", 0, "converted to x's dtype")},
    {},
    infer,
    "none: writes in place",
});
#endif
}  // namespace mm::ops::fill
