// Instances of the tensor-core chunk engine with a decay per channel.
#include "cuda/chunk_scan_mma_channel.cuh"

namespace mm::cuda::chunk_scan {

size_t channelGradientShared(const MmaSizes& sizes) {
  size_t bytes = 0;
  dispatchMma(MM_BF16, sizes, [&](auto, auto nt, auto pt) {
    bytes = ChannelTiles<decltype(nt)::value, decltype(pt)::value>::bytes;
    return MM_OK;
  });
  return bytes;
}

int32_t launchChannelOperands(const MMCall* c, const Scan& s, const ChannelTask& channel, int64_t blocks) {
  const auto start = [&](auto kernel) {
    return launch(c, kernel, dim3(unsigned(blocks)), dim3(kGeneralThreads), channelShared<kChannelTile>(4), s, channel);
  };
  return s.v.dtype == MM_BF16 ? start(channelOperandsKernel<bf16>) : start(channelOperandsKernel<f16>);
}

int32_t launchChannelGradient(const MMCall* c, const Scan& s, const Scan& decayed, const Gradient& g, const MmaTask& task,
                              const ChannelTask& channel, const MmaSizes& sizes, int64_t blocks) {
  const int32_t status = dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    constexpr size_t bytes = ChannelTiles<NT, PT>::bytes;
    const auto kernel = channelProductsKernel<decltype(t), NT, PT>;
    return launch(c, kernel, dim3(unsigned(blocks)), dim3(kGradientThreads), bytes, decayed, g, task, channel);
  });
  if (status != MM_OK || !(g.dq.given || g.dk.given || g.dgate.given)) return status;
  Task keys;
  keys.r = channel.r, keys.dq = channel.dq, keys.dk = channel.dk, keys.through = channel.through;
  const auto start = [&](auto kernel) {
    const dim3 grid(unsigned(blocks * ceilDiv(s.n, kChunk)));
    return launch(c, kernel, grid, dim3(kGeneralThreads), channelShared<kChannelTile>(5), s, g, keys);
  };
  return s.v.dtype == MM_BF16 ? start(channelKeysKernel<bf16, kChannelTile, true>) : start(channelKeysKernel<f16, kChannelTile, true>);
}

}  // namespace mm::cuda::chunk_scan
