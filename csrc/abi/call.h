// Accessors of a call, for kernels of every backend. Included inside one namespace a translation unit's code lives in
// (MM_CALL_NAMESPACE), so that copies compiled for different instruction sets never meet in the linker.
#pragma once
#include <cstdint>
#include <cstdio>

#include "abi/backend.h"

namespace MM_CALL_NAMESPACE {

inline bool has(const MMCall* c, int slot) { return c->input_begin[slot + 1] > c->input_begin[slot]; }
inline bool hasOut(const MMCall* c, int slot) { return c->output_begin[slot + 1] > c->output_begin[slot]; }
inline int countIn(const MMCall* c, int slot) { return c->input_begin[slot + 1] - c->input_begin[slot]; }
inline const MMTensorView& in(const MMCall* c, int slot, int i = 0) { return c->inputs[c->input_begin[slot] + i]; }
inline const MMTensorView& out(const MMCall* c, int slot, int i = 0) { return c->outputs[c->output_begin[slot] + i]; }
template <class A>
const A& attrs(const MMCall* c) { return *static_cast<const A*>(c->attrs); }

inline int64_t numel(const MMTensorView& v) {
  int64_t n = 1;
  for (int i = 0; i < v.ndim; i++) n *= v.shape[i];
  return n;
}
inline int64_t lastDim(const MMTensorView& v) { return v.ndim ? v.shape[v.ndim - 1] : 1; }
// Rows of the last axis.
inline int64_t rowCount(const MMTensorView& v) {
  const int64_t n = lastDim(v);
  return n ? numel(v) / n : 0;
}
inline int64_t elementSize(int32_t dtype) { return dtype == MM_F32 || dtype == MM_I32 ? 4 : dtype == MM_U8 ? 1 : 2; }
template <class T>
T* data(const MMTensorView& v) { return static_cast<T*>(v.data); }

// Fails the call: the text names what was wrong and what would be right. `return fail(c, "...")`.
template <class... T>
int32_t fail(const MMCall* c, const char* format, T... args) {
  std::snprintf(c->error, c->error_size, format, args...);
  return MM_ERR_KERNEL;
}

}  // namespace MM_CALL_NAMESPACE
