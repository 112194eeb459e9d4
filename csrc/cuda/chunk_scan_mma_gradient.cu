// Instances of the gradients of a chunk.
#include "cuda/chunk_scan_mma_gradient.cuh"

namespace mm::cuda::chunk_scan {

int32_t launchMmaGradient(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, int64_t blocks) {
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    constexpr size_t bytes = GradientTiles<NT, PT>::bytes;
    return launch(c, mmaGradientKernel<decltype(t), NT, PT>, dim3(unsigned(blocks)), dim3(kGradientThreads), bytes, s, g, task);
  });
}

}  // namespace mm::cuda::chunk_scan
