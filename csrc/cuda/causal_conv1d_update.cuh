// causalConv1dUpdate: y_t = act(b + sum_j w_j x_{t-W+1+j}) for one or a few new tokens x (B, D[, S]) of any strides, over the
// inputs before them in convState (B, D, stateLen), which is updated in place: shifted left and appended to, or, with
// cacheSeqlens, used as a ring, token t at (cacheSeqlens + t) mod stateLen.
//
// A thread owns a channel and keeps its last W inputs in registers, at the end of a window of K = W (2 to 4) or 16 values;
// weights, inputs and states of neighbouring channels lie next to each other and share sectors. The work is as short as a
// launch. A negative cacheSeqlens, which cannot be refused here, is taken modulo stateLen like any other.
#pragma once
#include "cuda/causal_conv1d.cuh"

namespace mm::cuda {

template <class T>
struct ConvUpdate {
  const T* x;
  int64_t xBatch, xChannel, xToken;
  T* state;
  int64_t stateBatch, stateChannel, stateLength;
  ConvParameter weight, bias;
  const int32_t* positions;  // null: no ring
  T* y;                      // dense
  int64_t batch, channels, tokens;
  int32_t width;
  bool silu;
};

// W 0: any width up to 16
template <class T, int W>
__global__ void __launch_bounds__(128) causalConv1dUpdateKernel(const ConvUpdate<T> v) {
  constexpr int K = W ? W : 16;
  const int width = W ? W : v.width;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.batch * v.channels) return;
  const int64_t b = i / v.channels, d = i - b * v.channels;
  const T* x = v.x + b * v.xBatch + d * v.xChannel;
  T* state = v.state + b * v.stateBatch + d * v.stateChannel;
  int64_t slot = v.stateLength;  // of the next token
  if (v.positions) {
    slot = v.positions[b] % v.stateLength;
    if (slot < 0) slot += v.stateLength;
  }
  float weights[K], window[K];
#pragma unroll
  for (int j = 0; j < K; j++) {
    const int back = K - 1 - j;
    weights[j] = window[j] = 0.f;
    if (back >= width) continue;
    weights[j] = v.weight.template at<T>(d * width + width - 1 - back);
    if (back > 0) window[j] = toFloat(state[slot - back + (slot < back ? v.stateLength : 0)]);
  }
  const float bias = v.bias.data ? v.bias.template at<T>(d) : 0.f;
  for (int64_t t = 0; t < v.tokens; t++) {
    window[K - 1] = toFloat(x[t * v.xToken]);
    float sum = bias;
#pragma unroll
    for (int j = 0; j < K; j++)
      if (K - j <= width) sum = fmaf(weights[j], window[j], sum);
    v.y[i * v.tokens + t] = fromFloat<T>(v.silu ? siluFor<T>(sum) : sum);
#pragma unroll
    for (int j = 0; j + 1 < K; j++) window[j] = window[j + 1];
  }
  if (v.positions) {
    for (int64_t t = 0; t < v.tokens; t++) {
      state[slot] = x[t * v.xToken];
      if (++slot == v.stateLength) slot = 0;
    }
  } else if (W && v.stateLength == W - 1) {
#pragma unroll
    for (int j = 0; j + 1 < K; j++) state[j] = fromFloat<T>(window[j]);
  } else {
    const int64_t kept = v.stateLength > v.tokens ? v.stateLength - v.tokens : 0;
    for (int64_t k = 0; k < kept; k++) state[k] = state[k + v.tokens];
    for (int64_t k = kept; k < v.stateLength; k++) state[k] = x[(v.tokens - v.stateLength + k) * v.xToken];
  }
}

}  // namespace mm::cuda
