// A dense product C = A B with an epilogue, as the backends' gemm() take it. In the namespace of the including code, as
// abi/call.h.
#pragma once
#include "abi/call.h"

namespace MM_CALL_NAMESPACE {

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

}  // namespace MM_CALL_NAMESPACE
