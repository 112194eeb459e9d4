// rmsNorm: y = x r w with r = 1 / sqrt(mean(x^2) + eps); dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r.
//
// x (rows, n) dense. A row of whole 16-byte vectors lives in the registers of a team, up to a warp while a lane needs few
// vectors: one read and one write of device memory. R rows at once keep enough bytes under way where a lane has few vectors.
// The backward's blocks stay for many rows, and their lanes keep the weight and its gradient of the same columns in registers;
// so they hold fewer vectors a lane than the forward. Other rows, and other addresses, go element by element in two passes.
#pragma once
#include "cuda/common/norm.cuh"

namespace mm::cuda {

template <class T, int K, int R>
__global__ void __launch_bounds__(512) rmsNormKernel(const T* __restrict__ x, Weights w, T* __restrict__ y, int64_t rows, int n, float eps,
    int lanes) {
  constexpr int V = kVector<T>;
  __shared__ float scratch[R * 32];
  const Team team(lanes);
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K];
    float scale[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      loadRow(x + row * n, row < rows ? n : 0, team, px[r]);
    }
    inverseRms(px, n, eps, team, scratch, scale);
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
__global__ void __launch_bounds__(512) rmsNormBackwardKernel(const T* __restrict__ x, Weights w, const T* __restrict__ dy,
    T* __restrict__ dx, float* __restrict__ partial, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  extern __shared__ float4 dynamicShared[];
  __shared__ float scratch[2 * R * 32];
  const Team team(lanes);
  float weight[K][V] = {}, dw[K][V] = {};
  eachVector<V, K>(n, team, [&](int k, int j) { w.load<V>(j, weight[k]); });
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K], pd[R][K];
    float sum[2 * R] = {};
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      loadRow(x + row * n, row < rows ? n : 0, team, px[r]);
      loadRow(dy + row * n, row < rows ? n : 0, team, pd[r]);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int k = 0; k < K; k++) {
        float vx[V], vd[V];
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          sum[2 * r] = fmaf(vx[i], vx[i], sum[2 * r]);
          sum[2 * r + 1] = fmaf(vx[i] * vd[i], weight[k][i], sum[2 * r + 1]);
        }
      }
    keepPacked(px);
    keepPacked(pd);
    teamReduce(sum, lanes, scratch);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      if (row >= rows) continue;
      const float scale = rsqrtf(sum[2 * r] / float(n) + eps), mean = sum[2 * r + 1] * scale * scale / float(n);
      eachVector<V, K>(n, team, [&](int k, int j) {
        float vx[V], vd[V], v[V];
        unpack(px[r][k], vx);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          v[i] = scale * (weight[k][i] * vd[i] - vx[i] * mean);
          dw[k][i] = fmaf(vd[i] * vx[i], scale, dw[k][i]);
        }
        if (dx) storeVector(dx + row * n + j, v);
      });
    }
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
