// The kernel table of one instruction set: the entries of all files in kernels.inc, in that order.
#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
#define MM_CPU_FILE(file) extern const KernelList file##_kernels;
#include "cpu/kernels.inc"
#undef MM_CPU_FILE

extern const KernelList* const all_kernels[];
const KernelList* const all_kernels[] = {
#define MM_CPU_FILE(file) &file##_kernels,
#include "cpu/kernels.inc"
#undef MM_CPU_FILE
    nullptr,
};
}  // namespace mm::cpu::MM_ISA
