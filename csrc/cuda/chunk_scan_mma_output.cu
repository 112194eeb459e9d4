// Instances of the outputs.
#include "cuda/chunk_scan_mma_output.cuh"

namespace mm::cuda::chunk_scan {

int32_t launchMmaOutput(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool gate) {
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    using T = decltype(t);
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    const auto start = [&](auto tiles, auto kernel) {
      using Tiles = decltype(tiles);
      return launch(c, kernel, dim3(unsigned(segments * task.virtualHeads(s))), dim3(Tiles::threads), Tiles::bytes, s, g, task);
    };
    if (kind == Decay::Channel) return start(OutputTiles<NT, PT, Decay::Channel>{}, mmaOutputKernel<T, NT, PT, Decay::Channel, false>);
    const OutputTiles<NT, PT, Decay::Head> tiles;
    if (gate) return start(tiles, mmaOutputKernel<T, NT, PT, Decay::Head, true>);
    return start(tiles, mmaOutputKernel<T, NT, PT, Decay::Head, false>);
  });
}

}  // namespace mm::cuda::chunk_scan
