// The tensor-core chunk engine with a decay per channel (gla). Its walks (chunk_scan_mma.cuh) take q and k decayed to the ends of
// the chunks, and the triangle, ready made: the decay within a chunk is work of the CUDA cores (chunk_scan_general.cuh), where
// all factors are products of exp(g), at most 1, and it is done once. The gradients go the other way: products with the
// states, dv and R on the tensor cores, then dq, dk and the gradient of the log-decays from those on the CUDA cores.
#pragma once
#include "cuda/chunk_scan_general_channel.cuh"
#include "cuda/chunk_scan_mma_tiles.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kChannelTile = 4;  // R of the general kernels: chunks of 64 steps

// The decayed queries and keys of a chunk, their triangle and the decay of each channel.
template <class T>
__global__ void __launch_bounds__(kGeneralThreads)
channelOperandsKernel(const __grid_constant__ Scan s, const __grid_constant__ ChannelTask task) {
  constexpr int R = kChannelTile, C = kChunk;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *a = att + kTile<R>, *b = a + kTile<R>, *eg = b + kTile<R>, *total = eg + kTile<R>;
  const int64_t index = blockIdx.x;
  const int head = int(index % s.heads);
  const Place at = locate(s, index / s.heads, C);
  if (!at.valid || !at.length) return;
  T *queries = static_cast<T*>(task.queries), *keys = static_cast<T*>(task.keys);
  const int64_t base = ((at.batch * s.length + at.start) * s.heads + head) * s.n;
  float raw[R][R] = {};
  scores<T, R, Decay::Channel>(att, a, b, eg, s, at, head, nullptr, raw, [&](int n0) {
    const auto store = [&](T* to, int i, float x) {
      const int t = i / kPitch<R>, n = n0 + i % kPitch<R>;
      if (t < at.length && n < s.n) to[base + int64_t(t) * s.heads * s.n + n] = fromFloat<T>(x);
    };
    forUp<R, From::Chunk>(eg, total, [&](int i, float f) { store(queries, i, a[i] * f); });
    forDown<R, From::Chunk>(eg, total, [&](int i, float f) { store(keys, i, b[i] * f); });
    if (threadIdx.x < C && n0 + int(threadIdx.x) < s.n) {
      float all = 1.f;
      for (int m = 0; m < R; m++) all *= total[m * C + threadIdx.x];
      task.totals[index * s.n + n0 + threadIdx.x] = all;
    }
  });
  T* to = static_cast<T*>(task.attention) + index * (C * C);
  for (int i = threadIdx.x; i < C * C; i += kGeneralThreads) {
    const int t = i / C, u = i % C;
    to[i] = fromFloat<T>(u <= t ? att[t * kPitch<R> + u] : 0.f);
  }
}

template <int NT, int PT>
struct ChannelTiles {
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, state = PT * NT * 2, square = kChunk * kChunk * 2;
  static constexpr int k = 0, v = keys, dO = v + values, s = dO + values, ds = s + state, att = ds + state;
  static constexpr int sums = att + square, bytes = sums + 2 * kGradientThreads * 4;
};

// What the gradients of a chunk need of the value channels: dv, R, dO S_in^T, v dS_out^T and <S_in, dS_out> by channel.
template <class T, int NT, int PT>
__global__ void __launch_bounds__(kGradientThreads)
channelProductsKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task,
                      const __grid_constant__ ChannelTask channel) {
  using Tiles = ChannelTiles<NT, PT>;
  constexpr int THREADS = kGradientThreads, KEYS = NT / 8, VALUES = PT / 8, GROUPS = 2 * THREADS / NT;
  const int64_t block = blockIdx.x;
  const int head = int(block % s.heads);
  const Place at = locate(s, block / s.heads, kChunk);
  if (!at.valid || !at.length) return;
  unsigned char* tiles = chunkScanShared;
  const uint32_t shared = sharedAddress(tiles), k = shared + Tiles::k, v = shared + Tiles::v, dO = shared + Tiles::dO;
  const uint32_t state = shared + Tiles::s, dstate = shared + Tiles::ds, att = shared + Tiles::att;
  const bool hasState = !at.first || s.hasInitial, hasGradient = !at.last || g.hasFinal;
  loadTileAsync<THREADS, kChunk, KEYS>(k, s.k.at<const T>(at.batch, at.start, head), s.k.time, at.length, s.n);
  loadTileAsync<THREADS, kChunk, 8>(att, static_cast<const T*>(task.attention) + block * (kChunk * kChunk), kChunk, kChunk, kChunk);

  using Square = WarpPart<kChunk>;
  using Keys = WarpPart<NT>;
  using Values = WarpPart<PT>;
  const Square square;
  const Keys keys;
  const Values values;
  typename Square::Fragments r = {};
  typename Keys::Fragments dq = {}, dk = {};
  const int channelPair = threadIdx.x % (NT / 2) * 2, rowGroup = threadIdx.x / (NT / 2);
  float through[2] = {};

  for (int slice = 0; slice < task.slices; slice++) {
    const int p0 = slice * PT;
    const int64_t index = block * task.slices + slice;
    const T *x = s.v.at<const T>(at.batch, at.start, head) + p0, *dy = g.dy.at<const T>(at.batch, at.start, head) + p0;
    __syncthreads();  // the tiles of the slice before are read
    loadTileAsync<THREADS, kChunk, VALUES>(v, x, s.v.time, at.length, s.p - p0);
    loadTileAsync<THREADS, kChunk, VALUES>(dO, dy, g.dy.time, at.length, s.p - p0);
    commitAsync();
    if (hasGradient) loadTileAsync<THREADS, PT, KEYS>(dstate, static_cast<const T*>(task.gradients) + index * (PT * NT), NT, PT, NT);
    if (hasState) loadTileAsync<THREADS, PT, KEYS>(state, static_cast<const T*>(task.states) + index * (PT * NT), NT, PT, NT);
    commitAsync();
    waitAsync<1>();
    __syncthreads();
    warpProduct<T, Square::M, Square::N, VALUES, false, VALUES, false>(r, dO, square.row, v, square.col, 0, PT);
    waitAsync<0>();
    __syncthreads();
    if (g.dv.given) {
      typename Values::Fragments acc = {};
      if (hasGradient) warpProduct<T, Values::M, Values::N, KEYS, false, KEYS, false>(acc, k, values.row, dstate, values.col, 0, NT);
      warpProduct<T, Values::M, Values::N, 8, true, VALUES, true>(acc, att, values.row, dO, values.col, values.row, kChunk);
      forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
        if (t >= at.length || p0 + p >= s.p) return;
        uint32_t* to = reinterpret_cast<uint32_t*>(g.dv.at<T>(at.batch, at.start + t, head) + p0 + p);
        *to = pack2<T>(acc[m][n][2 * half], acc[m][n][2 * half + 1]);
      });
    }
    if (hasState) warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(dq, dO, keys.row, state, keys.col, 0, PT);
    if (hasGradient) warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(dk, v, keys.row, dstate, keys.col, 0, PT);
    if (hasState && hasGradient)
      for (int p = rowGroup; p < PT; p += GROUPS) {
        const float2 a = unpack2<T>(*pairAt<KEYS>(tiles + Tiles::s, p, channelPair));
        const float2 b = unpack2<T>(*pairAt<KEYS>(tiles + Tiles::ds, p, channelPair));
        through[0] = fmaf(a.x, b.x, through[0]), through[1] = fmaf(a.y, b.y, through[1]);
      }
  }

  float* to = channel.r + block * (kChunk * kChunk);
  forFragments<Square::M, Square::N>(square.row, square.col, [&](int m, int n, int half, int t, int u) {
    const float2 x = {u <= t ? r[m][n][2 * half] : 0.f, u + 1 <= t ? r[m][n][2 * half + 1] : 0.f};
    *reinterpret_cast<float2*>(to + t * kChunk + u) = x;
  });
  forFragments<Keys::M, Keys::N>(keys.row, keys.col, [&](int m, int n, int half, int t, int c) {
    if (t >= at.length || c >= s.n) return;
    const int64_t offset = ((at.batch * s.length + at.start + t) * s.heads + head) * s.n + c;
    *reinterpret_cast<float2*>(channel.dq + offset) = {dq[m][n][2 * half], dq[m][n][2 * half + 1]};
    *reinterpret_cast<float2*>(channel.dk + offset) = {dk[m][n][2 * half], dk[m][n][2 * half + 1]};
  });
  float* sums = reinterpret_cast<float*>(tiles + Tiles::sums);
  sums[rowGroup * NT + channelPair] = through[0], sums[rowGroup * NT + channelPair + 1] = through[1];
  __syncthreads();
  for (int n = threadIdx.x; n < s.n; n += THREADS) {
    float sum = 0.f;
    for (int i = 0; i < GROUPS; i++) sum += sums[i * NT + n];
    channel.through[block * s.n + n] = sum;
  }
}

}  // namespace mm::cuda::chunk_scan
