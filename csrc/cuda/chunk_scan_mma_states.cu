// Instances of the walk over the states.
#include "cuda/chunk_scan_mma.cuh"

namespace mm::cuda::chunk_scan {

int32_t launchMmaStates(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, int64_t segments,
                        bool chunks, int direction, int directions) {
  const dim3 grid(unsigned(segments * task.virtualHeads(s)), directions);
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    using T = decltype(t);
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    using Tiles = StateTiles<NT, PT>;
    return dispatchBool(chunks, [&](auto stored) {
      return launch(c, mmaStatesKernel<T, NT, PT, decltype(stored)::value>, grid, dim3(Tiles::threads), Tiles::bytes, s, g, task, direction);
    });
  });
}

}  // namespace mm::cuda::chunk_scan
