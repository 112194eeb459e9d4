// Dense products for kernels: C = A B with an epilogue, batched, multi-threaded, in f32, bf16 and f16 with f32 sums.
// Called from a kernel's thread outside parallelFor, which it uses itself. Small products in cache that a kernel computes
// inside its own ranges belong to simd/tile.h.
#pragma once
#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {

constexpr int kGemmBatchDims = MM_MAX_DIMS - 2;

// A row-major matrix or a batch of them. `ld` counts elements between stored rows.
struct GemmMatrix {
  const void* data = nullptr;  // of C: written
  int32_t dtype = MM_F32;
  int64_t ld = 0;
  bool transposed = false;                 // stored (k, m) for A, (n, k) for B
  int64_t batch_stride[kGemmBatchDims] = {};  // 0 where the operand is broadcast
};

enum class Activation : int64_t { None, Gelu, Silu };

struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  GemmMatrix a, b, c;  // A and B of one dtype; C of any float dtype
  int batch_dims = 0;
  int64_t batch_shape[kGemmBatchDims] = {};
  bool accumulate = false;  // C += A B: only with an f32 C and without an epilogue

  // Epilogue, applied to each block while it is in cache: y = act(A B + bias) + other, or, with `gradient`,
  // y = act'(A B + bias) * other.
  const void* bias = nullptr;  // (n)
  int32_t bias_dtype = MM_F32;
  Activation activation = Activation::None;
  bool gradient = false;
  const void* other = nullptr;  // of C's dtype and layout
  bool hasEpilogue() const { return bias || other || activation != Activation::None; }
};

// Scratch for gemm(), a multiple of 64 bytes; depends on shapes and dtypes only.
uint64_t gemmWorkspace(const Gemm& g);
// The bits of the result do not depend on the number of threads. Returns MM_OK or MM_ERR_OUT_OF_MEMORY.
int32_t gemm(const Gemm& g, void* workspace);

// sums[j] = sum over rows of x[i][j] in f32, x (rows, n) dense: bias gradients
uint64_t columnSumsWorkspace(int64_t rows, int64_t n);
void columnSums(const void* x, int32_t dtype, int64_t rows, int64_t n, float* sums, void* workspace);

}  // namespace mm::cpu::MM_ISA
