// linear and its gradients through cuda/gemm.h: the products of ops/products.h, db = column sums of dZ, dR = dY.
#include "cuda/linear.cuh"

#include "cuda/gemm.h"

#include "ops/products.h"

namespace mm::cuda {
namespace {

uint64_t linearWorkspace(const MMCall* c) { return gemmWorkspace(linearProduct(c)); }
int32_t linear(const MMCall* c) { return gemm(c, linearProduct(c), c->workspace); }

// Slices of the rows that column sums are made of: enough blocks to fill the chip, at most one a 64 rows.
int64_t slices(int64_t rows, int64_t n) {
  const int64_t wanted = ceilDiv(1024, std::max<int64_t>(1, ceilDiv(n, 32)));
  return std::max<int64_t>(1, std::min(wanted, ceilDiv(rows, 64)));
}

uint64_t columnSumsWorkspace(int64_t rows, int64_t n) { return uint64_t(slices(rows, n) * n) * sizeof(float); }

int32_t columnSums(const MMCall* c, const void* x, int32_t dtype, int64_t rows, int64_t n, float* sums, void* workspace) {
  float* partial = static_cast<float*>(workspace);
  const int64_t parts = slices(rows, n);
  int32_t status = MM_OK;
  dispatchFloat(dtype, [&](auto t) {
    using T = decltype(t);
    status = launch(c, columnSumsKernel<T>, dim3(unsigned(ceilDiv(n, 32)), unsigned(parts)), dim3(256), 0, static_cast<const T*>(x), partial, rows, n,
                    ceilDiv(rows, parts));
  });
  return status ? status : addPartials(c, partial, sums, parts, n);
}

uint64_t linearBackwardWorkspace(const MMCall* c) { return linearGradientsWorkspace(c, gemmWorkspace, columnSumsWorkspace); }

int32_t linearBackward(const MMCall* c) {
  using namespace ops::linear_bwd;
  const LinearGradients g(c);
  const auto& dy = in(c, DY);
  char* scratch = static_cast<char*>(c->workspace) + g.dzBytes;
  int32_t status = MM_OK;
  if (g.recompute) status = gemm(c, g.z, scratch);
  if (!status && hasOut(c, DX)) status = gemm(c, g.dx, scratch);
  if (!status && hasOut(c, DWEIGHT)) status = gemm(c, g.dw, scratch);
  if (!status && hasOut(c, DBIAS)) status = columnSums(c, g.dz, dy.dtype, g.m, g.n, data<float>(out(c, DBIAS)), scratch);
  if (status || !hasOut(c, DRESIDUAL)) return status;
  const cudaError_t copied = cudaMemcpyAsync(out(c, DRESIDUAL).data, dy.data, size_t(numel(dy)) * (dy.dtype == MM_F32 ? 4 : 2), cudaMemcpyDeviceToDevice, streamOf(c));
  return checked(*static_cast<Stream*>(c->stream), copied, c->error, c->error_size);
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(linear, {"linear", "cublaslt", nullptr, linearWorkspace, linear},
                {"linearBackward", "cublaslt", nullptr, linearBackwardWorkspace, linearBackward})
