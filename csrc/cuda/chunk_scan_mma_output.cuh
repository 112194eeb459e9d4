// The outputs of a segment, or the gradient of its gate.
#pragma once
#include "cuda/chunk_scan_mma_walk.cuh"

namespace mm::cuda::chunk_scan {

template <int NT, int PT, Decay KIND>
struct OutputTiles {
  static constexpr int threads = 2 * PT, warps = PT / 16;
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, square = kChunk * kChunk * 2;
  // q, k, v, the decay and by channel att, twice; else one att behind them
  static constexpr int k = keys, v = 2 * keys, decay = v + values, loadedAtt = decay + kStepBytes;
  static constexpr int stage = KIND == Decay::Channel ? loadedAtt + square : loadedAtt;
  static constexpr int madeAtt = 2 * stage, bytes = KIND == Decay::Channel ? madeAtt : madeAtt + square;
  // the warps' parts of the triangle
  static constexpr int rowParts = warps < 4 ? warps : 4, colParts = warps / rowParts;
  static constexpr int rows = kChunk / rowParts, cols = kChunk / colParts;
};

// Walks a segment and writes its outputs, and at the end of the sequence its final state; or (GATE) dz = dy y' silu'(z) with y' the
// output before the gate.
template <class T, int NT, int PT, Decay KIND, bool GATE>
__global__ void __launch_bounds__(2 * PT)
mmaOutputKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task) {
  using Tiles = OutputTiles<NT, PT, KIND>;
  constexpr int K = kChunk / 16, THREADS = Tiles::threads;
  const int virtualHeads = task.virtualHeads(s), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = blockIdx.x, slot = index / virtualHeads;
  const int virtualHead = int(index % virtualHeads), head = virtualHead / task.slices, p0 = virtualHead % task.slices * PT;
  const Place at = locate(s, slot, task.segment * kChunk);
  if (!at.valid) return;
  const int64_t chunk0 = slotsOf(s, at.sequence, kChunk).first + at.local * task.segment;
  const int chunks = (at.length + kChunk - 1) / kChunk, group = head / s.share();
  const uint32_t shared = sharedAddress(chunkScanShared);

  const auto load = [&](int i) {
    const int rows = min(kChunk, at.length - i * kChunk);
    const int64_t t = at.start + int64_t(i) * kChunk;
    const uint32_t stage = shared + i % 2 * Tiles::stage;
    loadTileAsync<THREADS, kChunk, NT / 8>(stage, s.q.at<const T>(at.batch, t, group), s.q.time, rows, s.n);
    loadTileAsync<THREADS, kChunk, NT / 8>(stage + Tiles::k, s.k.at<const T>(at.batch, t, group), s.k.time, rows, s.n);
    loadTileAsync<THREADS, kChunk, PT / 8>(stage + Tiles::v, s.v.at<const T>(at.batch, t, head) + p0, s.v.time, rows, s.p - p0);
    loadDecayAsync<THREADS, NT, KIND>(stage + Tiles::decay, s, task, chunk0 + i, head);
    if (KIND == Decay::Channel) {
      const T* att = static_cast<const T*>(task.attention) + ((chunk0 + i) * s.heads + head) * (kChunk * kChunk);
      loadTileAsync<THREADS, kChunk, 8>(stage + Tiles::loadedAtt, att, kChunk, kChunk, kChunk);
    }
    commitAsync();
  };
  if (chunks) load(0);

  const int row0 = warp * 16, col = p0 + row0 + lane % 4 * 2;  // value channels of this warp; the first of this lane's outputs
  const int64_t pair = int64_t(at.sequence) * s.heads + head;
  float state[NT / 8][4] = {};
  const bool wantsFinal = !GATE && at.last && s.final;
  bool zero = at.first && !s.hasInitial;
  if (!zero && task.segmentStates) readTiled<NT>(state, task.segmentStates + index * (PT * NT), row0);
  else if (!zero) readState<NT>(state, s, s.initial + pair * s.stateSize(), p0 + row0, s.p);
  float skip[2][2] = {};
  if (s.skip.given)
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int p = col + 8 * n + i;
        if (p < s.p) skip[n][i] = element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head);
      }

  for (int i = 0; i < chunks; i++) {
    waitAsync<0>();
    __syncthreads();
    if (i + 1 < chunks) load(i + 1);
    unsigned char* tiles = chunkScanShared + i % 2 * Tiles::stage;
    const uint32_t queries = shared + i % 2 * Tiles::stage, keys = queries + Tiles::k, values = queries + Tiles::v;
    const uint32_t attention = KIND == Decay::Channel ? queries + Tiles::loadedAtt : shared + Tiles::madeAtt;
    const float* steps = reinterpret_cast<const float*>(tiles + Tiles::decay);
    const int rows = min(kChunk, at.length - i * kChunk);
    const int64_t t0 = at.start + int64_t(i) * kChunk;

    if (KIND == Decay::Head) {  // the triangle
      constexpr int M = Tiles::rows / 16, N = Tiles::cols / 8;
      const int row = warp % Tiles::rowParts * Tiles::rows, c0 = warp / Tiles::rowParts * Tiles::cols;
      if (c0 < row + Tiles::rows) {
        float acc[M][N][4] = {};
        warpProduct<T, M, N, NT / 8, false, NT / 8, false>(acc, queries, row, keys, c0, 0, NT);
        forFragments<M, N>(row, c0, [&](int m, int n, int half, int t, int u) {
          float x[2];
#pragma unroll
          for (int j = 0; j < 2; j++)
            x[j] = u + j <= t ? acc[m][n][2 * half + j] * (decayBetween(steps, t, u + j) * steps[W * kChunk + u + j] * s.scale) : 0.f;
          *pairAt<8>(chunkScanShared + Tiles::madeAtt, t, u) = pack2<T>(x[0], x[1]);
        });
      }
    }
    float acc[K][2][4] = {};
    if (!zero) {  // q S: the state's tiles are fragments of it
#pragma unroll
      for (int k = 0; k < NT / 16; k++) {
        uint32_t b[2][2];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int j = 0; j < 2; j++) b[n][j] = pack2<T>(state[2 * k + j][2 * n], state[2 * k + j][2 * n + 1]);
#pragma unroll
        for (int m = 0; m < K; m++) {
          uint32_t a[4];
          loadA<NT / 8, false>(a, queries, 16 * m, 16 * k);
          mma16816<T>(acc[m][0], a, b[0]);
          mma16816<T>(acc[m][1], a, b[1]);
        }
      }
      if (KIND == Decay::Head)
        forFragments<K, 2>(0, 0, [&](int m, int n, int half, int t, int) {
          const float up = steps[UP * kChunk + t] * s.scale;
          acc[m][n][2 * half] *= up, acc[m][n][2 * half + 1] *= up;
        });
    }
    if (KIND == Decay::Head) __syncthreads();
    uint32_t x[K][4];
    loadValues<PT>(x, values, row0);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const uint32_t b0[2] = {x[k][0], x[k][2]}, b1[2] = {x[k][1], x[k][3]};
#pragma unroll
      for (int m = k; m < K; m++) {
        uint32_t a[4];
        loadA<8, false>(a, attention, 16 * m, 16 * k);
        mma16816<T>(acc[m][0], a, b0);
        mma16816<T>(acc[m][1], a, b1);
      }
    }

    forFragments<K, 2>(0, 0, [&](int m, int n, int half, int t, int) {
      const int p = col + 8 * n;
      if (t >= rows || p >= s.p) return;
      float o[2] = {acc[m][n][2 * half], acc[m][n][2 * half + 1]};
      if (s.normalized) {
        const float inverse = s.inverse[(at.batch * s.length + t0 + t) * s.heads + head];
        o[0] *= inverse, o[1] *= inverse;
      }
      if (s.skip.given) {
        const float2 v = unpack2<T>(*pairAt<PT / 8>(tiles + Tiles::v, t, p - p0));
        o[0] = fmaf(skip[n][0], v.x, o[0]), o[1] = fmaf(skip[n][1], v.y, o[1]);
      }
      if (s.z.given) {
        const float2 z = unpack2<T>(*reinterpret_cast<const uint32_t*>(s.z.at<const T>(at.batch, t0 + t, head) + p));
        if (GATE) {
          const float2 dy = unpack2<T>(*reinterpret_cast<const uint32_t*>(g.dy.at<const T>(at.batch, t0 + t, head) + p));
          o[0] *= dy.x * siluSlope(z.x), o[1] *= dy.y * siluSlope(z.y);
        } else o[0] *= silu(z.x), o[1] *= silu(z.y);
      }
      const Operand& result = GATE ? g.dz : s.y;
      *reinterpret_cast<uint32_t*>(result.at<T>(at.batch, t0 + t, head) + p) = pack2<T>(o[0], o[1]);
    });
    if (i + 1 < chunks || wantsFinal)
      advanceState<T, NT, KIND>(state, steps, x, keys, [&](int t) { return steps[DOWN * kChunk + t] * steps[W * kChunk + t]; });
    zero = false;
  }
  if (wantsFinal) writeState<NT>(state, s, s.final + pair * s.stateSize(), p0 + row0, s.p);
}

}  // namespace mm::cuda::chunk_scan
