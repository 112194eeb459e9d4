// gatedRmsNorm: y = x r w s(g) with r = 1 / sqrt(mean(x^2) + eps), s(g) = g sigmoid(g). With e = dy s(g):
// dx = r (w e - x r^2 mean(w e x)), dg = dy x r w s'(g), dw = sum over rows of e x r.
//
// x, gate and dy (rows, n) have a dense last axis and begin their rows anywhere (a nest of the axes before), results are dense.
// Tiling as rms_norm.cuh: a team holds a row in registers; with more operands, fewer rows at once. s(g) is computed twice in
// the backward, which costs less than the registers to keep it.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/common/norm.cuh"

namespace mm::cuda {

template <class T, int K, int R>
__global__ void __launch_bounds__(512) gatedRmsNormKernel(const T* __restrict__ x, const T* __restrict__ gate, Weights w, T* __restrict__ y,
    const __grid_constant__ Nest<2> nest, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  __shared__ float scratch[R * 32];
  const Team team(lanes);
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K], pg[R][K];
    float scale[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      int64_t at[2];
      rowOffsets(nest, nest.ndim, row, at);
      loadRow(x + at[0], row < rows ? n : 0, team, px[r]);
      loadRow(gate + at[1], row < rows ? n : 0, team, pg[r]);
    }
    inverseRms(px, n, eps, team, scratch, scale);
    eachVector<V, K>(n, team, [&](int k, int j) {
      float weight[V];
      w.load<V>(j, weight);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int64_t row = first + team.index + r * team.all();
        if (row >= rows) continue;
        float v[V], g[V];
        unpack(px[r][k], v);
        unpack(pg[r][k], g);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= scale[r] * weight[i] * g[i] * sigmoidOf<T>(g[i]);
        storeVector(y + row * n + j, v);
      }
    });
  }
}

// dx and dg may be null. partial (blocks, n) of dw, or null; dynamic shared memory: K V floats a thread where a block has
// several teams.
template <class T, int K, int R>
__global__ void __launch_bounds__(K == 1 ? 256 : 512, K == 1 ? 3 : 1) gatedRmsNormBackwardKernel(const T* __restrict__ x,
    const T* __restrict__ gate, Weights w, const T* __restrict__ dy, T* __restrict__ dx, T* __restrict__ dg, float* __restrict__ partial,
    const __grid_constant__ Nest<3> nest, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  extern __shared__ float4 dynamicShared[];
  __shared__ float scratch[2 * R * 32];
  const Team team(lanes);
  float weight[K][V] = {}, dw[K][V] = {};
  eachVector<V, K>(n, team, [&](int k, int j) { w.load<V>(j, weight[k]); });
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all() * R) {
    Words<T> px[R][K], pg[R][K], pd[R][K];
    float sum[2 * R] = {};
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      int64_t at[3];
      rowOffsets(nest, nest.ndim, row, at);
      loadRow(x + at[0], row < rows ? n : 0, team, px[r]);
      loadRow(gate + at[1], row < rows ? n : 0, team, pg[r]);
      loadRow(dy + at[2], row < rows ? n : 0, team, pd[r]);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int k = 0; k < K; k++) {
        float vx[V], vg[V], vd[V];
        unpack(px[r][k], vx);
        unpack(pg[r][k], vg);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float e = vd[i] * vg[i] * sigmoidOf<T>(vg[i]);
          sum[2 * r] = fmaf(vx[i], vx[i], sum[2 * r]);
          sum[2 * r + 1] = fmaf(vx[i] * e, weight[k][i], sum[2 * r + 1]);
        }
      }
    keepPacked(px);
    keepPacked(pg);
    keepPacked(pd);
    teamReduce(sum, lanes, scratch);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * team.all();
      if (row >= rows) continue;
      const float scale = rsqrtf(sum[2 * r] / float(n) + eps), mean = sum[2 * r + 1] * scale * scale / float(n);
      eachVector<V, K>(n, team, [&](int k, int j) {
        float vx[V], vg[V], vd[V];
        unpack(px[r][k], vx);
        unpack(pg[r][k], vg);
        unpack(pd[r][k], vd);
#pragma unroll
        for (int i = 0; i < V; i++) {
          float s, rest;
          sigmoids<T>(vg[i], s, rest);
          const float e = vd[i] * vg[i] * s, normed = vx[i] * scale;
          dw[k][i] = fmaf(e, normed, dw[k][i]);
          vx[i] = scale * (weight[k][i] * e - vx[i] * mean);
          vg[i] = vd[i] * normed * weight[k][i] * s * fmaf(vg[i], rest, 1.f);
        }
        if (dx) storeVector(dx + row * n + j, vx);
        if (dg) storeVector(dg + row * n + j, vg);
      });
    }
  }
  if (partial) storeColumnSums<V>(dw, n, team, reinterpret_cast<float*>(dynamicShared), partial + int64_t(blockIdx.x) * n);
}

template <class T>
__global__ void __launch_bounds__(256) gatedRmsNormLooseKernel(const T* __restrict__ x, const T* __restrict__ gate, Weights w,
    T* __restrict__ y, const __grid_constant__ Nest<2> nest, int64_t rows, int64_t n, float eps, int lanes) {
  __shared__ float scratch[32];
  const Team team(lanes);
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    int64_t at[2];
    rowOffsets(nest, nest.ndim, row, at);
    const T *px = x + at[0], *pg = gate + at[1];
    const float scale = looseInverseRms(px, n, end, eps, team, scratch);
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float g = toFloat(pg[j]);
      y[row * n + j] = fromFloat<T>(toFloat(px[j]) * scale * w.at(j) * g * sigmoidOf<T>(g));
    }
  }
}

// partial (teams, n): a row for each team, in which every lane adds up its own columns.
template <class T>
__global__ void __launch_bounds__(256) gatedRmsNormBackwardLooseKernel(const T* __restrict__ x, const T* __restrict__ gate, Weights w,
    const T* __restrict__ dy, T* __restrict__ dx, T* __restrict__ dg, float* __restrict__ partial, const __grid_constant__ Nest<3> nest,
    int64_t rows, int64_t n, float eps, int lanes) {
  __shared__ float scratch[64];
  const Team team(lanes);
  float* dw = partial ? partial + (int64_t(blockIdx.x) * team.count + team.index) * n : nullptr;
  if (dw)
    for (int64_t j = team.lane; j < n; j += lanes) dw[j] = 0.f;
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index, end = row < rows ? n : 0;
    int64_t at[3];
    rowOffsets(nest, nest.ndim, row, at);
    const T *px = x + at[0], *pg = gate + at[1], *pd = dy + at[2];
    float sum[2] = {};
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float v = toFloat(px[j]), g = toFloat(pg[j]);
      sum[0] = fmaf(v, v, sum[0]);
      sum[1] = fmaf(v * toFloat(pd[j]) * g * sigmoidOf<T>(g), w.at(j), sum[1]);
    }
    teamReduce(sum, lanes, scratch);
    const float scale = rsqrtf(sum[0] / float(n) + eps), mean = sum[1] * scale * scale / float(n);
    for (int64_t j = team.lane; j < end; j += lanes) {
      const float vx = toFloat(px[j]), vg = toFloat(pg[j]), vd = toFloat(pd[j]), weight = w.at(j);
      float s, rest;
      sigmoids<T>(vg, s, rest);
      const float e = vd * vg * s, normed = vx * scale;
      if (dx) dx[row * n + j] = fromFloat<T>(scale * (weight * e - vx * mean));
      if (dg) dg[row * n + j] = fromFloat<T>(vd * normed * weight * s * fmaf(vg, rest, 1.f));
      if (dw) dw[j] = fmaf(e, normed, dw[j]);
    }
  }
}

}  // namespace mm::cuda
