// linear and its gradients, all through cpu/gemm.h: y = act(x W^T + b) + r with the epilogue in the product's blocks.
// Backward: the products of ops/products.h, db = column sums of dZ, dR = dY.
#include "cpu/gemm.h"
#include "ops/products.h"

namespace mm::cpu::MM_ISA {
namespace {

uint64_t linearWorkspace(const MMCall* c) { return gemmWorkspace(linearProduct(c)); }
int32_t linear(const MMCall* c) { return gemm(linearProduct(c), c->workspace); }

uint64_t linearBackwardWorkspace(const MMCall* c) { return linearGradientsWorkspace(c, gemmWorkspace, columnSumsWorkspace); }

int32_t linearBackward(const MMCall* c) {
  using namespace ops::linear_bwd;
  const LinearGradients g(c);
  const auto& dy = in(c, DY);
  char* scratch = static_cast<char*>(c->workspace) + g.dzBytes;
  int32_t status = MM_OK;
  if (g.recompute) status = gemm(g.z, scratch);
  if (!status && hasOut(c, DX)) status = gemm(g.dx, scratch);
  if (!status && hasOut(c, DWEIGHT)) status = gemm(g.dw, scratch);
  if (status) return status;
  if (hasOut(c, DBIAS)) columnSums(g.dz, dy.dtype, g.m, g.n, data<float>(out(c, DBIAS)), scratch);
  if (hasOut(c, DRESIDUAL)) {
    const int64_t bytes = numel(dy) * (dy.dtype == MM_F32 ? 4 : 2);
    parallelFor(bytes, 1 << 18, [&](int64_t begin, int64_t end, int) {
      std::memcpy(data<char>(out(c, DRESIDUAL)) + begin, data<char>(dy) + begin, size_t(end - begin));
    });
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(linear, {"linear", "gemm", nullptr, linearWorkspace, linear},
               {"linearBackward", "gemm", nullptr, linearBackwardWorkspace, linearBackward})
