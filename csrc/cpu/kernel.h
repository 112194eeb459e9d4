// What every CPU kernel file includes. The files of csrc/cpu listed in kernels.inc are compiled once for each
// instruction set (MM_ISA = base, avx2, avx512; binding.gyp sets the flags), each copy in its own namespace; the table
// of the best set that the machine has is chosen at run time. So a kernel is plain code over simd/vec.h, and nothing
// in such a file may have external linkage outside namespace mm::cpu::MM_ISA. Standard containers are avoided: a
// template instance compiled with AVX-512 could be picked by the linker for the whole program.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "abi/backend.h"
#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace mm::cpu::MM_ISA {

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

// Fails the call: the text names what was wrong and what would be right. `return fail(c, "...")`.
template <class... T>
int32_t fail(const MMCall* c, const char* format, T... args) {
  std::snprintf(c->error, c->error_size, format, args...);
  return MM_ERR_KERNEL;
}

// Calls f(T{}) with T = float, bf16 or f16 for a float dtype: dispatchFloat(x.dtype, [&](auto t) { using T = decltype(t); ... });
template <class F>
auto dispatchFloat(int32_t dtype, F&& f) {
  switch (dtype) {
    case MM_BF16: return f(bf16{});
    case MM_F16: return f(f16{});
    default: return f(float{});
  }
}
template <class T>
T* data(const MMTensorView& v) { return static_cast<T*>(v.data); }

struct KernelList {
  const MMKernelEntry* entries;
  int count;
};

}  // namespace mm::cpu::MM_ISA

// At the end of csrc/cpu/<file>.cc: MM_CPU_KERNELS(rms_norm, {"rmsNorm", "rows", nullptr, nullptr, rmsNorm}, ...);
#define MM_CPU_KERNELS(file, ...)                                                   \
  namespace mm::cpu::MM_ISA {                                                       \
  extern const KernelList file##_kernels;                                           \
  static const MMKernelEntry file##_entries[] = {__VA_ARGS__};                      \
  const KernelList file##_kernels = {file##_entries, int(sizeof(file##_entries) / sizeof(MMKernelEntry))}; \
  }
