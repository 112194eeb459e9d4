#include "cuda/pos_embed_bicubic.cuh"

#include "ops/pos_embed_bicubic.h"

namespace mm::cuda {
namespace {

int64_t gridSide(const MMTensorView& x) {
  int64_t side = 0;
  while (side * side < x.shape[1]) side++;
  return side;
}
dim3 gridOf(int64_t cells, int64_t channels) {
  const int64_t strips = ceilDiv(channels, kTapThreads);
  return dim3(unsigned(cells), unsigned(strips < 1024 ? strips : 1024));
}

int32_t posEmbedBicubic(const MMCall* c) {
  using namespace ops::pos_embed_bicubic;
  const auto &x = in(c, POS_EMBED), &y = out(c, Y);
  const auto& at = attrs<Attrs>(c);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, posEmbedBicubicKernel<T>, gridOf(at.outH * at.outW, x.shape[2]), dim3(kTapThreads), 0, data<T>(x), data<T>(y),
                  gridSide(x), at.outH, at.outW, x.shape[2]);
  });
}

int32_t posEmbedBicubicBackward(const MMCall* c) {
  using namespace ops::pos_embed_bicubic_bwd;
  if (!hasOut(c, DPOS_EMBED)) return MM_OK;
  const auto &dy = in(c, DY), &dx = out(c, DPOS_EMBED);
  const auto& at = attrs<Attrs>(c);
  return dispatchFloat(dy.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, posEmbedBicubicBackwardKernel<T>, gridOf(dx.shape[1], dx.shape[2]), dim3(kTapThreads), 0, data<T>(dy), data<float>(dx),
                  gridSide(dx), at.outH, at.outW, dx.shape[2]);
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(pos_embed_bicubic, {"posEmbedBicubic", "cells", nullptr, nullptr, posEmbedBicubic},
                {"posEmbedBicubicBackward", "cells", nullptr, nullptr, posEmbedBicubicBackward})
