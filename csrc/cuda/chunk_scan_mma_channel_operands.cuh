// The operands of the walks with a decay per channel: decayed queries and keys of a chunk, their triangle and the decay of each channel.
#pragma once
#include "cuda/chunk_scan_mma_channel.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kOperandThreads = 32 * kSubs;  // a warp has 16 steps

template <int NT>
struct OperandTiles {
  static constexpr int span = 32;  // channels at a time, 8 a lane
  // W of the blocks of 16 and of 32 steps; decays of 16 steps by channel of a span, twice
  static constexpr int tile = kChunk * NT * 2, w16 = 0, w32 = tile, totals = 2 * tile, bytes = totals + 2 * kSubs * span * 4;
};

// acc += what W W^T has for blocks of H steps: of 8 steps rows 8 to 15 by columns 0 to 7, of fewer each 8 rows by themselves.
template <class T, int H>
__device__ __forceinline__ void multiplyHalves(float (&acc)[4], const uint32_t (&w)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t first[2] = {w[0][i], w[0][i + 1]}, second[2] = {w[1][i], w[1][i + 1]};
    if (H < 8) mma16816<T>(acc, {first[0], 0, first[1], 0}, first);
    mma16816<T>(acc, {0, second[0], 0, second[1]}, H < 8 ? second : first);
  }
}

template <class T, int NT>
__global__ void __launch_bounds__(kOperandThreads, NT == 32 ? 3 : 4)
channelOperandsKernel(const __grid_constant__ Scan s, const __grid_constant__ ChannelTask task) {
  using Tiles = OperandTiles<NT>;
  constexpr int C = 8, SPAN = Tiles::span;
  const int64_t index = blockIdx.x;
  const int head = int(index % s.heads), group = head / s.share(), sub = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Place at = locate(s, index / s.heads, kChunk);
  if (!at.valid || !at.length) return;
  unsigned char* tiles = chunkScanShared;
  float* totals = reinterpret_cast<float*>(tiles + Tiles::totals);
  const int row0 = sub * kSubSteps + lane / 4;

  float by1[4] = {}, by2[4] = {}, by4[4] = {}, by8[4] = {}, diagonal[2] = {};
#pragma unroll 1
  for (int span = 0; span < NT / SPAN; span++) {
    const int n = span * SPAN + lane % 4 * C;  // the first of this lane's channels
    uint32_t q[2][4] = {}, k[2][4] = {}, w[2][4];
    float decay[2][C];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + 8 * r;
      float gate[C] = {};
      if (t < at.length && n < s.n) {
        const int64_t step = at.start + t;
        const uint4 a = *reinterpret_cast<const uint4*>(s.q.at<const T>(at.batch, step, group) + n);
        const uint4 b = *reinterpret_cast<const uint4*>(s.k.at<const T>(at.batch, step, group) + n);
        q[r][0] = a.x, q[r][1] = a.y, q[r][2] = a.z, q[r][3] = a.w;
        k[r][0] = b.x, k[r][1] = b.y, k[r][2] = b.z, k[r][3] = b.w;
        if (s.gate.dtype == MM_F32) loadFloats<C>(s.gate.at<const float>(at.batch, step, head) + n, gate);
        else loadFloats<C>(s.gate.at<const T>(at.batch, step, head) + n, gate);
      }
#pragma unroll
      for (int c = 0; c < C; c++) decay[r][c] = __expf(gate[c]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float2 a = unpack2<T>(q[r][i]), b = unpack2<T>(k[r][i]);
        diagonal[r] = fmaf(a.x, b.x, fmaf(a.y, b.y, diagonal[r]));
      }
    }
    Halves<C> halves(decay);
    const auto level = [&](auto size, float (&acc)[4]) {
      constexpr int H = decltype(size)::value;
      halves.template weigh<T, H>(w, q, k);
      multiplyHalves<T, H>(acc, w);
      halves.template widen<H>();
    };
    level(std::integral_constant<int, 1>{}, by1);
    level(std::integral_constant<int, 2>{}, by2);
    level(std::integral_constant<int, 4>{}, by4);
    level(std::integral_constant<int, 8>{}, by8);

    float* ofSpan = totals + span % 2 * (kSubs * SPAN) + lane % 4 * C;
    if (lane < 4)
#pragma unroll
      for (int c = 0; c < C; c++) ofSpan[sub * SPAN + c] = halves.up[0][c] * halves.down[0][c];
    __syncthreads();
    uint32_t w16[2][4], w32[2][4], query[2][4], key[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float before[2], behind[2], next[2];  // decays of the chunk before and behind the 16 steps; up to the middle of the chunk
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int c = 2 * i + e;
        float total[kSubs];
#pragma unroll
        for (int m = 0; m < kSubs; m++) total[m] = ofSpan[m * SPAN + c];
        before[e] = (sub > 0 ? total[0] : 1.f) * (sub > 1 ? total[1] : 1.f) * (sub > 2 ? total[2] : 1.f);
        behind[e] = (sub < 1 ? total[1] : 1.f) * (sub < 2 ? total[2] : 1.f) * (sub < 3 ? total[3] : 1.f);
        next[e] = sub == 0 ? total[1] : sub == 3 ? total[2] : 1.f;
        if (sub == 0 && lane < 4 && n < s.n) task.totals[index * s.n + n + c] = total[0] * behind[e];
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float *up = halves.up[r] + 2 * i, *down = halves.down[r] + 2 * i;
        w16[r][i] = sub % 2 ? scaled2<T>(q[r][i], up[0], up[1]) : scaled2<T>(k[r][i], down[0], down[1]);
        w32[r][i] = sub >= 2 ? scaled2<T>(q[r][i], up[0] * next[0], up[1] * next[1])
                             : scaled2<T>(k[r][i], down[0] * next[0], down[1] * next[1]);
        query[r][i] = scaled2<T>(q[r][i], up[0] * before[0] * s.scale, up[1] * before[1] * s.scale);
        key[r][i] = scaled2<T>(k[r][i], down[0] * behind[0], down[1] * behind[1]);
      }
    }
    const auto piece = [](const uint32_t(&x)[4]) { return make_uint4(x[0], x[1], x[2], x[3]); };
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + 8 * r;
      const uint32_t place = swizzled<NT / 8>(t, n / 8);
      *reinterpret_cast<uint4*>(tiles + Tiles::w16 + place) = piece(w16[r]);
      *reinterpret_cast<uint4*>(tiles + Tiles::w32 + place) = piece(w32[r]);
      if (t >= at.length || n >= s.n) continue;
      const int64_t to = ((at.batch * s.length + at.start + t) * s.heads + head) * s.n + n;
      *reinterpret_cast<uint4*>(static_cast<T*>(task.queries) + to) = piece(query[r]);
      *reinterpret_cast<uint4*>(static_cast<T*>(task.keys) + to) = piece(key[r]);
    }
  }

  T* att = static_cast<T*>(task.attention) + index * (kChunk * kChunk);
  const auto store = [&](int t, int u, float x, float y) {
    *reinterpret_cast<uint32_t*>(att + t * kChunk + u) = pack2<T>(x * s.scale, y * s.scale);
  };
  {  // the 16 x 16 block on the diagonal: who differ in bit h first met among blocks of h steps
    const int g = lane / 4, u0 = lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float same = diagonal[r];
      same += __shfl_xor_sync(kAllLanes, same, 1);
      same += __shfl_xor_sync(kAllLanes, same, 2);
      float x[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int u = u0 + j, differ = g ^ u, i = 2 * r + j;
        const float met = differ & 4 ? by4[i] : differ & 2 ? by2[i] : by1[i];
        x[j] = u < g ? met : u == g ? same : 0.f;
      }
      store(row0 + 8 * r, sub * kSubSteps + 8 * r + u0, x[0], x[1]);
    }
    store(row0 + 8, sub * kSubSteps + u0, by8[2], by8[3]);
    store(row0, sub * kSubSteps + 8 + u0, 0.f, 0.f);
  }
  __syncthreads();
  const uint32_t shared = sharedAddress(tiles);
  const auto block = [&](uint32_t w, int row, int col) {
    float acc[1][2][4] = {};
    warpProduct<T, 1, 2, NT / 8, false, NT / 8, false>(acc, w, row, w, col, 0, NT);
    forFragments<1, 2>(row, col, [&](int, int n, int half, int t, int u) { store(t, u, acc[0][n][2 * half], acc[0][n][2 * half + 1]); });
  };
  block(shared + Tiles::w32, 32 + sub / 2 * kSubSteps, sub % 2 * kSubSteps);
  if (sub < 2) block(shared + Tiles::w16, 32 * sub + kSubSteps, 32 * sub);
  else {  // zeros above the diagonal
#pragma unroll
    for (int i = 0; i < kSubs; i++)
#pragma unroll
      for (int j = 0; j < kSubs; j++)
        if (j > i && (i + j) % 2 == sub % 2)
          *reinterpret_cast<uint4*>(att + (i * kSubSteps + lane / 2) * kChunk + j * kSubSteps + lane % 2 * 8) = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace mm::cuda::chunk_scan
