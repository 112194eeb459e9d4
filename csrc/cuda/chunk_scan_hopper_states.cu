// Instances of the walks over the states on Hopper.
#include "cuda/chunk_scan_hopper_states.cuh"

namespace mm::cuda::chunk_scan::hopper {

bool kernelsBuilt() {
  static const bool built = builtForHopper(chunkStatesWgmmaKernel<bf16, true, 2>);
  return built;
}

int32_t launchStates(const MMCall* c, const Scan& s, const Gradient& g, const Task& task, const Maps& maps) {
  const int64_t blocks = task.walks(s), multiprocessors = deviceOf(c).multiprocessors;
  const dim3 grid{unsigned(blocks)}, threads(kStateThreads);
  return dispatchBool(s.v.dtype == MM_BF16, [&](auto isBf16) {
    using T = std::conditional_t<decltype(isBf16)::value, bf16, f16>;
    return dispatchBool(task.scalars, [&](auto decay) {
      const auto pairs = chunkStatesWgmmaKernel<T, decltype(decay)::value, 2>, quads = chunkStatesWgmmaKernel<T, decltype(decay)::value, 4>;
      static const int64_t resident = residentClusters(c, quads, 4, kStateThreads, StateLayout::bytes(6));
      // All blocks at once, up to three on a multiprocessor, and stages as deep as that leaves room for. Clusters of four may leave
      // multiprocessors without work, and then not all fit; without decay, as walks are nothing but traffic, two blocks may share one.
      const bool crowded = !decltype(decay)::value && task.slices == 2 && 4 * resident < blocks;
      const int together = blocks <= multiprocessors && !crowded ? 1 : blocks <= 2 * multiprocessors ? 2 : 3, stages = 6 / together;
      const size_t shared = StateLayout::bytes(stages);
      if (task.slices == 2 && (4 * together * resident >= blocks || blocks > 3 * multiprocessors))
        return launchClusters(c, quads, 4, grid, threads, shared, s, g, task, maps, stages);
      return launchClusters(c, pairs, 2, grid, threads, shared, s, g, task, maps, stages);
    });
  });
}

}  // namespace mm::cuda::chunk_scan::hopper
