// causalConv1dBackward: with g_t = dY_t act'(pre_t), dX_t = sum_j w_j g_{t+W-1-j}, dW_j = sum_t g_t x_{t-W+1+j}, db = sum_t g_t.
// Initial states get gradients like earlier inputs; the final states' gradients are added to the inputs that they are.
//
// x, dY are read once and dX written once; layouts as in causal_conv1d.cuh, chosen by x:
//   rows      a thread owns V channels and walks slices of the length, R rows of x and dY read ahead. g_t is computed once, feeds
//             the W gradients of the weights, which stay in registers through all slices of the thread, and the W pending sums
//             dX_{t-W+1} .. dX_t, of which the oldest is complete and written. The W-1 rows before a slice are computed again.
//   lines     lanes share a segment of a line, up to 8 warps its neighbours. The W-1 later g come from the next lane, those of
//             a segment's last lane are computed again.
//   elements  g goes through the workspace.
// The rate follows the bytes that the threads of a multiprocessor have in flight, as long as registers hold them. Of the rate of
// two tensors read and one written, in bf16 on an H100 at L = 103,424 and W = 4: rows, V x R in blocks, 4 x 4 in 4 (some spilled
// registers cost nothing) 94 %, 2 x 8 in 4 91 %, 2 x 4 in 6 89 %, 2 x 8 in 6 69 %, 4 x 2 in 4 86 %; half or a quarter of the slice
// for each thread loses 1 to 2 %. Lines, U in blocks: 4 in 3 92 %, 4 in 2 76 %, 2 in 4 85 %, 2 in 2 75 %, 1 61 %.
// dY of another layout than x is copied to x's layout first. Every block writes one partial row of weight gradients; the rows
// are added in order (rows.cuh).
#pragma once
#include "cuda/causal_conv1d.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda {

constexpr int kConvRowsBlocks = 4, kConvLinesBwdThreads = 256, kConvLinesBlocks = 3;  // blocks of a multiprocessor
constexpr int kConvBwdBytes = 8;   // V of rows
constexpr int kConvAhead = 4;      // R of vectors
constexpr int kConvBwdChunks = 4;  // U

template <class T>
struct ConvGradients {
  const T* dy;
  int64_t dyBatch, dyChannel, dyTime;
  const T* finalStates;  // gradient of the final states (S, D, W-1) or null
  T* dx;                 // where it is not wanted, rows and lines write to a scratch line
  int64_t dxBatch, dxChannel, dxTime;
  T* initialStates;              // null: not wanted
  float *weightSums, *biasSums;  // in the first partial row; null: not wanted
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

// Threads as (columns of V channels) x (slices); grid: column blocks x parts, columns fastest. Part p takes the slice groups
// p, p + parts, ... A thread with the rows [first, own) writes the gradients of [first - W + 1, own - W + 1), as far as these
// belong to the sequence, and of all rows up to its end where it has that. The initial states are for sequences that are not
// packed.
template <class T, int W, int V, int R, int BLOCKS, bool SILU>
__global__ void __launch_bounds__(kConvRowsThreads, BLOCKS) causalConv1dRowsBwdKernel(const Conv<T> v, const ConvGradients<T> to,
    unsigned columns, unsigned slicesEach, unsigned slices, int rowsEach, unsigned parts) {
  __shared__ float sums[(W + 1) * V * kConvRowsThreads];
  constexpr int H = W - 1;
  using Words = ConvWords<T, V>;
  awaitEarlierKernels();
  const unsigned part = blockIdx.x / columns, column = blockIdx.x - part * columns;
  const int64_t d = (int64_t(column) * blockDim.x + threadIdx.x) * V;
  float weights[W][V], bias[V], dWeights[W][V], dBias[V];
#pragma unroll
  for (int c = 0; c < V; c++) {
    dBias[c] = 0.f;
#pragma unroll
    for (int j = 0; j < W; j++) dWeights[j][c] = 0.f;
  }
  unsigned slice = slices;
  if (d < v.channels) {
    loadTaps<T, W, V>(v, d, weights, bias);
    slice = part * blockDim.y + threadIdx.y;
  }
  for (; slice < slices; slice += parts * blockDim.y) {
    const unsigned b = slice / slicesEach;
    int t = int(slice - b * slicesEach) * rowsEach;
    const int last = min(int(v.length) - t, rowsEach) + t;
    const T *x = v.x + b * v.xBatch + d, *dy = to.dy + b * to.dyBatch + d;
    T* dx = to.dx + b * to.dxBatch + d;
    while (t < last) {
      const ConvPiece piece(v, b, d, t, H);
      const int first = t, own = min(piece.end, last), before = max(first - H, piece.begin), start = min(before + H, own);
      // The next R rows of x and dY, the first ones behind the H rows from `before` on.
      Words nextX[R], nextDy[R], headX[H], headDy[H];
      const T *fromX = x + start * v.xTime, *fromDy = dy + start * to.dyTime;
      int left = own - start;
      const auto fetch = [&](int count) {
#pragma unroll
        for (int i = 0; i < R; i++, fromX += v.xTime, fromDy += to.dyTime)
          if (i < count) nextX[i].load(fromX), nextDy[i].load(fromDy);
      };
#pragma unroll
      for (int k = 0; k < H; k++)
        if (before + k < own) headX[k].load(x + (before + k) * v.xTime), headDy[k].load(dy + (before + k) * to.dyTime);
      fetch(left);
      float window[H][V], pending[H][V];  // pending[k]: gradient of row t - H + k so far
#pragma unroll
      for (int k = 0; k < H; k++)
#pragma unroll
        for (int c = 0; c < V; c++) pending[k][c] = 0.f;
      loadWindow<W, V>(v, piece, x, before, window);
      // One row on; ready: the gradient of the row H rows before it.
      const auto advance = [&](const Words& wordsX, const Words& wordsDy, bool counts, float(&ready)[V]) {
        float values[V], gradients[V];
        wordsX.unpack(values);
        wordsDy.unpack(gradients);
#pragma unroll
        for (int c = 0; c < V; c++) {
          const float value = values[c];
          float g = gradients[c];
          if (SILU) {
            float sum = bias[c];
#pragma unroll
            for (int j = 0; j < H; j++) sum = fmaf(weights[j][c], window[j][c], sum);
            g *= siluGradFor<T>(fmaf(weights[H][c], value, sum));
          }
          if (counts) {
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
      };
      const auto writeState = [&](int slot, const float(&gradient)[V]) {
        if (to.initialStates)
#pragma unroll
          for (int c = 0; c < V; c++) to.initialStates[piece.states + c * H + slot] = fromFloat<T>(gradient[c]);
      };
      float ready[V];
#pragma unroll
      for (int k = 0; k < H; k++)
        if (before + k < own) {
          const bool mine = before + k >= first;
          advance(headX[k], headDy[k], mine, ready);
          if (mine) writeState(before + k - piece.begin, ready);
        }
      T* target = dx + (start - H) * to.dxTime;
      for (; left >= R; left -= R) {
        Words rowsX[R], rowsDy[R];
#pragma unroll
        for (int i = 0; i < R; i++) rowsX[i] = nextX[i], rowsDy[i] = nextDy[i];
        fetch(left - R);
#pragma unroll
        for (int i = 0; i < R; i++, target += to.dxTime) {
          advance(rowsX[i], rowsDy[i], true, ready);
          Words::of(ready).store(target);
        }
      }
#pragma unroll
      for (int i = 0; i < R - 1; i++, target += to.dxTime) {
        if (i >= left) break;
        advance(nextX[i], nextDy[i], true, ready);
        Words::of(ready).store(target);
      }
      if (own == piece.end)
        // The last H rows, initial states among them where the sequence is short: no further outputs, but the final states.
#pragma unroll
        for (int k = 0; k < H; k++) {
          if (to.finalStates)
#pragma unroll
            for (int c = 0; c < V; c++) pending[k][c] += toFloat(to.finalStates[piece.states + c * H + k]);
          const int row = own - H + k;
          if (row < piece.begin) writeState(row - piece.begin + H, pending[k]);
          else Words::of(pending[k]).store(dx + row * to.dxTime);
        }
      t = own;
    }
  }
  if (!to.weightSums && !to.biasSums) return;
  const auto write = [&](int64_t channel, int j, float total) {
    if (j < W && to.weightSums) to.weightSums[part * to.sumsEach + channel * W + j] = total;
    if (j == W && to.biasSums) to.biasSums[part * to.sumsEach + channel] = total;
  };
  if (blockDim.y == 1) {
    if (d < v.channels)
#pragma unroll
      for (int c = 0; c < V; c++) {
#pragma unroll
        for (int j = 0; j < W; j++) write(d + c, j, dWeights[j][c]);
        write(d + c, W, dBias[c]);
      }
    return;
  }
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int c = 0; c < V; c++) {
#pragma unroll
    for (int j = 0; j < W; j++) sums[(c * (W + 1) + j) * kConvRowsThreads + thread] = dWeights[j][c];
    sums[(c * (W + 1) + W) * kConvRowsThreads + thread] = dBias[c];
  }
  __syncthreads();
  // Sum i of the block: tap i % (W + 1) of its channel i / (W + 1).
  for (int i = thread; i < int(blockDim.x) * V * (W + 1); i += kConvRowsThreads) {
    const int channel = i / (W + 1), j = i % (W + 1), lane = channel / V, c = channel % V;
    float total = 0.f;
    for (int k = 0; k < int(blockDim.y); k++) total += sums[(c * (W + 1) + j) * kConvRowsThreads + k * blockDim.x + lane];
    const int64_t at = int64_t(column) * blockDim.x * V + channel;
    if (at < v.channels) write(at, j, total);
  }
}

// Teams of 2^teamShift threads, whole warps where there is more than one of them, take `parts` runs of segments of each line: a
// segment each 2^shift lanes. Partial rows: one a batch and run. The first `early` blocks ask for their segments while the kernel before
// ends: four of them a multiprocessor take 1 to 2 % off L = 8192, D = 4096.
template <class T, int W, int U, int BLOCKS, bool SILU, bool WHOLE>
__global__ void __launch_bounds__(kConvLinesBwdThreads, BLOCKS) causalConv1dLinesBwdKernel(const Conv<T> v, const ConvGradients<T> to,
    unsigned parts, unsigned lines, int shift, int teamShift, unsigned early) {
  constexpr int V = kVector<T>, H = W - 1, E = kConvEdge<T, W>, kWarps = kConvLinesBwdThreads / 32;
  using Words = ConvWords<T, V>;
  __shared__ float sums[kWarps][W + 1];
  const int lanes = 1 << shift, lane = threadIdx.x & (lanes - 1), step = lanes * V, inTeam = threadIdx.x & ((1 << teamShift) - 1);
  const unsigned team = blockIdx.x * (kConvLinesBwdThreads >> teamShift) + (threadIdx.x >> teamShift), line = team / parts;
  const int part = int(team - line * parts), segment = (part << (teamShift - shift)) + (inTeam >> shift), first = segment * step * U;
  const int length = line < lines && first < v.length ? int(v.length) : 0;  // other lanes only shuffle
  const int t = first + lane * V, end = first + step * U;
  const unsigned b = length ? line / unsigned(v.channels) : 0, d = length ? line - b * unsigned(v.channels) : 0;
  const T *x = v.x + b * v.xBatch + d * v.xChannel, *dy = to.dy + b * to.dyBatch + d * to.dyChannel;
  T* dx = to.dx + b * to.dxBatch + d * to.dxChannel;
  if (blockIdx.x < early && threadIdx.x % 8 == 0)
#pragma unroll
    for (int u = 0; u < U; u++)
      if (t + u * step < length) prefetchLine(x + t + u * step), prefetchLine(dy + t + u * step);
  awaitEarlierKernels();
  Words wordsX[U], wordsDy[U], afterX, afterDy;
#pragma unroll
  for (int u = 0; u < U; u++) {
    loadChunk<WHOLE>(wordsX[u], x + t + u * step, length - t - u * step);
    loadChunk<WHOLE>(wordsDy[u], dy + t + u * step, length - t - u * step);
  }
  loadChunk<WHOLE>(afterX, x + end, length - end);
  loadChunk<WHOLE>(afterDy, dy + end, length - end);
  uint32_t before[E] = {};
  float weights[W] = {}, bias = 0.f, dWeights[W] = {}, dBias = 0.f;
  if (length) {
    loadEdge<W, WHOLE>(x, v.states ? v.states + int64_t(line) * H : nullptr, first, before);
#pragma unroll
    for (int j = 0; j < W; j++) weights[j] = v.weight.template at<T>(int64_t(d) * W + j);
    if (v.bias.data) bias = v.bias.template at<T>(d);
  }
  const auto through = [&](float g, const float* value) {  // g = dY act'(.), value: the W inputs
    if (!SILU) return g;
    float sum = bias;
#pragma unroll
    for (int j = 0; j < W; j++) sum = fmaf(weights[j], value[j], sum);
    return g * siluGradFor<T>(sum);
  };
  uint32_t edges[U][E];
#pragma unroll
  for (int u = 0; u < U; u++) turnEdge<T, W>(wordsX[u], lane, lanes, before, edges[u]);
  float carry[H];  // in the last lane: g of the H steps behind the chunk
  {
    uint32_t edge[E];  // `before` is the last lane's edge, but only in the first lane
#pragma unroll
    for (int i = 0; i < E; i++) edge[i] = __shfl_sync(0xffffffffu, wordsX[U - 1].w[Words::kWords - E + i], lanes - 1, lanes);
    float value[H + V], g[V];
    chunkInputs<W>(edge, afterX, value);
    afterDy.unpack(g);
#pragma unroll
    for (int k = 0; k < H; k++) carry[k] = end + k < length ? through(g[k], value + k) : 0.f;
  }
#pragma unroll
  for (int u = U - 1; u >= 0; u--) {
    const int left = length - t - u * step;
    float value[H + V], g[V + H], own[V];  // value, g: from steps t - H and t of the chunk
    chunkInputs<W>(edges[u], wordsX[u], value);
    wordsDy[u].unpack(own);
#pragma unroll
    for (int i = 0; i < V; i++) {
      g[i] = (WHOLE ? left > 0 : i < left) ? through(own[i], value + i) : 0.f;
#pragma unroll
      for (int j = 0; j < W; j++) dWeights[j] = fmaf(g[i], value[i + j], dWeights[j]);
      dBias += g[i];
    }
#pragma unroll
    for (int k = 0; k < H; k++) {
      const float turned = __shfl_sync(0xffffffffu, g[k], (lane + 1) & (lanes - 1), lanes);
      g[V + k] = lane == lanes - 1 ? carry[k] : turned;
      carry[k] = turned;
    }
    float gradient[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      gradient[i] = 0.f;
#pragma unroll
      for (int k = 0; k < W; k++) gradient[i] = fmaf(weights[H - k], g[i + k], gradient[i]);
    }
    if (to.finalStates && left < V + H)
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int slot = i - (left - H);
        if (slot >= 0 && slot < H) gradient[i] += toFloat(to.finalStates[int64_t(line) * H + slot]);
      }
    storeChunk<WHOLE>(dx + t + u * step, left, gradient);
    if (u == 0 && to.initialStates && t == 0 && length)
#pragma unroll
      for (int k = 0; k < H; k++) {
        float total = 0.f;
#pragma unroll
        for (int j = 0; j <= k; j++) total = fmaf(weights[j], g[k - j], total);
        to.initialStates[int64_t(line) * H + k] = fromFloat<T>(total);
      }
  }
  if (!to.weightSums && !to.biasSums) return;
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int j = 0; j < W; j++) dWeights[j] += __shfl_xor_sync(0xffffffffu, dWeights[j], offset);
    dBias += __shfl_xor_sync(0xffffffffu, dBias, offset);
  }
  if (teamShift > shift) {
    const int warp = threadIdx.x / 32;
    if (lane == 0) {
#pragma unroll
      for (int j = 0; j < W; j++) sums[warp][j] = dWeights[j];
      sums[warp][W] = dBias;
    }
    __syncthreads();
    if (inTeam == 0)
      for (int k = 1; k < 1 << (teamShift - 5); k++) {
#pragma unroll
        for (int j = 0; j < W; j++) dWeights[j] += sums[warp + k][j];
        dBias += sums[warp + k][W];
      }
  }
  if (!length || inTeam) return;
  const int64_t row = int64_t(b) * parts + part;
  if (to.weightSums)
#pragma unroll
    for (int j = 0; j < W; j++) to.weightSums[row * to.sumsEach + int64_t(d) * W + j] = dWeights[j];
  if (to.biasSums) to.biasSums[row * to.sumsEach + d] = dBias;
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
