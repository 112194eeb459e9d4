// The general chunk engine, forwards: what the chunks add to the states, and the outputs.
#pragma once
#include "cuda/chunk_scan_general.cuh"

namespace mm::cuda::chunk_scan {

// What a chunk adds to the state behind it, or (blockIdx.y + direction = 1) to the gradient of the state before it. A block makes
// one tile, laid out as the states of the call.
template <class T, int R, Decay KIND>
__global__ void __launch_bounds__(kGeneralThreads)
chunkStatesKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task, int direction) {
  constexpr int C = 16 * R;
  float* keys = reinterpret_cast<float*>(chunkScanShared);
  float *values = keys + kTile<R>, *factor = values + kTile<R>, *more = factor + C;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(more);
  const bool backwards = blockIdx.y + direction;
  const int rowTiles = ((s.byValue ? s.p : s.n) + C - 1) / C, colTiles = ((s.byValue ? s.n : s.p) + C - 1) / C;
  const int tile = blockIdx.x % (rowTiles * colTiles);
  const int64_t index = blockIdx.x / (rowTiles * colTiles), slot = index / s.heads;
  const int head = int(index % s.heads), row0 = tile / colTiles * C, col0 = tile % colTiles * C;
  const int n0 = s.byValue ? col0 : row0, p0 = s.byValue ? row0 : col0;
  const Place at = locate(s, slot, C);
  if (!at.valid) return;

  if (KIND == Decay::Head) {
    loadSteps<R>(s, at, head, st);
    __syncthreads();
    if (threadIdx.x < C) factor[threadIdx.x] = backwards ? st.up[threadIdx.x] : st.down[threadIdx.x] * st.w[threadIdx.x];
    __syncthreads();
  }
  const float* rowScale = KIND == Decay::Head ? factor : nullptr;
  if (backwards) {
    loadTile<R, T>(keys, s.q, at, head / s.share(), n0, s.n, s.scale, rowScale);
    loadUpstream<R, T>(values, s, g, at, head, p0);
  } else {
    loadTile<R, T>(keys, s.k, at, head / s.share(), n0, s.n, 1.f, rowScale);
    loadTile<R, T>(values, s.v, at, head, p0, s.p);
  }
  float* subTotal = more + kTile<R>;
  if (KIND == Decay::Channel) {
    loadDecay<R, T>(more, subTotal, s, at, head, n0);
    if (backwards) forUp<R, From::Chunk>(more, subTotal, [&](int i, float f) { keys[i] *= f; });
    else forDown<R, From::Chunk>(more, subTotal, [&](int i, float f) { keys[i] *= f; });
  }
  __syncthreads();
  const auto total = [&](int n) {
    if (KIND == Decay::Head) return st.up[C - 1];
    float all = 1.f;
    for (int r = 0; r < R; r++) all *= subTotal[r * C + n - n0];
    return all;
  };

  float acc[R][R] = {};
  if (s.byValue) productColsCols<Part::All, R>(acc, values, keys, at.length);
  else productColsCols<Part::All, R>(acc, keys, values, at.length);
  const int64_t pair = int64_t(at.sequence) * s.heads + head;
  float* to = task.single ? (backwards ? g.dInitial : s.final) + pair * s.stateSize()
                          : (backwards ? task.dstates : task.states) + index * s.stateSize();
  const float* from = nullptr;
  if (task.single && (backwards ? g.hasFinal : s.hasInitial)) from = (backwards ? g.dFinal : s.initial) + pair * s.stateSize();
  forTile<R>([&](int i, int j, int r, int c) {
    const int row = row0 + r, col = col0 + c, rows = s.byValue ? s.p : s.n, cols = s.byValue ? s.n : s.p;
    if (row >= rows || col >= cols) return;
    const int64_t offset = int64_t(row) * cols + col;
    to[offset] = from ? fmaf(total(s.byValue ? col : row), from[offset], acc[i][j]) : acc[i][j];
  });
  if (task.single || backwards || p0) return;
  if (KIND == Decay::Head) {
    if (n0 == 0 && threadIdx.x == 0) task.totals[index] = st.up[C - 1];
  } else if (threadIdx.x < C && n0 + int(threadIdx.x) < s.n) task.totals[index * s.n + n0 + threadIdx.x] = total(n0 + threadIdx.x);
}
template <int R, Decay KIND>
constexpr size_t statesShared() {
  return sizeof(float) * (2 * kTile<R> + 16 * R + (KIND == Decay::Head ? 6 * 16 * R : kTile<R> + R * 16 * R));
}

// The outputs of a chunk for some slices of value channels.
template <class T, int R, Decay KIND>
__global__ void __launch_bounds__(kGeneralThreads)
chunkOutputKernel(const __grid_constant__ Scan s, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *a = att + kTile<R>, *b = a + kTile<R>, *more = b + kTile<R>;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(more);
  const int width = task.valueTiles * C, blocks = (s.p + width - 1) / width, first = int(blockIdx.x % blocks) * width;
  const int64_t index = blockIdx.x / blocks, slot = index / s.heads;
  const int head = int(index % s.heads);
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;
  if (KIND == Decay::Head) loadSteps<R>(s, at, head, st);
  scores<T, R, KIND>(att, a, b, more, s, at, head, &st);
  const float* state = stateBefore(s, task, at, head, index);
  for (int p0 = first; p0 < min(s.p, first + width); p0 += C) {
    float acc[R][R] = {};
    if (state)
      for (int n0 = 0; n0 < s.n; n0 += C) {
        __syncthreads();
        loadTile<R, T>(a, s.q, at, head / s.share(), n0, s.n, s.scale, KIND == Decay::Head ? st.up : nullptr);
        loadState<R>(b, s, state, n0, p0);
        if (KIND == Decay::Channel) {
          loadDecay<R, T>(more, more + kTile<R>, s, at, head, n0);
          forUp<R, From::Chunk>(more, more + kTile<R>, [&](int i, float f) { a[i] *= f; });
        }
        __syncthreads();
        productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
      }
    __syncthreads();
    loadTile<R, T>(b, s.v, at, head, p0, s.p, 1.f, KIND == Decay::Head ? st.w : nullptr);
    __syncthreads();
    productRowsCols<Part::Lower, R>(acc, att, b, at.length);

    forTile<R>([&](int i, int j, int row, int col) {
      const int p = p0 + col;
      if (row >= at.length || p >= s.p) return;
      const int64_t t = at.start + row;
      float o = acc[i][j];
      if (s.normalized) o *= s.inverse[(at.batch * s.length + t) * s.heads + head];
      if (s.skip.given)
        o = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head),
                 toFloat(s.v.at<const T>(at.batch, t, head)[p]), o);
      if (s.z.given) o *= silu(toFloat(s.z.at<const T>(at.batch, t, head)[p]));
      s.y.at<T>(at.batch, t, head)[p] = fromFloat<T>(o);
    });
  }
}
template <int R, Decay KIND>
constexpr size_t outputShared() {
  return sizeof(float) * (3 * kTile<R> + (KIND == Decay::Head ? 6 * 16 * R : kTile<R> + R * 16 * R));
}

}  // namespace mm::cuda::chunk_scan
