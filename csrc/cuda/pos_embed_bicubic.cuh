// posEmbedBicubic: y[v, u] = sum over 4 x 4 taps of wv wu x[row, column], source position (v + 1/2) g / outH - 1/2, cubic
// convolution with A = -0.75, taps clamped to the grid. x (g, g, c), y (outH, outW, c). Positions and weights are computed in
// double, as on the CPU, a block a result cell and strip of channels.
//
// Backward is a gather as well: a block owns one cell of dX and a strip of channels and adds up the cells of dY that it was a tap
// of, rows then columns in order; they lie in a window of about 4 outH / g rows, of which it takes kWindow x kWindow at a time.
#pragma once
#include "cuda/kernel.cuh"

namespace mm::cuda {

constexpr int kTapThreads = 128, kWindow = 32;

struct Taps {
  int64_t index[4];
  float weight[4];

  __device__ __forceinline__ Taps(int64_t position, int64_t from, int64_t to) {
    const double source = (double(position) + 0.5) * double(from) / double(to) - 0.5;
    const double base = floor(source), t = source - base, A = -0.75;
    const auto near = [A](double d) { return ((A + 2) * d - (A + 3)) * d * d + 1; };
    const auto far = [A](double d) { return ((A * d - 5 * A) * d + 8 * A) * d - 4 * A; };
    const double w[4] = {far(t + 1), near(t), near(1 - t), far(2 - t)};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t at = int64_t(base) - 1 + i;
      index[i] = at < 0 ? 0 : at >= from ? from - 1 : at;
      weight[i] = float(w[i]);
    }
  }
  // The weight of one source position, which border positions hold several times.
  __device__ __forceinline__ float of(int64_t position) const {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += index[i] == position ? weight[i] : 0.f;
    return sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kTapThreads) posEmbedBicubicKernel(const T* __restrict__ x, T* __restrict__ y, int64_t side,
                                                                     int64_t outH, int64_t outW, int64_t channels) {
  __shared__ int64_t place[2][4];
  __shared__ float weight[2][4];
  const int64_t v = blockIdx.x / outW, u = blockIdx.x - v * outW;
  if (threadIdx.x < 2) {
    const Taps taps(threadIdx.x ? u : v, side, threadIdx.x ? outW : outH);
#pragma unroll
    for (int i = 0; i < 4; i++) place[threadIdx.x][i] = taps.index[i], weight[threadIdx.x][i] = taps.weight[i];
  }
  __syncthreads();
  for (int64_t j = int64_t(blockIdx.y) * kTapThreads + threadIdx.x; j < channels; j += int64_t(gridDim.y) * kTapThreads) {
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      float line = 0.f;
#pragma unroll
      for (int q = 0; q < 4; q++) line = fmaf(weight[1][q], toFloat(x[(place[0][p] * side + place[1][q]) * channels + j]), line);
      sum = fmaf(weight[0][p], line, sum);
    }
    y[(v * outW + u) * channels + j] = fromFloat<T>(sum);
  }
}

// The results [begin, end) that may have source position `at` among their taps: those with source in [at - 2, at + 2], one more
// on each side for rounding. Clamped taps need no more: results beyond the border have sources within one position of it.
__device__ __forceinline__ void tapWindow(int64_t at, int64_t from, int64_t to, int64_t* begin, int64_t* end) {
  const double scale = double(to) / double(from);
  const int64_t low = int64_t(floor((double(at) - 1.5) * scale - 0.5)) - 1, high = int64_t(ceil((double(at) + 2.5) * scale - 0.5)) + 2;
  *begin = low < 0 ? 0 : low;
  *end = high > to ? to : high;
}

template <class T>
__global__ void __launch_bounds__(kTapThreads) posEmbedBicubicBackwardKernel(const T* __restrict__ dy, float* __restrict__ dx, int64_t side,
                                                                             int64_t outH, int64_t outW, int64_t channels) {
  __shared__ float rowWeight[kWindow], colWeight[kWindow];
  const int64_t row = blockIdx.x / side, col = blockIdx.x - row * side;
  int64_t v0, v1, u0, u1;
  tapWindow(row, side, outH, &v0, &v1);
  tapWindow(col, side, outW, &u0, &u1);
  for (int64_t strip = int64_t(blockIdx.y) * kTapThreads; strip < channels; strip += int64_t(gridDim.y) * kTapThreads) {
    const int64_t j = strip + threadIdx.x;
    float sum = 0.f;
    for (int64_t v = v0; v < v1; v += kWindow)
      for (int64_t u = u0; u < u1; u += kWindow) {
        __syncthreads();
        if (threadIdx.x < kWindow) rowWeight[threadIdx.x] = v + threadIdx.x < v1 ? Taps(v + threadIdx.x, side, outH).of(row) : 0.f;
        else if (threadIdx.x < 2 * kWindow) {
          const int64_t at = u + threadIdx.x - kWindow;
          colWeight[threadIdx.x - kWindow] = at < u1 ? Taps(at, side, outW).of(col) : 0.f;
        }
        __syncthreads();
        if (j >= channels) continue;
        const int height = v1 - v < kWindow ? int(v1 - v) : kWindow, width = u1 - u < kWindow ? int(u1 - u) : kWindow;
        for (int p = 0; p < height; p++) {
          if (rowWeight[p] == 0.f) continue;
          float line = 0.f;
          for (int q = 0; q < width; q++)
            if (colWeight[q] != 0.f) line = fmaf(colWeight[q], toFloat(dy[((v + p) * outW + u + q) * channels + j]), line);
          sum = fmaf(rowWeight[p], line, sum);
        }
      }
    if (j < channels) dx[(row * side + col) * channels + j] = sum;
  }
}

}  // namespace mm::cuda
