// Instances of the gradients of a chunk on Hopper.
#include "cuda/chunk_scan_hopper_backward_gradient.cuh"

namespace mm::cuda::chunk_scan::hopper {

int32_t launchGradients(const MMCall* c, const Scan& s, const Gradient& g, const Task& task, const Maps& maps) {
  const dim3 grid(unsigned(ceilDiv(task.stages, task.perBlock)));
  return dispatchBool(s.v.dtype == MM_BF16, [&](auto isBf16) {
    using T = std::conditional_t<decltype(isBf16)::value, bf16, f16>;
    return dispatchBool(task.scalars, [&](auto decay) {
      const auto kernel = chunkGradientWgmmaKernel<T, decltype(decay)::value>;
      return launch(c, kernel, grid, dim3(kGradientBlock), GradientLayout::bytes, s, g, task, maps);
    });
  });
}

}  // namespace mm::cuda::chunk_scan::hopper
