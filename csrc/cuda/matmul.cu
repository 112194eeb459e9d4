// matmul and its gradients: batched calls of cuda/gemm.h, as ops/products.h says.
#include "cuda/kernel.cuh"

#include "cuda/gemm.h"

#include "ops/products.h"

namespace mm::cuda {
namespace {

uint64_t matmulWorkspace(const MMCall* c) { return numel(out(c, 0)) ? gemmWorkspace(matmulProduct(c)) : 0; }
int32_t matmul(const MMCall* c) { return numel(out(c, 0)) ? gemm(c, matmulProduct(c), c->workspace) : MM_OK; }

template <class T>
__global__ void roundKernel(const float* __restrict__ x, T* __restrict__ y, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) y[i] = fromFloat<T>(x[i]);
}

int32_t sumProducts(const MMCall* c, const Gemm& g, const MMTensorView& to, char* workspace) {
  if (!repeats(g)) return gemm(c, g, workspace);
  const uint64_t bytes = sumBytes(g, to);
  float* sums = bytes ? reinterpret_cast<float*>(workspace) : data<float>(to);
  int32_t status = eachSummand(g, sums, [&](const Gemm& step) { return gemm(c, step, workspace + bytes); });
  if (status || !bytes) return status;
  dispatchFloat(to.dtype, [&](auto t) {
    using T = decltype(t);
    status = launch(c, roundKernel<T>, dim3(unsigned(ceilDiv(numel(to), 256))), dim3(256), 0, sums, data<T>(to), numel(to));
  });
  return status;
}

uint64_t matmulBackwardWorkspace(const MMCall* c) { return matmulGradientsWorkspace(c, gemmWorkspace); }

int32_t matmulBackward(const MMCall* c) {
  using namespace ops::matmul_bwd;
  for (int slot : {DA, DB}) {
    if (!hasOut(c, slot)) continue;
    const auto& to = out(c, slot);
    int32_t status = MM_OK;
    if (numel(in(c, DY))) {
      status = sumProducts(c, matmulGradient(c, slot), to, static_cast<char*>(c->workspace));
    } else if (numel(to)) {
      const Stream& s = *static_cast<Stream*>(c->stream);
      use(s);
      status = checked(s, cudaMemsetAsync(to.data, 0, size_t(numel(to)) * (to.dtype == MM_F32 ? 4 : 2), s.handle), c->error, c->error_size);
    }
    if (status) return status;
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(matmul, {"matmul", "cublaslt", nullptr, matmulWorkspace, matmul},
                {"matmulBackward", "cublaslt", nullptr, matmulBackwardWorkspace, matmulBackward})
