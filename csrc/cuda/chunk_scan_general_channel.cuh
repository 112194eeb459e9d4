// The gradients of the general chunk engine with a decay per channel.
#pragma once
#include "cuda/chunk_scan_general.cuh"

namespace mm::cuda::chunk_scan {

// Decay per channel: dv of a chunk for some slices of value channels.
template <class T, int R>
__global__ void __launch_bounds__(kGeneralThreads)
channelValuesKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *a = att + kTile<R>, *b = a + kTile<R>, *eg = b + kTile<R>, *total = eg + kTile<R>;
  const int width = task.valueTiles * C, blocks = (s.p + width - 1) / width, first = int(blockIdx.x % blocks) * width;
  const int64_t index = blockIdx.x / blocks, slot = index / s.heads;
  const int head = int(index % s.heads);
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;
  scores<T, R, Decay::Channel>(att, a, b, eg, s, at, head, nullptr);
  const float* dstate = gradientBehind(s, g, task, at, head, index);
  for (int p0 = first; p0 < min(s.p, first + width); p0 += C) {
    float acc[R][R] = {};
    if (dstate)
      for (int n0 = 0; n0 < s.n; n0 += C) {
        __syncthreads();
        loadTile<R, T>(a, s.k, at, head / s.share(), n0, s.n);
        loadState<R>(b, s, dstate, n0, p0);
        loadDecay<R, T>(eg, total, s, at, head, n0);
        forDown<R, From::Chunk>(eg, total, [&](int i, float f) { a[i] *= f; });
        __syncthreads();
        productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
      }
    __syncthreads();
    loadUpstream<R, T>(a, s, g, at, head, p0);
    __syncthreads();
    productColsCols<Part::Upper, R>(acc, att, a, at.length);
    forTile<R>([&](int i, int j, int row, int col) {
      if (row < at.length && p0 + col < s.p) g.dv.at<T>(at.batch, at.start + row, head)[p0 + col] = fromFloat<T>(acc[i][j]);
    });
  }
}

// Decay per channel: dq, dk and the gradient of the log-decays of a chunk for one slice of key channels. R is kept whole; its
// diagonal, which no decay touches, is added last.
template <class T, int R>
__global__ void __launch_bounds__(kGeneralThreads)
channelKeysKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R, P = kPitch<R>;
  float* r = reinterpret_cast<float*>(chunkScanShared);
  float *q = r + kTile<R>, *k = q + kTile<R>, *eg = k + kTile<R>, *x = eg + kTile<R>, *total = x + kTile<R>;
  const int tiles = (s.n + C - 1) / C, n0 = int(blockIdx.x % tiles) * C;
  const int64_t index = blockIdx.x / tiles, slot = index / s.heads;
  const int head = int(index % s.heads), group = head / s.share(), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;

  float dq[R][R] = {}, dk[R][R] = {}, through = 0.f;  // parts through the states; <S_in, dS_out> of channel threadIdx.x
  {
    const float *state = stateBefore(s, task, at, head, index), *dstate = gradientBehind(s, g, task, at, head, index);
    float *a = q, *b = k;
    float acc[R][R] = {};
    for (int p0 = 0; p0 < s.p; p0 += C) {
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      if (state) loadState<R>(eg, s, state, n0, p0);
      if (dstate) loadState<R>(x, s, dstate, n0, p0);
      __syncthreads();
      productRowsRows<Part::Triangle, R>(acc, a, b, s.p - p0);
      if (state) productRowsRows<Part::All, R>(dq, a, eg, s.p - p0);
      if (dstate) productRowsRows<Part::All, R>(dk, b, x, s.p - p0);
      if (state && dstate && threadIdx.x < C)
        for (int p = 0; p < C; p++) through = fmaf(eg[threadIdx.x * P + p], x[threadIdx.x * P + p], through);
    }
    forTile<R>([&](int i, int j, int t, int u) {
      if (j <= i) r[t * P + u] = u <= t ? acc[i][j] : 0.f;
    });
  }
  __syncthreads();
  loadTile<R, T>(q, s.q, at, group, n0, s.n, s.scale);
  loadTile<R, T>(k, s.k, at, group, n0, s.n);
  loadDecay<R, T>(eg, total, s, at, head, n0);

  float crossing[R][R], carried[R][R];
  forUp<R, From::Chunk>(eg, total, [&](int i, float f) { x[i] = f; });
  __syncthreads();
  multiplyTile<R>(dq, x);
  __syncthreads();
  forDown<R, From::Chunk>(eg, total, [&](int i, float f) { x[i] = f; });
  __syncthreads();
  multiplyTile<R>(dk, x);
  forTile<R>([&](int i, int j, int t, int n) { crossing[i][j] = q[t * P + n] * dq[i][j], carried[i][j] = k[t * P + n] * dk[i][j]; });
  const auto addToQ = [&](int i, int j, int t, int n, float d) { dq[i][j] += d, crossing[i][j] = fmaf(q[t * P + n], d, crossing[i][j]); };
  const auto addToK = [&](int i, int j, int t, int n, float d) { dk[i][j] += d, crossing[i][j] = fmaf(-k[t * P + n], d, crossing[i][j]); };
  const ChannelThread<R> me;
  __syncthreads();

  if (me.works()) {  // within sub-chunks: keys before, decayed up to step t
    float walk[kSub];
#pragma unroll
    for (int t = 0; t < kSub; t++) {
      const int row = me.sub * kSub + t;
      const float e = eg[row * P + me.n];
      float sum = 0.f;
#pragma unroll
      for (int u = 0; u < t; u++) {
        walk[u] *= e;
        sum = fmaf(r[row * P + me.sub * kSub + u], walk[u], sum);
      }
      x[row * P + me.n] = sum;
      walk[t] = k[row * P + me.n];
    }
  }
  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { addToQ(i, j, t, n, x[t * P + n]); });
  __syncthreads();
  if (me.works()) {  // queries behind, decayed back to step u
    float walk[kSub];
#pragma unroll
    for (int u = kSub - 1; u >= 0; u--) {
      const int row = me.sub * kSub + u;
      const float e = u + 1 < kSub ? eg[(row + 1) * P + me.n] : 1.f;
      float sum = 0.f;
#pragma unroll
      for (int t = u + 1; t < kSub; t++) {
        walk[t] *= e;
        sum = fmaf(r[(me.sub * kSub + t) * P + row], walk[t], sum);
      }
      x[row * P + me.n] = sum;
      walk[u] = q[row * P + me.n];
    }
  }
  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { addToK(i, j, t, n, x[t * P + n]); });

  // between sub-chunks
  float passed[R][R];
#pragma unroll
  for (int m = 0; m < R; m++)
#pragma unroll
    for (int j = 0; j < R; j++) passed[m][j] = total[m * C + tx + 16 * j];
  {
    __syncthreads();
    forDown<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = k[i] * f; });
    __syncthreads();
    float acc[R][R] = {};
#pragma unroll
    for (int c = 0; c < R - 1; c++)
#pragma unroll 4
      for (int u = 16 * c; u < 16 * c + 16; u++) {
        float key[R];
#pragma unroll
        for (int j = 0; j < R; j++) key[j] = x[u * P + tx + 16 * j];
#pragma unroll
        for (int i = c + 1; i < R; i++) {
          const float f = r[(ty + 16 * i) * P + u];
#pragma unroll
          for (int j = 0; j < R; j++) acc[i][j] = fmaf(f, key[j], acc[i][j]), key[j] *= passed[i][j];
        }
      }
    __syncthreads();
    forUp<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = f; });
    __syncthreads();
    forTile<R>([&](int i, int j, int t, int n) { addToQ(i, j, t, n, acc[i][j] * x[t * P + n]); });
  }
  {
    __syncthreads();
    forUp<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = q[i] * f; });
    __syncthreads();
    float acc[R][R] = {};
#pragma unroll
    for (int c = 1; c < R; c++)
#pragma unroll 4
      for (int t = 16 * c; t < 16 * c + 16; t++) {
        float query[R];
#pragma unroll
        for (int j = 0; j < R; j++) query[j] = x[t * P + tx + 16 * j];
#pragma unroll
        for (int i = c - 1; i >= 0; i--) {
          const float f = r[t * P + ty + 16 * i];
#pragma unroll
          for (int j = 0; j < R; j++) acc[i][j] = fmaf(f, query[j], acc[i][j]), query[j] *= passed[i][j];
        }
      }
    __syncthreads();
    forDown<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = f; });
    __syncthreads();
    forTile<R>([&](int i, int j, int t, int n) { addToK(i, j, t, n, acc[i][j] * x[t * P + n]); });
  }

  forTile<R>([&](int i, int j, int t, int n) {
    const float d = r[t * P + t];
    dq[i][j] = fmaf(d, k[t * P + n], dq[i][j]), dk[i][j] = fmaf(d, q[t * P + n], dk[i][j]);
  });
  if (g.dq.given) storeKeys<T, R>(dq, s, g, at, head, n0, g.dq, g.dqHeads, s.scale);
  if (g.dk.given) storeKeys<T, R>(dk, s, g, at, head, n0, g.dk, g.dkHeads, 1.f);
  if (!g.dgate.given) return;

  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { x[t * P + n] = crossing[i][j], eg[t * P + n] = carried[i][j]; });
  __syncthreads();
  const int n = threadIdx.x;
  if (n >= C || n0 + n >= s.n) return;
  float run = 0.f;
  for (int t = at.length - 1; t >= 0; t--) x[t * P + n] = run += x[t * P + n];
  run = through;
  for (int m = 0; m < R; m++) run *= total[m * C + n];
  for (int t = 0; t < at.length; t++) {
    const float d = x[t * P + n] + run;
    if (g.dgate.dtype == MM_F32) g.dgate.at<float>(at.batch, at.start + t, head)[n0 + n] = d;
    else g.dgate.at<T>(at.batch, at.start + t, head)[n0 + n] = fromFloat<T>(d);
    run += eg[t * P + n];
  }
}
template <int R>
constexpr size_t channelShared(int tiles) {
  return sizeof(float) * (tiles * kTile<R> + R * 16 * R);
}

}  // namespace mm::cuda::chunk_scan
