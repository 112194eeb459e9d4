// The gradients of the general chunk engine with a decay per head.
#pragma once
#include "cuda/chunk_scan_general.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda::chunk_scan {

// All gradients of one chunk and head but those of the initial states, with a decay per head.
template <class T, int R>
__global__ void __launch_bounds__(kGeneralThreads, 2)
chunkGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *r = att + kTile<R>, *a = r + kTile<R>, *b = a + kTile<R>;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(b + kTile<R>);
  float *crossing = b + kTile<R> + 6 * C, *carried = crossing + C, *direct = carried + C, *column = direct + C, *parts = column + C;
  const int64_t index = blockIdx.x, slot = index / s.heads;
  const int head = int(index % s.heads), group = head / s.share(), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const Place at = locate(s, slot, C);
  const int skipWidth = s.skip.wide ? s.p : 1;
  if (!at.valid || !at.length) {
    if (g.wantsSkip)
      for (int p = threadIdx.x; p < skipWidth; p += kGeneralThreads) g.skipParts[index * skipWidth + p] = 0.f;
    if (threadIdx.x == 0 && g.wantsRate) g.rateParts[index] = 0.f;
    if (threadIdx.x == 0 && g.wantsBias) g.biasParts[index] = 0.f;
    return;
  }
  const float *state = stateBefore(s, task, at, head, index), *dstate = gradientBehind(s, g, task, at, head, index);
  const bool decay = g.wantsDecay();
  const int64_t firstStep = (at.batch * s.length + at.start) * s.heads + head;
  loadSteps<R>(s, at, head, st);
  if (threadIdx.x < C) carried[threadIdx.x] = 0.f;
  scores<T, R, Decay::Head>(att, a, b, nullptr, s, at, head, &st);

  {  // R, and the sums over rows and columns of what passes through the decay mask
    float acc[R][R] = {}, columns[R] = {};
    for (int p0 = 0; p0 < s.p; p0 += C) {
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      __syncthreads();
      productRowsRows<Part::Triangle, R>(acc, a, b, s.p - p0);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
      const int t = ty + 16 * i;
      const float dden = g.dden && t < at.length ? g.dden[firstStep + int64_t(t) * s.heads] : 0.f;
      float row = 0.f;
#pragma unroll
      for (int j = 0; j <= i; j++) {
        const int u = tx + 16 * j;
        acc[i][j] += dden;
        const float e = acc[i][j] * att[t * kPitch<R> + u];  // att is 0 above the diagonal
        r[t * kPitch<R> + u] = u <= t ? acc[i][j] * decayBetween(st, t, u) * st.w[u] : 0.f;
        if (u < t) row = fmaf(st.w[u], e, row), columns[j] += e;
        if (u == t) direct[t] = e;
      }
      row = sumRow(row);
      if (tx == 0) crossing[t] = row;
    }
    sumColumns<R>(columns, parts, column);
    if (threadIdx.x < C) crossing[threadIdx.x] -= st.w[threadIdx.x] * column[threadIdx.x], direct[threadIdx.x] += column[threadIdx.x];
  }

  const bool carries = decay && dstate;
  float skipSum = 0.f;
  if (g.dv.given || g.wantsSkip || g.dz.given || carries)
    for (int p0 = 0; p0 < s.p; p0 += C) {
      float acc[R][R] = {};  // gradient of w v
      if (dstate) {
        for (int n0 = 0; n0 < s.n; n0 += C) {
          __syncthreads();
          loadTile<R, T>(a, s.k, at, group, n0, s.n);
          loadState<R>(b, s, dstate, n0, p0);
          __syncthreads();
          productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
        }
        scaleRows<R>(acc, st.down);
      }
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      __syncthreads();
      if (carries)
#pragma unroll
        for (int i = 0; i < R; i++) {
          const int t = ty + 16 * i;
          float row = 0.f;
#pragma unroll
          for (int j = 0; j < R; j++) row = fmaf(b[t * kPitch<R> + tx + 16 * j], acc[i][j], row);
          row = sumRow(row);
          if (tx == 0) carried[t] += row;
        }
      if (g.dv.given) {
        productColsCols<Part::Upper, R>(acc, att, a, at.length);
        forTile<R>([&](int i, int j, int t, int col) {
          const int p = p0 + col;
          if (t >= at.length || p >= s.p) return;
          float x = acc[i][j] * st.w[t];
          if (s.skip.given)
            x = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head), a[t * kPitch<R> + col], x);
          g.dv.at<T>(at.batch, at.start + t, head)[p] = fromFloat<T>(x);
        });
      }
      if (g.wantsSkip) {
        float columns[R] = {};
        forTile<R>([&](int, int j, int t, int col) { columns[j] = fmaf(a[t * kPitch<R> + col], b[t * kPitch<R> + col], columns[j]); });
        if (s.skip.wide) {
          sumColumns<R>(columns, parts, column);
          if (threadIdx.x < C && p0 + int(threadIdx.x) < s.p) g.skipParts[index * s.p + p0 + threadIdx.x] = column[threadIdx.x];
        } else {
#pragma unroll
          for (int j = 0; j < R; j++) skipSum += columns[j];
        }
      }
      if (g.dz.given) {
        float o[R][R] = {};  // y before the gate
        if (state)
          for (int n0 = 0; n0 < s.n; n0 += C) {
            __syncthreads();
            loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale, st.up);
            loadState<R>(b, s, state, n0, p0);
            __syncthreads();
            productRowsCols<Part::All, R>(o, a, b, s.n - n0);
          }
        __syncthreads();
        loadTile<R, T>(b, s.v, at, head, p0, s.p, 1.f, st.w);
        __syncthreads();
        productRowsCols<Part::Lower, R>(o, att, b, at.length);
        forTile<R>([&](int i, int j, int row, int col) {
          const int p = p0 + col;
          if (row >= at.length || p >= s.p) return;
          const int64_t t = at.start + row;
          float x = o[i][j];
          if (s.skip.given)
            x = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head),
                     toFloat(s.v.at<const T>(at.batch, t, head)[p]), x);
          const float dy = g.dy.given ? toFloat(g.dy.at<const T>(at.batch, t, head)[p]) : 0.f;
          g.dz.at<T>(at.batch, t, head)[p] = fromFloat<T>(dy * x * siluSlope(toFloat(s.z.at<const T>(at.batch, t, head)[p])));
        });
      }
    }
  if (g.wantsSkip && !s.skip.wide) {
    __syncthreads();
    skipSum = blockReduce(skipSum, parts);
    if (threadIdx.x == 0) g.skipParts[index] = skipSum;
  }

  for (int n0 = 0; n0 < s.n; n0 += C) {
    if (g.dq.given || (decay && state)) {
      float acc[R][R] = {};
      if (state) {
        for (int p0 = 0; p0 < s.p; p0 += C) {
          __syncthreads();
          loadUpstream<R, T>(a, s, g, at, head, p0);
          loadState<R>(b, s, state, n0, p0);
          __syncthreads();
          productRowsRows<Part::All, R>(acc, a, b, s.p - p0);
        }
        scaleRows<R>(acc, st.up);
      }
      __syncthreads();
      loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
      loadTile<R, T>(b, s.k, at, group, n0, s.n);
      __syncthreads();
      if (decay && state)
#pragma unroll
        for (int i = 0; i < R; i++) {
          const int t = ty + 16 * i;
          float row = 0.f;
#pragma unroll
          for (int j = 0; j < R; j++) row = fmaf(a[t * kPitch<R> + tx + 16 * j], acc[i][j], row);
          row = sumRow(row);
          if (tx == 0) crossing[t] += row;
        }
      if (g.dq.given) {
        productRowsCols<Part::Lower, R>(acc, r, b, at.length);
        if (g.before)
          forTile<R>([&](int i, int j, int t, int col) {
            if (t < at.length && n0 + col < s.n)
              acc[i][j] = fmaf(g.dden[firstStep + int64_t(t) * s.heads], g.before[index * s.n + n0 + col], acc[i][j]);
          });
        storeKeys<T, R>(acc, s, g, at, head, n0, g.dq, g.dqHeads, s.scale);
      }
    }
    if (g.dk.given) {
      float acc[R][R] = {};
      if (dstate) {
        for (int p0 = 0; p0 < s.p; p0 += C) {
          __syncthreads();
          loadTile<R, T>(a, s.v, at, head, p0, s.p, 1.f, st.w);
          loadState<R>(b, s, dstate, n0, p0);
          __syncthreads();
          productRowsRows<Part::All, R>(acc, a, b, s.p - p0);
        }
        scaleRows<R>(acc, st.down);
      }
      __syncthreads();
      loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
      __syncthreads();
      productColsCols<Part::Upper, R>(acc, r, a, at.length);
      if (g.behind)
        forTile<R>([&](int i, int j, int, int col) {
          if (n0 + col < s.n) acc[i][j] += g.behind[index * s.n + n0 + col];
        });
      storeKeys<T, R>(acc, s, g, at, head, n0, g.dk, g.dkHeads, 1.f);
    }
  }
  if (!decay) return;

  float through = 0.f;
  if (state && dstate)
    for (int64_t i = threadIdx.x; i < s.stateSize(); i += kGeneralThreads) through = fmaf(state[i], dstate[i], through);
  __syncthreads();
  through = blockReduce(through, parts) * st.up[C - 1];
  if (threadIdx.x >= 32) return;
  constexpr int E = R / 2;
  LaneSteps<E> lane;
  float c[E], k[E], d[E];
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int t = threadIdx.x * E + e;
    lane.raw[e] = st.raw[t], lane.w[e] = st.w[t];
    c[e] = crossing[t], k[e] = carried[t], d[e] = direct[t] + carried[t];
  }
  decayGradient<E>(s, g, at, head, index, lane, c, k, d, through);
}
template <int R>
constexpr size_t gradientShared() {
  return sizeof(float) * (4 * kTile<R> + (6 + 4 + kGeneralWarps) * 16 * R);
}

}  // namespace mm::cuda::chunk_scan
