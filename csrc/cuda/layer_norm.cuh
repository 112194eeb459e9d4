// layerNorm: y = h w + b with h = (x - mean) r, r = 1 / sqrt(var + eps); the variance is summed from centred values.
// With g = w dy: dx = r (g - mean(g) - h mean(g h)), dw = sum over rows of dy h, db = sum of dy.
//
// x (rows, n) dense. Tiling as rms_norm.cuh: a team holds a row in registers, in the backward for many rows in turn. At 8192 x 2048 and
// 103424 x 2048 forward and backward reach 86, 99 and 84, 94 % of an H100's copy rate (backward with one vector a lane and 1024 threads
// 84, 92; two rows at once 82).
#pragma once
#include "cuda/common/norm.cuh"

namespace mm::cuda {

template <class T, int K, int R>
__device__ __forceinline__ void plainSums(Words<T> (&px)[R][K], float (&sum)[R]) {
  laneSums(px, sum, [](float s, float v) { return s + v; });
}

template <class T, int K, int R>
__global__ void __launch_bounds__(512, kWholeRowBlocks<K>) layerNormKernel(const T* __restrict__ x, Weights w, Weights b,
    T* __restrict__ y, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  __shared__ float scratch[BlockSums<R>::kFloats];
  const Team team(lanes);
  BlockSums<R> add(scratch);
  const float share = 1.f / float(n);
  awaitEarlierKernels();
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K];
    float mean[R], scale[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      loadRow(x + row * n, row < rows ? n : 0, team, px[r]);
    }
    plainSums(px, mean);
    add(mean, team);
#pragma unroll
    for (int r = 0; r < R; r++) {
      mean[r] *= share;
      scale[r] = 0.f;
      eachVector<V, K>(n, team, [&](int k, int) {
        float v[V];
        unpack(px[r][k], v);
#pragma unroll
        for (int i = 0; i < V; i++) scale[r] = fmaf(v[i] - mean[r], v[i] - mean[r], scale[r]);
      });
    }
    keepPacked(px);
    add(scale, team);
#pragma unroll
    for (int r = 0; r < R; r++) scale[r] = rsqrtf(fmaf(scale[r], share, eps));
    eachVector<V, K>(n, team, [&](int k, int j) {
      float weight[V], bias[V];
      w.load<V>(j, weight);
      b.load<V>(j, bias, 0.f);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int64_t row = first + team.index + r * team.all();
        if (row >= rows) continue;
        float v[V];
        unpack(px[r][k], v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = fmaf((v[i] - mean[r]) * scale[r], weight[i], bias[i]);
        storeVector(y + row * n + j, v);
      }
    });
  }
}

// dx may be null. partial (blocks, parts n), null where parts is 0: dw if wantWeight, then db; dynamic shared memory: K V floats a
// thread where a block has several teams.
template <class T, int K, int R>
__global__ void __launch_bounds__(kNormBackwardThreads<K>, kNormBackwardBlocks<K>) layerNormBackwardKernel(const T* __restrict__ x,
    Weights w, const T* __restrict__ dy, T* __restrict__ dx, float* __restrict__ partial, bool wantWeight, bool wantBias, int64_t rows,
    int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  extern __shared__ float4 dynamicShared[];
  __shared__ float scratch[TeamSums<3 * R, (K > 1)>::kFloats];
  const Team team(lanes);
  awaitEarlierKernels();
  TeamSums<3 * R, (K > 1)> add(scratch, team);
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
  float weight[1][K][V], dw[K][V] = {}, db[K][V] = {};
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
    float mean[R], sum[3 * R] = {};
    plainSums(px, mean);
    add(mean, team);
#pragma unroll
    for (int r = 0; r < R; r++) {
      mean[r] *= share;
      eachVector<V, K>(n, team, [&](int k, int) {
        float vx[V], vd[V], part[3] = {};
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float centred = vx[i] - mean[r], g = vd[i] * weight[0][k][i];
          part[0] = fmaf(centred, centred, part[0]);
          part[1] += g;
          part[2] = fmaf(g, centred, part[2]);
        }
#pragma unroll
        for (int i = 0; i < 3; i++) sum[3 * r + i] += part[i];
      });
    }
    keepPacked(px);
    keepPacked(pd);
    add(sum, team);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t at = row + r * apart;
      if (at >= rows) continue;
      const float scale = rsqrtf(fmaf(sum[3 * r], share, eps)), meanG = scale * sum[3 * r + 1] * share,
          meanGh = scale * scale * sum[3 * r + 2] * share, shift = -mean[r] * scale;
      eachVector<V, K>(n, team, [&](int k, int j) {
        float vx[V], vd[V], v[V];
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float h = sizeof(T) == 2 ? fmaf(vx[i], scale, shift) : (vx[i] - mean[r]) * scale;
          v[i] = fmaf(vd[i] * weight[0][k][i], scale, -fmaf(h, meanGh, meanG));
          dw[k][i] = fmaf(vd[i], h, dw[k][i]);
          db[k][i] += vd[i];
        }
        if (dx) storeVector(dx + at * n + j, v);
      });
    }
    if (!kNormAhead<K>) fetch(row + step);
  }
  float* to = partial + int64_t(blockIdx.x) * (wantWeight + wantBias) * n;
  if (wantWeight) storeColumnSums<V>(dw, n, team, reinterpret_cast<float*>(dynamicShared), to);
  if (wantBias) storeColumnSums<V>(db, n, team, reinterpret_cast<float*>(dynamicShared), to + (wantWeight ? n : 0));
}

template <class T>
__device__ __forceinline__ void looseMoments(const T* x, int64_t n, int64_t end, float eps, const Team& team, float* scratch, float& mean,
    float& scale) {
  float sum[1] = {};
  for (int64_t j = team.lane; j < end; j += team.lanes) sum[0] += toFloat(x[j]);
  teamReduce(sum, team.lanes, scratch);
  mean = sum[0] / float(n);
  sum[0] = 0.f;
  for (int64_t j = team.lane; j < end; j += team.lanes) sum[0] = fmaf(toFloat(x[j]) - mean, toFloat(x[j]) - mean, sum[0]);
  teamReduce(sum, team.lanes, scratch);
  scale = rsqrtf(sum[0] / float(n) + eps);
}

template <class T>
__global__ void __launch_bounds__(256) layerNormLooseKernel(const T* __restrict__ x, Weights w, Weights b, T* __restrict__ y, int64_t rows,
    int64_t n, float eps, int lanes) {
  __shared__ float scratch[32];
  const Team team(lanes);
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    float mean, scale;
    looseMoments(x + row * n, n, end, eps, team, scratch, mean, scale);
    for (int64_t j = team.lane; j < end; j += lanes)
      y[row * n + j] = fromFloat<T>(fmaf((toFloat(x[row * n + j]) - mean) * scale, w.at(j), b.at(j, 0.f)));
  }
}

// partial (teams, parts n): a row for each team, in which every lane adds up its own columns.
template <class T>
__global__ void __launch_bounds__(256) layerNormBackwardLooseKernel(const T* __restrict__ x, Weights w, const T* __restrict__ dy,
    T* __restrict__ dx, float* __restrict__ partial, bool wantWeight, bool wantBias, int64_t rows, int64_t n, float eps, int lanes) {
  __shared__ float scratch[64];
  const Team team(lanes);
  float* dw = partial + (int64_t(blockIdx.x) * team.count + team.index) * (wantWeight + wantBias) * n;
  float* db = dw + (wantWeight ? n : 0);
  for (int64_t j = team.lane; j < n; j += lanes) {
    if (wantWeight) dw[j] = 0.f;
    if (wantBias) db[j] = 0.f;
  }
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    const T *px = x + row * n, *pd = dy + row * n;
    float mean, scale, sum[2] = {};
    looseMoments(px, n, end, eps, team, scratch, mean, scale);
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float g = toFloat(pd[j]) * w.at(j);
      sum[0] += g;
      sum[1] = fmaf(g, toFloat(px[j]) - mean, sum[1]);
    }
    teamReduce(sum, lanes, scratch);
    const float meanG = sum[0] / float(n), meanGh = sum[1] * scale / float(n);
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float vd = toFloat(pd[j]), h = (toFloat(px[j]) - mean) * scale;
      if (dx) dx[row * n + j] = fromFloat<T>(scale * (vd * w.at(j) - meanG - h * meanGh));
      if (wantWeight) dw[j] = fmaf(vd, h, dw[j]);
      if (wantBias) db[j] += vd;
    }
  }
}

}  // namespace mm::cuda
