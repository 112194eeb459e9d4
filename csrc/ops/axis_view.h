// Rows and parts of operands, as the kernels of concat, slices and rows by index walk them. In the namespace of the including
// code, as abi/call.h.
#pragma once
#include "abi/call.h"

namespace MM_CALL_NAMESPACE {

// Elements behind one index of the first axis.
inline int64_t rowSize(const MMTensorView& v) {
  int64_t n = 1;
  for (int i = 1; i < v.ndim; i++) n *= v.shape[i];
  return n;
}

inline int64_t axisOf(int64_t axis, const MMTensorView& v) { return axis < 0 ? axis + v.ndim : axis; }

// The part [start, start + length) of an axis.
inline MMTensorView slice(MMTensorView v, int64_t axis, int64_t start, int64_t length) {
  v.data = data<char>(v) + start * v.stride[axis] * elementSize(v.dtype);
  v.shape[axis] = length;
  return v;
}

}  // namespace MM_CALL_NAMESPACE
