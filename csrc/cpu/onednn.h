// oneDNN's matmul as the engine of cpu/gemm.h: the library is opened when first needed and is never linked. Compiled
// once; the per-instruction-set kernels call through these few functions.
#pragma once
#include <cstdint>

namespace mm::cpu {

// "oneDNN 2.6.3 (avx512_core_bf16), /usr/lib/.../libdnnl.so.2", or why it does not serve. Opens the library.
const char* onednnStatus();

// C (m, n) = A (m, k) B (k, n) (+ C), row-major with leading dimensions; a transposed A is stored (k, m), B (n, k).
struct OnednnKey {
  int64_t m, n, k, lda, ldb, ldc;
  int32_t in, out;  // MMDtype of A and B, and of C: f32 to f32, or bf16 to f32 or bf16
  int32_t trans_a, trans_b, accumulate;
};

struct OnednnMatmul;
// A compiled product from the cache, or null when oneDNN is absent or slow at it. May be held across threads; release
// it as often as it was acquired.
OnednnMatmul* onednnAcquire(const OnednnKey& key);
void onednnRelease(OnednnMatmul* matmul);
// Runs on the calling thread alone; any number of threads may run one product at once. False: out of memory.
bool onednnRun(OnednnMatmul* matmul, const void* a, const void* b, void* c);

}  // namespace mm::cpu
