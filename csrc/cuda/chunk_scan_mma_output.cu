// Instances of the outputs.
#include "cuda/chunk_scan_mma.cuh"

namespace mm::cuda::chunk_scan {

int32_t launchMmaOutput(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, int64_t segments, bool gate) {
  const dim3 grid(unsigned(segments * task.virtualHeads(s)));
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    using T = decltype(t);
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    using Tiles = OutputTiles<NT, PT>;
    return dispatchBool(gate, [&](auto gated) {
      return launch(c, mmaOutputKernel<T, NT, PT, decltype(gated)::value>, grid, dim3(Tiles::threads), Tiles::bytes, s, g, task);
    });
  });
}

}  // namespace mm::cuda::chunk_scan
