// What every CPU kernel file includes. The files of csrc/cpu listed in kernels.inc are compiled once for each
// instruction set (MM_ISA = base, avx2, avx512; binding.gyp sets the flags), each copy in its own namespace; the table
// of the best set that the machine has is chosen at run time. So a kernel is plain code over simd/vec.h, and nothing
// in such a file may have external linkage outside namespace mm::cpu::MM_ISA. Standard containers are avoided: a
// template instance compiled with AVX-512 could be picked by the linker for the whole program.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>

#define MM_CALL_NAMESPACE mm::cpu::MM_ISA
#include "abi/call.h"
#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace mm::cpu::MM_ISA {

// Calls f(T{}) with T = float, bf16 or f16 for a float dtype: dispatchFloat(x.dtype, [&](auto t) { using T = decltype(t); ... });
template <class F>
auto dispatchFloat(int32_t dtype, F&& f) {
  switch (dtype) {
    case MM_BF16: return f(bf16{});
    case MM_F16: return f(f16{});
    default: return f(float{});
  }
}
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
