// A reduction's result as kernels walk it beside its operand. In the namespace of the including code, as abi/call.h.
#pragma once
#include "abi/call.h"
#include "ops/reduction.h"

namespace MM_CALL_NAMESPACE {

// `v`, dense and of x's shape without the reduced axes (or with size 1 there), seen with x's rank.
inline MMTensorView expanded(const MMTensorView& x, const MMTensorView& v, int64_t axis) {
  int64_t first, last;
  ops::reduction::axisRange(axis, x.ndim, &first, &last);
  MMTensorView e = v;
  e.ndim = x.ndim;
  int64_t step = 1;
  for (int i = x.ndim - 1; i >= 0; i--) {
    e.shape[i] = i >= first && i < last ? 1 : x.shape[i];
    e.stride[i] = step;
    step *= e.shape[i];
  }
  return e;
}

// The same of a `v` with strides of its own, which keeps the reduced axes where keepDims is set.
inline MMTensorView expandedStrided(const MMTensorView& x, const MMTensorView& v, int64_t axis, bool keepDims) {
  MMTensorView e = expanded(x, v, axis);
  int64_t first, last;
  ops::reduction::axisRange(axis, x.ndim, &first, &last);
  for (int i = 0, j = 0; i < x.ndim; i++) {
    const bool reduced = i >= first && i < last;
    e.stride[i] = reduced ? 0 : v.stride[j];
    j += !reduced || keepDims;
  }
  return e;
}

}  // namespace MM_CALL_NAMESPACE
