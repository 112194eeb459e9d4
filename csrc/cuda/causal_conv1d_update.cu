#include "cuda/causal_conv1d_update.cuh"

#include "ops/causal_conv1d.h"

namespace mm::cuda {
namespace {

int32_t causalConv1dUpdate(const MMCall* c) {
  using namespace ops::causal_conv1d_update;
  const auto &x = in(c, X), &state = in(c, CONV_STATE), &weight = in(c, WEIGHT);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    ConvUpdate<T> v;
    v.x = data<const T>(x);
    v.xBatch = x.stride[0], v.xChannel = x.stride[1], v.xToken = x.ndim == 3 ? x.stride[2] : 0;
    v.state = data<T>(state);
    v.stateBatch = state.stride[0], v.stateChannel = state.stride[1], v.stateLength = state.shape[2];
    v.weight = {weight.data, weight.dtype == MM_F32};
    v.bias = has(c, BIAS) ? ConvParameter{in(c, BIAS).data, in(c, BIAS).dtype == MM_F32} : ConvParameter{};
    v.positions = has(c, CACHE_SEQLENS) ? data<const int32_t>(in(c, CACHE_SEQLENS)) : nullptr;
    v.y = data<T>(out(c, Y));
    v.batch = x.shape[0], v.channels = x.shape[1], v.tokens = x.ndim == 3 ? x.shape[2] : 1;
    v.width = int32_t(weight.shape[1]);
    v.silu = attrs<Attrs>(c).activation == ops::causal_conv1d::SILU;
    const dim3 grid(unsigned(ceilDiv(v.batch * v.channels, 128))), block(128);
    switch (v.width) {
      case 2: return launch(c, causalConv1dUpdateKernel<T, 2>, grid, block, 0, v);
      case 3: return launch(c, causalConv1dUpdateKernel<T, 3>, grid, block, 0, v);
      case 4: return launch(c, causalConv1dUpdateKernel<T, 4>, grid, block, 0, v);
      default: return launch(c, causalConv1dUpdateKernel<T, 0>, grid, block, 0, v);
    }
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(causal_conv1d_update, {"causalConv1dUpdate", "channels", nullptr, nullptr, causalConv1dUpdate})
