// Instances of the walk over the states.
#include "cuda/chunk_scan_mma_states.cuh"

namespace mm::cuda::chunk_scan {

int32_t launchMmaStates(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool chunks, int direction, int directions) {
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    using T = decltype(t);
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    using Tiles = StateTiles<NT, PT>;
    const auto start = [&](auto kernel) {
      const dim3 grid(unsigned(segments * task.virtualHeads(s)), directions);
      return launch(c, kernel, grid, dim3(Tiles::threads), Tiles::bytes, s, g, task, direction);
    };
    if (kind == Decay::Channel)
      return chunks ? start(mmaStatesKernel<T, NT, PT, Decay::Channel, true>) : start(mmaStatesKernel<T, NT, PT, Decay::Channel, false>);
    return chunks ? start(mmaStatesKernel<T, NT, PT, Decay::Head, true>) : start(mmaStatesKernel<T, NT, PT, Decay::Head, false>);
  });
}

}  // namespace mm::cuda::chunk_scan
