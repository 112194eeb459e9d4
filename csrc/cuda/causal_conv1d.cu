#include "cuda/causal_conv1d.cuh"

#include "ops/causal_conv1d.h"

namespace mm::cuda {
namespace {

using namespace ops::causal_conv1d;

template <class T, int W, int V>
int32_t launchRows(const MMCall* c, const Conv<T>& v, T* finalStates) {
  constexpr int R = kConvTile;
  const auto& y = out(c, Y);
  const int64_t vectors = ceilDiv(v.channels, V), tilesEach = ceilDiv(v.length, R), tiles = v.batch * tilesEach;
  const int lanes = convColumns(vectors), rows = kConvRowsThreads / lanes;
  const int64_t columns = ceilDiv(vectors, lanes);
  return launch(c, causalConv1dRowsFwdKernel<T, W, V, R>, dim3(unsigned(columns * ceilDiv(tiles, rows))), dim3(lanes, rows), 0, v,
      data<T>(y), y.stride[0], y.stride[2], finalStates, unsigned(columns), unsigned(tilesEach), unsigned(tiles));
}

template <class T, int W, int U, bool WHOLE>
int32_t launchLines(const MMCall* c, const Conv<T>& v, T* finalStates) {
  const auto& y = out(c, Y);
  const int64_t chunks = ceilDiv(v.length, kVector<T>), lines = v.batch * v.channels;
  const int shift = convLanes(chunks);
  const int64_t segments = ceilDiv(chunks, int64_t(U) << shift);
  return launch(c, causalConv1dLinesFwdKernel<T, W, U, WHOLE>, convGrid((lines * segments) << shift, kConvLinesThreads),
      dim3(kConvLinesThreads), 0, v, data<T>(y), y.stride[0], y.stride[1], finalStates, unsigned(segments), unsigned(lines), shift);
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
      constexpr int V = kConvVector<T>;
      const bool vectors = convVectors<T>(x, 1, V) && convVectors<T>(y, 1, V) && aligned(16, v.weight.data, v.bias.data);
      return vectors ? launchRows<T, W, V>(c, v, states) : launchRows<T, W, 1>(c, v, states);
    }
    constexpr int V = kVector<T>, U = kConvChunks;
    if (!convVectors<T>(x, 2, V) || !convVectors<T>(y, 2, V)) return launchLines<T, W, 1, false>(c, v, states);
    return v.length > 32 * V ? launchLines<T, W, U, true>(c, v, states) : launchLines<T, W, 1, true>(c, v, states);
  });
}

int32_t causalConv1d(const MMCall* c) {
  return dispatchFloat(in(c, X).dtype, [&](auto t) { return forward<decltype(t)>(c); });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(causal_conv1d, {"causalConv1d", "rows, lines or elements", nullptr, nullptr, causalConv1d})
