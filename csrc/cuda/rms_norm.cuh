// rmsNorm: y = x r w with r = 1 / sqrt(mean(x^2) + eps); dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r.
//
// x (rows, n) dense. A row of whole 16-byte vectors lives in the registers of a team, a part of a warp or a block whose lanes have two
// vectors: one read and one write of device memory. R rows at once keep enough bytes under way. At 8192 x 2048 and 103424 x 2048 this
// reaches 91 and 99 % of an H100's copy rate; a warp a row, with eight vectors a lane, 82 and 97, as its few blocks come in less than
// three waves. (Barriers named at run time, as TeamSums has them, take all 16 of a block, of which few then fit: 69 to 86 %.)
// The backward's blocks stay for many rows, of which the next one is under way; their lanes keep the weight and its gradient of
// the same columns, and several teams share a block, so that there are few partial rows: 94 % instead of 91 %. (Rows that pass through
// shared memory, three of them under way: no faster at 103424 rows, 40.1 us instead of 38.7 at 8192.) Other rows, and other addresses,
// go element by element in two passes.
#pragma once
#include "cuda/common/norm.cuh"

namespace mm::cuda {

template <class T, int K, int R>
__global__ void __launch_bounds__(512, kWholeRowBlocks<K>) rmsNormKernel(const T* __restrict__ x, Weights w, T* __restrict__ y,
    int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  __shared__ float scratch[BlockSums<R>::kFloats];
  const Team team(lanes);
  BlockSums<R> add(scratch);
  const float share = 1.f / float(n);
  awaitEarlierKernels();
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K];
    float scale[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      loadRow(x + row * n, row < rows ? n : 0, team, px[r]);
    }
    squares(px, scale);
    add(scale, team);
#pragma unroll
    for (int r = 0; r < R; r++) scale[r] = rsqrtf(fmaf(scale[r], share, eps));
    eachVector<V, K>(n, team, [&](int k, int j) {
      float weight[V];
      w.load<V>(j, weight);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int64_t row = first + team.index + r * team.all();
        if (row >= rows) continue;
        float v[V];
        unpack(px[r][k], v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= scale[r] * weight[i];
        storeVector(y + row * n + j, v);
      }
    });
  }
}

// dx may be null. partial (blocks, n) of dw, or null; dynamic shared memory: K V floats a thread where a block has several teams.
template <class T, int K, int R>
__global__ void __launch_bounds__(kNormBackwardThreads<K>, kNormBackwardBlocks<K>) rmsNormBackwardKernel(const T* __restrict__ x, Weights w,
    const T* __restrict__ dy, T* __restrict__ dx, float* __restrict__ partial, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  extern __shared__ float4 dynamicShared[];
  __shared__ float scratch[TeamSums<2 * R, (K > 1)>::kFloats];
  const Team team(lanes);
  awaitEarlierKernels();
  TeamSums<2 * R, (K > 1)> add(scratch, team);
  const int64_t apart = team.all(), step = apart * R;
  // Teams of one number have neighbouring rows, so that the last rows are spread over all blocks.
  int64_t first = blockIdx.x;
  const int64_t ahead = int64_t(team.index) * gridDim.x;
  Words<T> nextX[R][K], nextD[R][K];
  const auto fetch = [&](int64_t from) {
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t at = from + r * apart;
      loadRow(x + at * n, at < rows ? n : 0, team, nextX[r]);
      loadRow(dy + at * n, at < rows ? n : 0, team, nextD[r]);
    }
  };
  fetch(first + ahead);
  float weight[1][K][V], dw[K][V] = {};
  loadParameters<T>({w}, n, team, weight);
  const float share = 1.f / float(n);
  for (; first < rows; first += step) {
    const int64_t row = first + ahead;
    Words<T> px[R][K], pd[R][K];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int k = 0; k < K; k++) px[r][k] = nextX[r][k], pd[r][k] = nextD[r][k];
    if (kNormAhead<K>) fetch(row + step);
    float sum[2 * R] = {};
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int k = 0; k < K; k++) {
        float vx[V], vd[V], part[2] = {};
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          part[0] = fmaf(vx[i], vx[i], part[0]);
          part[1] = fmaf(vx[i] * vd[i], weight[0][k][i], part[1]);
        }
        sum[2 * r] += part[0];
        sum[2 * r + 1] += part[1];
      }
    keepPacked(px);
    keepPacked(pd);
    add(sum, team);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t at = row + r * apart;
      if (at >= rows) continue;
      const float scale = rsqrtf(fmaf(sum[2 * r], share, eps)), mean = sum[2 * r + 1] * scale * scale * scale * share;
      eachVector<V, K>(n, team, [&](int k, int j) {
        float vx[V], vd[V], v[V];
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float d = vd[i] * scale;
          v[i] = fmaf(weight[0][k][i], d, -(vx[i] * mean));
          dw[k][i] = fmaf(d, vx[i], dw[k][i]);
        }
        if (dx) storeVector(dx + at * n + j, v);
      });
    }
    if (!kNormAhead<K>) fetch(row + step);
  }
  if (partial) storeColumnSums<V>(dw, n, team, reinterpret_cast<float*>(dynamicShared), partial + int64_t(blockIdx.x) * n);
}

template <class T>
__global__ void __launch_bounds__(256) rmsNormLooseKernel(const T* __restrict__ x, Weights w, T* __restrict__ y, int64_t rows, int64_t n,
    float eps, int lanes) {
  __shared__ float scratch[32];
  const Team team(lanes);
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    const T* px = x + row * n;
    const float scale = looseInverseRms(px, n, end, eps, team, scratch);
    for (int64_t j = team.lane; j < end; j += lanes) y[row * n + j] = fromFloat<T>(toFloat(px[j]) * scale * w.at(j));
  }
}

// partial (teams, n): a row for each team, in which every lane adds up its own columns.
template <class T>
__global__ void __launch_bounds__(256) rmsNormBackwardLooseKernel(const T* __restrict__ x, Weights w, const T* __restrict__ dy,
    T* __restrict__ dx, float* __restrict__ partial, int64_t rows, int64_t n, float eps, int lanes) {
  __shared__ float scratch[64];
  const Team team(lanes);
  float* dw = partial ? partial + (int64_t(blockIdx.x) * team.count + team.index) * n : nullptr;
  if (dw)
    for (int64_t j = team.lane; j < n; j += lanes) dw[j] = 0.f;
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    const T *px = x + row * n, *pd = dy + row * n;
    float sum[2] = {};
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float v = toFloat(px[j]);
      sum[0] = fmaf(v, v, sum[0]);
      sum[1] = fmaf(v * toFloat(pd[j]), w.at(j), sum[1]);
    }
    teamReduce(sum, lanes, scratch);
    const float scale = rsqrtf(sum[0] / float(n) + eps), mean = sum[1] * scale * scale / float(n);
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float vx = toFloat(px[j]), vd = toFloat(pd[j]);
      if (dx) dx[row * n + j] = fromFloat<T>(scale * (w.at(j) * vd - vx * mean));
      if (dw) dw[j] = fmaf(vd * vx, scale, dw[j]);
    }
  }
}

}  // namespace mm::cuda
