// Dense products for kernels: C = A B with an epilogue, batched, multi-threaded, in f32, bf16 and f16 with f32 sums.
// Called from a kernel's thread outside parallelFor, which it uses itself. Small products in cache that a kernel computes
// inside its own ranges belong to simd/tile.h.
#pragma once
#include "cpu/kernel.h"
#include "abi/gemm.h"

namespace mm::cpu::MM_ISA {

// Scratch for gemm(), a multiple of 64 bytes; depends on shapes and dtypes only.
uint64_t gemmWorkspace(const Gemm& g);
// The bits of the result do not depend on the number of threads. Returns MM_OK or MM_ERR_OUT_OF_MEMORY.
int32_t gemm(const Gemm& g, void* workspace);

// sums[j] = sum over rows of x[i][j] in f32, x (rows, n) dense: bias gradients
uint64_t columnSumsWorkspace(int64_t rows, int64_t n);
void columnSums(const void* x, int32_t dtype, int64_t rows, int64_t n, float* sums, void* workspace);

}  // namespace mm::cpu::MM_ISA
