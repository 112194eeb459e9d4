// causalConv1dBackward: with g_t = dY_t act'(pre_t), dX_t = sum_j w_j g_{t+W-1-j}, dW_j = sum_t g_t x_{t-W+1+j}, db = sum_t g_t.
// Initial states get gradients like earlier inputs; the final states' gradients are added to the inputs that they are.
//
// x, dY are read once and dX written once; layouts as in causal_conv1d.cuh, chosen by x:
//   rows      a thread owns V = 4 channels and walks slices of the length. g_t is computed once, feeds the W gradients of the
//             weights, which stay in registers through all slices of the thread, and the W pending sums dX_{t-W+1} .. dX_t, of
//             which the oldest is complete and written. Only the W-1 rows behind a slice are computed twice.
//   lines     lanes share a line and walk it from its end, so that the W-1 later g come from the next lane or the last chunk.
//   elements  g goes through the workspace.
// dY of another layout than x is copied to x's layout first. Every block writes one partial row of weight gradients; the rows
// are added in order (rows.cuh).
#pragma once
#include "cuda/causal_conv1d.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda {

template <class T>
struct ConvGradients {
  const T* dy;
  int64_t dyBatch, dyChannel, dyTime;
  const T* finalStates;  // gradient of the final states (S, D, W-1) or null
  T* dx;                 // null: not wanted, as all below
  int64_t dxBatch, dxChannel, dxTime;
  T* initialStates;
  float *weightSums, *biasSums;  // in the first partial row
  int64_t sumsEach;              // columns of a partial row
};

// dY to the layout of x (rows: channels fastest, lines: steps fastest), dense, in tiles of 32 channels by 32 steps: 32 x 8 threads,
// tiles of channels fastest.
template <class T>
__global__ void __launch_bounds__(256) causalConv1dRelayoutKernel(const ConvGradients<T> from, T* __restrict__ to, int64_t channels,
    int64_t length, bool channelFastest) {
  __shared__ T tile[32][33];
  const int64_t across = (channels + 31) / 32, along = (length + 31) / 32, rest = blockIdx.x / across;
  const int64_t b = rest / along, d0 = (blockIdx.x - rest * across) * 32, t0 = (rest - b * along) * 32;
  const bool readsChannels = from.dyChannel < from.dyTime;
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int d = readsChannels ? int(threadIdx.x) : i, t = readsChannels ? i : int(threadIdx.x);
    if (d0 + d < channels && t0 + t < length) tile[d][t] = from.dy[b * from.dyBatch + (d0 + d) * from.dyChannel + (t0 + t) * from.dyTime];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int d = channelFastest ? int(threadIdx.x) : i, t = channelFastest ? i : int(threadIdx.x);
    if (d0 + d < channels && t0 + t < length)
      to[b * channels * length + (channelFastest ? (t0 + t) * channels + d0 + d : (d0 + d) * length + t0 + t)] = tile[d][t];
  }
}

// 256 threads as (columns of V channels) x (slices); grid: column blocks x parts, columns fastest. Part p takes the slice groups
// p, p + parts, ... The initial states are for sequences that are not packed.
template <class T, int W, int V>
__global__ void __launch_bounds__(256, 2) causalConv1dRowsBwdKernel(const Conv<T> v, const ConvGradients<T> to, unsigned columns,
    int64_t slices, int rowsEach, int64_t parts) {
  __shared__ float sums[(W + 1) * V * 256];
  constexpr int H = W - 1;
  const unsigned column = blockIdx.x % columns, part = blockIdx.x / columns;
  const int64_t d = (int64_t(column) * blockDim.x + threadIdx.x) * V;
  float weights[W][V], bias[V], dWeights[W][V], dBias[V];
#pragma unroll
  for (int c = 0; c < V; c++) {
    dBias[c] = 0.f;
#pragma unroll
    for (int j = 0; j < W; j++) dWeights[j][c] = 0.f;
  }
  const bool reachesBack = to.dx || to.initialStates;
  int64_t slice = v.batch * slices;
  if (d < v.channels) {
    loadTaps<T, W, V>(v, d, weights, bias);
    slice = int64_t(part) * blockDim.y + threadIdx.y;
  }
  for (; slice < v.batch * slices; slice += parts * blockDim.y) {
    const int64_t b = slice / slices;
    int t = int(slice - b * slices) * rowsEach;
    const int last = v.length - t < rowsEach ? int(v.length) : t + rowsEach;
    const T *x = v.x + b * v.xBatch + d, *dy = to.dy + b * to.dyBatch + d;
    while (t < last) {
      const ConvPiece piece(v, b, d, t, H);
      const int first = t, own = piece.end < last ? piece.end : last;  // [first, own) are this thread's rows
      const int stop = !reachesBack ? own : piece.end - own < H ? piece.end : own + H;
      float window[H][V], pending[H][V];  // pending[k]: gradient of row t - H + k so far
      loadWindow<W, V>(v, piece, x, t, window);
#pragma unroll
      for (int k = 0; k < H; k++)
#pragma unroll
        for (int c = 0; c < V; c++) pending[k][c] = 0.f;
      // Rows before `first` belong to another thread, unless they are the sequence's initial states.
      const auto emit = [&](int row, const float(&gradient)[V]) {
        if (row >= first) {
          if (to.dx && row < own) storePacked<V>(to.dx + b * to.dxBatch + d + row * to.dxTime, gradient);
        } else if (to.initialStates && row < piece.begin) {
#pragma unroll
          for (int c = 0; c < V; c++) to.initialStates[piece.states + c * H + row - piece.begin + H] = fromFloat<T>(gradient[c]);
        }
      };
      const auto walk = [&](auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        Pack<T, V> rowsX[kConvAhead], rowsDy[kConvAhead];
        fetchRows<WHOLE>(rowsX, x + t * v.xTime, v.xTime, stop - t);
        fetchRows<WHOLE>(rowsDy, dy + t * to.dyTime, to.dyTime, stop - t);
#pragma unroll
        for (int i = 0; i < kConvAhead; i++) {
          if (!WHOLE && t + i >= stop) break;
          const bool mine = WHOLE || t + i < own;
          float values[V], gradients[V], ready[V];
          unpack(rowsX[i], values);
          unpack(rowsDy[i], gradients);
#pragma unroll
          for (int c = 0; c < V; c++) {
            const float value = values[c];
            float g = gradients[c];
            if (v.silu) {
              float sum = bias[c];
#pragma unroll
              for (int j = 0; j < H; j++) sum = fmaf(weights[j][c], window[j][c], sum);
              g *= siluGradFor<T>(fmaf(weights[H][c], value, sum));
            }
            if (mine) {
#pragma unroll
              for (int j = 0; j < H; j++) dWeights[j][c] = fmaf(g, window[j][c], dWeights[j][c]);
              dWeights[H][c] = fmaf(g, value, dWeights[H][c]);
              dBias[c] += g;
            }
            ready[c] = fmaf(weights[0][c], g, pending[0][c]);
#pragma unroll
            for (int k = 0; k + 1 < H; k++) pending[k][c] = fmaf(weights[k + 1][c], g, pending[k + 1][c]);
            pending[H - 1][c] = weights[H][c] * g;
#pragma unroll
            for (int k = 0; k + 1 < H; k++) window[k][c] = window[k + 1][c];
            window[H - 1][c] = value;
          }
          emit(t + i - H, ready);
        }
      };
      for (; t + kConvAhead <= own; t += kConvAhead) walk(std::true_type{});
      for (; t < stop; t += kConvAhead) walk(std::false_type{});
      if (reachesBack && stop == piece.end) {
        // The last H rows, initial states among them where the sequence is short: no further outputs, but the final states.
#pragma unroll
        for (int k = 0; k < H; k++) {
          if (to.finalStates)
#pragma unroll
            for (int c = 0; c < V; c++) pending[k][c] += toFloat(to.finalStates[piece.states + c * H + k]);
          emit(stop - H + k, pending[k]);
        }
      }
      t = own;
    }
  }
  if (!to.weightSums && !to.biasSums) return;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int c = 0; c < V; c++) {
#pragma unroll
    for (int j = 0; j < W; j++) sums[(c * (W + 1) + j) * 256 + thread] = dWeights[j][c];
    sums[(c * (W + 1) + W) * 256 + thread] = dBias[c];
  }
  __syncthreads();
  // Sum i of the block: tap i % (W + 1) of its channel i / (W + 1).
  for (int i = thread; i < int(blockDim.x) * V * (W + 1); i += 256) {
    const int channel = i / (W + 1), j = i % (W + 1), lane = channel / V, c = channel % V;
    float total = 0.f;
    for (int k = 0; k < int(blockDim.y); k++) total += sums[(c * (W + 1) + j) * 256 + k * blockDim.x + lane];
    const int64_t at = int64_t(column) * blockDim.x * V + channel;
    if (at >= v.channels) continue;
    if (j < W && to.weightSums) to.weightSums[part * to.sumsEach + at * W + j] = total;
    if (j == W && to.biasSums) to.biasSums[part * to.sumsEach + at] = total;
  }
}

// Lanes and runs as in the forward, the chunks from last to first. Partial rows: one a batch and run.
template <class T, int W>
__global__ void __launch_bounds__(128) causalConv1dLinesBwdKernel(const Conv<T> v, const ConvGradients<T> to, const ConvLines lines) {
  constexpr int V = kVector<T>, H = W - 1;
  const int lane = threadIdx.x & (lines.lanes - 1);
  const int64_t group = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lines.lanes, line = group / lines.runs,
      run = group - line * lines.runs;
  const int64_t length = line < v.batch * v.channels ? v.length : 0;  // groups behind the last line only shuffle
  const int64_t b = length ? line / v.channels : 0, d = length ? line - b * v.channels : 0;
  const int64_t begin = run * lines.steps<T>(), end = begin + lines.steps<T>(), first = begin + lane * V;
  const T *x = v.x + b * v.xBatch + d * v.xChannel, *dy = to.dy + b * to.dyBatch + d * to.dyChannel;
  const T* state = v.states ? v.states + (b * v.channels + d) * H : nullptr;
  float weights[W] = {}, bias = 0.f, dWeights[W] = {}, dBias = 0.f;
  if (length) {
#pragma unroll
    for (int j = 0; j < W; j++) weights[j] = v.weight.template at<T>(d * W + j);
    if (v.bias.data) bias = v.bias.template at<T>(d);
  }
  const auto through = [&](float g, const float* value) {  // g = dY act'(.), value: the W inputs
    if (!v.silu) return g;
    float sum = bias;
#pragma unroll
    for (int j = 0; j < W; j++) sum = fmaf(weights[j], value[j], sum);
    return g * siluGradFor<T>(sum);
  };
  float carry[H];  // g of the H steps behind the chunk
#pragma unroll
  for (int k = 0; k < H; k++) {
    carry[k] = 0.f;
    if (end + k < length) {
      float value[W];
#pragma unroll
      for (int j = 0; j < W; j++) value[j] = toFloat(x[end + k - H + j]);
      carry[k] = through(toFloat(dy[end + k]), value);
    }
  }
  Pack<T, V> nextX, nextDy;
  T nextBefore[H];
  const auto fetch = [&](int64_t t) {
    const int left = stepsLeft(t, length, V);
    nextX = loadLine<V>(x + t, left, lines.vectors);
    nextDy = loadLine<V>(dy + t, left, lines.vectors);
    if (lane == 0 && t < length) loadBefore<W>(x, state, t, nextBefore);
  };
  fetch(first + int64_t(lines.chunks - 1) * lines.lanes * V);
  for (int chunk = lines.chunks - 1; chunk >= 0; chunk--) {
    const int64_t t = first + int64_t(chunk) * lines.lanes * V;
    const int left = stepsLeft(t, length, V + H);
    float value[H + V], g[V + H], freshX[V], freshDy[V];  // value, g: from steps t - H and t
    unpack(nextX, freshX);
    unpack(nextDy, freshDy);
#pragma unroll
    for (int i = 0; i < V; i++) value[H + i] = freshX[i], g[i] = freshDy[i];
#pragma unroll
    for (int k = 0; k < H; k++) {
      value[k] = __shfl_up_sync(0xffffffffu, value[V + k], 1, lines.lanes);
      if (lane == 0) value[k] = toFloat(nextBefore[k]);
    }
    if (chunk > 0) fetch(t - lines.lanes * V);
#pragma unroll
    for (int i = 0; i < V; i++) {
      g[i] = i < left ? through(g[i], value + i) : 0.f;
#pragma unroll
      for (int j = 0; j < W; j++)
        if (i < left) dWeights[j] = fmaf(g[i], value[i + j], dWeights[j]);
      dBias += g[i];
    }
#pragma unroll
    for (int k = 0; k < H; k++) {
      const float after = __shfl_down_sync(0xffffffffu, g[k], 1, lines.lanes);
      g[V + k] = lane == lines.lanes - 1 ? carry[k] : after;
      carry[k] = __shfl_sync(0xffffffffu, g[k], 0, lines.lanes);
    }
    if (to.dx) {
      float gradient[V];
#pragma unroll
      for (int i = 0; i < V; i++) {
        gradient[i] = 0.f;
#pragma unroll
        for (int k = 0; k < W; k++) gradient[i] = fmaf(weights[H - k], g[i + k], gradient[i]);
        const int slot = i - (left - H);
        if (to.finalStates && slot >= 0 && slot < H) gradient[i] += toFloat(to.finalStates[line * H + slot]);
      }
      storeLine<V>(to.dx + b * to.dxBatch + d * to.dxChannel + t, left, lines.vectors, gradient);
    }
    if (to.initialStates && t == 0 && length)
#pragma unroll
      for (int k = 0; k < H; k++) {
        float total = 0.f;
#pragma unroll
        for (int j = 0; j <= k; j++) total = fmaf(weights[j], g[k - j], total);
        to.initialStates[line * H + k] = fromFloat<T>(total);
      }
  }
  for (int offset = lines.lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int j = 0; j < W; j++) dWeights[j] += __shfl_xor_sync(0xffffffffu, dWeights[j], offset);
    dBias += __shfl_xor_sync(0xffffffffu, dBias, offset);
  }
  if (!length || lane) return;
  const int64_t part = b * lines.runs + run;
  if (to.weightSums)
#pragma unroll
    for (int j = 0; j < W; j++) to.weightSums[part * to.sumsEach + d * W + j] = dWeights[j];
  if (to.biasSums) to.biasSums[part * to.sumsEach + d] = dBias;
}

// ---- elements

// g in f32, in the order of the elements
template <class T>
__global__ void __launch_bounds__(256) causalConv1dElementsGradientKernel(const Conv<T> v, const ConvGradients<T> to,
    float* __restrict__ g, bool channelFastest) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.batch * v.channels * v.length) return;
  const ConvElement at(i, v.channels, v.length, channelFastest);
  const float dy = toFloat(to.dy[at.b * to.dyBatch + at.d * to.dyChannel + at.t * to.dyTime]);
  g[i] = v.silu ? dy * siluGradFor<T>(convSum(v, v.sequences.at(at.b, at.t), at.b, at.d, at.t)) : dy;
}

template <class T>
__global__ void __launch_bounds__(256) causalConv1dElementsBwdKernel(const Conv<T> v, const ConvGradients<T> to,
    const float* __restrict__ g, bool channelFastest) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.batch * v.channels * v.length) return;
  const ConvElement at(i, v.channels, v.length, channelFastest);
  const ConvSpan span = v.sequences.at(at.b, at.t);
  const int64_t step = channelFastest ? v.channels : 1, slot = at.t - (span.end - v.width + 1);
  float gradient = to.finalStates && slot >= 0 ? toFloat(to.finalStates[(span.sequence * v.channels + at.d) * (v.width - 1) + slot]) : 0.f;
  for (int k = 0; k < v.width && at.t + k < span.end; k++)
    gradient = fmaf(v.weight.template at<T>(at.d * v.width + v.width - 1 - k), g[i + k * step], gradient);
  to.dx[at.b * to.dxBatch + at.d * to.dxChannel + at.t * to.dxTime] = fromFloat<T>(gradient);
}

// A block a tap of a channel; tap W is the bias.
template <class T>
__global__ void __launch_bounds__(256) causalConv1dElementsWeightKernel(const Conv<T> v, const ConvGradients<T> to,
    const float* __restrict__ g, bool channelFastest) {
  __shared__ float scratch[32];
  const int64_t d = blockIdx.x / (v.width + 1), j = blockIdx.x - d * (v.width + 1), steps = v.batch * v.length;
  if (j < v.width ? !to.weightSums : !to.biasSums) return;
  float total = 0.f;
  for (int64_t i = threadIdx.x; i < steps; i += blockDim.x) {
    const int64_t b = i / v.length, t = i - b * v.length;
    const float gradient = g[channelFastest ? i * v.channels + d : (b * v.channels + d) * v.length + t];
    total = j < v.width ? fmaf(gradient, convInput(v, v.sequences.at(b, t), b, d, t - v.width + 1 + j), total) : total + gradient;
  }
  total = blockReduce(total, scratch);
  if (threadIdx.x == 0) (j < v.width ? to.weightSums[d * v.width + j] : to.biasSums[d]) = total;
}

// d initialStates[k] = sum_{j <= k} w_j g_{begin+k-j}, and what a short sequence passes on to its final states; an element a thread.
template <class T>
__global__ void __launch_bounds__(256) causalConv1dInitialStatesBwdKernel(const Conv<T> v, const ConvGradients<T> to) {
  const int64_t history = v.width - 1, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.sequences.count * v.channels * history) return;
  const int64_t row = i / history, k = i - row * history, s = row / v.channels, d = row - s * v.channels;
  const ConvSpan span = v.sequences.of(s);
  const int64_t b = v.sequences.starts ? 0 : s, length = span.end - span.begin;
  float total = to.finalStates && k >= length ? toFloat(to.finalStates[row * history + k - length]) : 0.f;
  for (int64_t j = 0; j <= k; j++) {
    if (k - j >= length) continue;
    const int64_t t = span.begin + k - j;
    float g = toFloat(to.dy[b * to.dyBatch + d * to.dyChannel + t * to.dyTime]);
    if (v.silu) g *= siluGradFor<T>(convSum(v, span, b, d, t));
    total = fmaf(v.weight.template at<T>(d * v.width + j), g, total);
  }
  to.initialStates[i] = fromFloat<T>(total);
}

}  // namespace mm::cuda
