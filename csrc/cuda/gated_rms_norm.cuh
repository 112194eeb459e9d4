// gatedRmsNorm: y = x r w s(g) with r = 1 / sqrt(mean(x^2) + eps), s(g) = g sigmoid(g). With e = dy s(g):
// dx = r (w e - x r^2 mean(w e x)), dg = dy x r w s'(g), dw = sum over rows of e x r.
//
// x, gate and dy (rows, n) have a dense last axis and begin their rows anywhere (a nest of the axes before), results are dense.
// Tiling as rms_norm.cuh. The backward computes s(g) and s'(g) once, times dy, before the reduction; the operands that this frees
// take the next row. Rows of a part of a warp: two blocks of 256 a multiprocessor, as with the registers of three the next row's loads
// come late (16 x 8192 rows of 128: 90 % of an H100's copy rate instead of 85, 16 x 103424: 96 instead of 92).
#pragma once
#include "cuda/activation.cuh"
#include "cuda/common/norm.cuh"

namespace mm::cuda {

template <class T, int K, int R>
__global__ void __launch_bounds__(kNormForwardThreads<K>, kNormForwardBlocks<K>) gatedRmsNormKernel(const T* __restrict__ x,
    const T* __restrict__ gate, Weights w, T* __restrict__ y, const __grid_constant__ Nest<2> nest, int64_t rows, int n, float eps,
    int lanes) {
  constexpr int V = kVector<T>;
  constexpr bool early = kNormAhead<K>;  // the weight stays in registers
  __shared__ float scratch[TeamSums<R, (K > 1)>::kFloats];
  const Team team(lanes);
  awaitEarlierKernels();
  TeamSums<R, (K > 1)> add(scratch, team);
  const int64_t apart = team.all();
  const float share = 1.f / float(n);
  float weight[1][early ? K : 1][V];
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += apart * R) {
    Words<T> px[R][K], pg[R][K];
    float scale[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int64_t row = first + team.index + r * apart;
      int64_t at[2];
      rowOffsets(nest, nest.ndim, row, at);
      loadRow(x + at[0], row < rows ? n : 0, team, px[r]);
      loadRow(gate + at[1], row < rows ? n : 0, team, pg[r]);
    }
    if (early) loadParameters<T>({w}, n, team, weight);
    squares(px, scale);
    add(scale, team);
#pragma unroll
    for (int r = 0; r < R; r++) scale[r] = rsqrtf(fmaf(scale[r], share, eps));
    eachVector<V, K>(n, team, [&](int k, int j) {
      if (!early) w.load<V>(j, weight[0][0]);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int64_t row = first + team.index + r * apart;
        if (row >= rows) continue;
        float v[V], g[V];
        unpack(px[r][k], v);
        unpack(pg[r][k], g);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= scale[r] * weight[0][early ? k : 0][i] * g[i] * sigmoidOf<T>(g[i]);
        storeVector(y + row * n + j, v);
      }
    });
  }
}

// dx and dg may be null. partial (blocks, n) of dw, or null; dynamic shared memory: K V floats a thread where a block has
// several teams. Of the gate, s(g) dy and s'(g) dy are kept.
template <class T, int K>
__global__ void __launch_bounds__(kNormBackwardThreads<K>, K == 1 ? 2 : 1) gatedRmsNormBackwardKernel(const T* __restrict__ x,
    const T* __restrict__ gate, Weights w, const T* __restrict__ dy, T* __restrict__ dx, T* __restrict__ dg, float* __restrict__ partial,
    const __grid_constant__ Nest<3> nest, int64_t rows, int n, float eps, int lanes) {
  constexpr int V = kVector<T>;
  extern __shared__ float4 dynamicShared[];
  __shared__ float scratch[TeamSums<2, (K > 1)>::kFloats];
  const Team team(lanes);
  awaitEarlierKernels();
  TeamSums<2, (K > 1)> add(scratch, team);
  const int64_t step = team.all();
  int64_t first = int64_t(blockIdx.x) * team.count;
  Words<T> nextX[K], nextG[K], nextD[K];
  const auto fetch = [&](int64_t from) {
    int64_t at[3];
    rowOffsets(nest, nest.ndim, from, at);
    loadRow(x + at[0], from < rows ? n : 0, team, nextX);
    loadRow(gate + at[1], from < rows ? n : 0, team, nextG);
    loadRow(dy + at[2], from < rows ? n : 0, team, nextD);
  };
  fetch(first + team.index);
  float weight[1][K][V], dw[K][V] = {};
  loadParameters<T>({w}, n, team, weight);
  const float share = 1.f / float(n);
  for (; first < rows; first += step) {
    const int64_t row = first + team.index;
    Words<T> px[1][K];
    float e[K][V], slope[K][V], sum[2] = {};
#pragma unroll
    for (int k = 0; k < K; k++) {
      float vx[V], vg[V], vd[V], part[2] = {};
      px[0][k] = nextX[k];
      unpack(nextX[k], vx);
      unpack(nextG[k], vg);
      unpack(nextD[k], vd);
#pragma unroll
      for (int i = 0; i < V; i++) {
        float s, rest;
        sigmoids<T>(vg[i], s, rest);
        const float silu = vg[i] * s;
        e[k][i] = vd[i] * silu;
        slope[k][i] = vd[i] * fmaf(silu, rest, s);
        part[0] = fmaf(vx[i], vx[i], part[0]);
        part[1] = fmaf(vx[i] * e[k][i], weight[0][k][i], part[1]);
      }
      sum[0] += part[0];
      sum[1] += part[1];
    }
    keepPacked(px);
    if (kNormAhead<K>) fetch(row + step);
    add(sum, team);
    if (row < rows) {
      const float scale = rsqrtf(fmaf(sum[0], share, eps)), mean = sum[1] * scale * scale * scale * share;
      eachVector<V, K>(n, team, [&](int k, int j) {
        float vx[V], toX[V], toG[V];
        unpack(px[0][k], vx);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float scaled = weight[0][k][i] * scale;
          dw[k][i] = fmaf(e[k][i], vx[i] * scale, dw[k][i]);
          toX[i] = fmaf(scaled, e[k][i], -(vx[i] * mean));
          toG[i] = slope[k][i] * vx[i] * scaled;
        }
        if (dx) storeVector(dx + row * n + j, toX);
        if (dg) storeVector(dg + row * n + j, toG);
      });
    }
    if (!kNormAhead<K>) fetch(row + step);
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
