// Instances of the tensor-core chunk engine with a decay per channel.
#include "cuda/chunk_scan_mma_channel_gradient.cuh"
#include "cuda/chunk_scan_mma_channel_operands.cuh"

namespace mm::cuda::chunk_scan {

size_t channelGradientShared(const MmaSizes& sizes) {
  size_t bytes = 0;
  dispatchMma(MM_BF16, sizes, [&](auto, auto nt, auto pt) {
    bytes = ChannelTiles<decltype(nt)::value, decltype(pt)::value>::bytes;
    return MM_OK;
  });
  return bytes;
}

int32_t launchChannelOperands(const MMCall* c, const Scan& s, const ChannelTask& channel, const MmaSizes& sizes, int64_t blocks) {
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto) {
    constexpr int NT = decltype(nt)::value;
    constexpr size_t bytes = OperandTiles<NT>::bytes;
    return launch(c, channelOperandsKernel<decltype(t), NT>, dim3(unsigned(blocks)), dim3(kOperandThreads), bytes, s, channel);
  });
}

int32_t launchChannelGradient(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const ChannelTask& channel,
                              const MmaSizes& sizes, int64_t blocks) {
  return dispatchMma(s.v.dtype, sizes, [&](auto t, auto nt, auto pt) {
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    constexpr size_t bytes = ChannelTiles<NT, PT>::bytes;
    const auto kernel = channelGradientKernel<decltype(t), NT, PT>;
    return launch(c, kernel, dim3(unsigned(blocks)), dim3(kGradientThreads), bytes, s, g, task, channel);
  });
}

}  // namespace mm::cuda::chunk_scan
