// Dense products for kernels: C = A B with an epilogue, batched, in f32 (never tf32), bf16 and f16 with f32 sums, by cuBLASLt;
// a row times a matrix by a kernel of our own, which is bound by the bytes of the matrix.
#pragma once
#ifndef MM_CALL_NAMESPACE
#define MM_CALL_NAMESPACE mm::cuda
#endif
#include "abi/gemm.h"
#include "cuda/device.h"

namespace mm::cuda {

// Bytes of scratch; depends on shapes and dtypes only.
uint64_t gemmWorkspace(const Gemm& g);
// Puts the product on the call's stream.
int32_t gemm(const MMCall* c, const Gemm& g, void* workspace);

// Frees what products keep in the stream.
void destroyGemm(Stream& stream);

}  // namespace mm::cuda
