// matmul and its gradients: batched calls of cpu/gemm.h, as ops/products.h says.
#include "cpu/gemm.h"
#include "ops/products.h"

namespace mm::cpu::MM_ISA {
namespace {

uint64_t matmulWorkspace(const MMCall* c) { return numel(out(c, 0)) ? gemmWorkspace(matmulProduct(c)) : 0; }
int32_t matmul(const MMCall* c) { return numel(out(c, 0)) ? gemm(matmulProduct(c), c->workspace) : MM_OK; }

int32_t sumProducts(const Gemm& g, const MMTensorView& to, char* workspace) {
  if (!repeats(g)) return gemm(g, workspace);
  const uint64_t bytes = sumBytes(g, to);
  float* sums = bytes ? reinterpret_cast<float*>(workspace) : data<float>(to);
  const int32_t status = eachSummand(g, sums, [&](const Gemm& step) { return gemm(step, workspace + bytes); });
  if (status) return status;
  if (bytes)
    dispatchFloat(to.dtype, [&](auto tag) {
      using T = decltype(tag);
      parallelFor(numel(to), 16384, [&](int64_t begin, int64_t end, int) {
        for (int64_t j = begin; j < end; j += VL) storeUpTo(data<T>(to) + j, loadUpTo(sums + j, end - j), end - j);
      });
    });
  return MM_OK;
}

uint64_t matmulBackwardWorkspace(const MMCall* c) { return matmulGradientsWorkspace(c, gemmWorkspace); }

int32_t matmulBackward(const MMCall* c) {
  using namespace ops::matmul_bwd;
  for (int slot : {DA, DB}) {
    if (!hasOut(c, slot)) continue;
    const auto& to = out(c, slot);
    if (!numel(in(c, DY))) {
      std::memset(to.data, 0, size_t(numel(to)) * (to.dtype == MM_F32 ? 4 : 2));
      continue;
    }
    const int32_t status = sumProducts(matmulGradient(c, slot), to, static_cast<char*>(c->workspace));
    if (status) return status;
  }
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(matmul, {"matmul", "gemm", nullptr, matmulWorkspace, matmul},
               {"matmulBackward", "gemm", nullptr, matmulBackwardWorkspace, matmulBackward})
