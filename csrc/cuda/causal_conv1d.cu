#include "cuda/causal_conv1d.cuh"

#include "ops/causal_conv1d.h"

namespace mm::cuda {
namespace {

using namespace ops::causal_conv1d;

template <class T, int W, int V>
int32_t launchRows(const MMCall* c, const Conv<T>& v, T* finalStates) {
  const auto& y = out(c, Y);
  const int64_t vectors = ceilDiv(v.channels, V), threads = int64_t(deviceOf(c).multiprocessors) * 1024;
  // Long slices read fewer rows twice, short ones keep a small input from leaving multiprocessors idle.
  int each = 16;
  while (each > 4 && v.batch * ceilDiv(v.length, each) * vectors < threads) each /= 2;
  const int lanes = convColumns(vectors), block = each > 4 ? 256 : 128;
  const int64_t slices = ceilDiv(v.length, each), columns = ceilDiv(vectors, lanes);
  return launch(c, causalConv1dRowsFwdKernel<T, W, V>, dim3(unsigned(columns * ceilDiv(v.batch * slices, block / lanes))),
      dim3(lanes, block / lanes), 0, v, data<T>(y), y.stride[0], y.stride[2], finalStates, unsigned(columns), slices, each);
}

template <class T>
int32_t forward(const MMCall* c) {
  const auto &x = in(c, X), &y = out(c, Y), &weight = in(c, WEIGHT);
  const bool packed = has(c, CU_SEQLENS);
  const Conv<T> v = convOf<T>(x, weight, has(c, BIAS) ? &in(c, BIAS) : nullptr, has(c, INITIAL_STATES) ? &in(c, INITIAL_STATES) : nullptr,
      packed ? &in(c, CU_SEQLENS) : nullptr, attrs<Attrs>(c).activation == SILU);
  T* finalStates = data<T>(out(c, FINAL_STATES));
  ConvPath path = convPath(x, v.width, packed);
  if (!followsPath(path, y)) path = ConvPath::elements;
  // The walkers write the final states on their way, but for packed sequences, of which some may be empty.
  const bool apart = path == ConvPath::elements || packed || v.length == 0;
  if (apart) {
    const int64_t states = v.sequences.count * v.channels * (v.width - 1);
    if (const int32_t status = launch(c, causalConv1dFinalStatesKernel<T>, convGrid(states, 256), dim3(256), 0, v,
        finalStates)) return status;
  }
  if (!numel(x)) return MM_OK;
  if (path == ConvPath::elements)
    return launch(c, causalConv1dElementsFwdKernel<T>, convGrid(numel(x), 256), dim3(256), 0, v, data<T>(y), y.stride[0], y.stride[1],
        y.stride[2], x.stride[1] < x.stride[2]);
  return dispatchTaps(v.width, [&](auto taps) {
    constexpr int W = decltype(taps)::value;
    T* states = apart ? nullptr : finalStates;
    if (path == ConvPath::rows) {
      constexpr int V = kConvVector;
      const bool vectors = convVectors<T>(x, 1, V) && convVectors<T>(y, 1, V) && aligned(16, v.weight.data, v.bias.data);
      return vectors ? launchRows<T, W, V>(c, v, states) : launchRows<T, W, 1>(c, v, states);
    }
    constexpr int V = kVector<T>;
    const bool vectors = convVectors<T>(x, 2, V) && convVectors<T>(y, 2, V);
    const int64_t count = v.batch * v.channels;
    const ConvLines lines = convLines(ceilDiv(v.length, V), count, deviceOf(c).multiprocessors, vectors);
    return launch(c, causalConv1dLinesFwdKernel<T, W>, convGrid(count * lines.runs * lines.lanes, 128), dim3(128), 0, v, data<T>(y),
        y.stride[0], y.stride[1], states, lines);
  });
}

int32_t causalConv1d(const MMCall* c) {
  return dispatchFloat(in(c, X).dtype, [&](auto t) { return forward<decltype(t)>(c); });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(causal_conv1d, {"causalConv1d", "rows, lines or elements", nullptr, nullptr, causalConv1d})
