// The gradients of a chunk with a decay per channel, for a head: first dv and R, then what comes through the states, then by units of 16
// channels the key gradients within the chunk, by halving (chunk_scan_mma_channel.cuh).
#pragma once
#include "cuda/chunk_scan_mma_channel.cuh"

namespace mm::cuda::chunk_scan {

template <int NT, int PT>
struct ChannelTiles {
  static constexpr int threads = kGradientThreads, warps = threads / 32, halves = warps / kSubs, unit = 16;
  static constexpr int units = NT / halves / unit, width = halves * unit;  // units of a warp; channels that a block has at a time
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, state = PT * NT * 2, square = kChunk * kChunk * 2;
  // R, symmetric; then v, dO, dS and, one after the other, k with att and S
  static constexpr int r = 0, v = square, dO = v + values, ds = dO + values, k = ds + state, att = k + keys, s = k;
  static constexpr int products = s + (state > keys + square ? state : keys + square);
  // in place of those, but for R: dq and dk (then the gradient of the decays) by thread, W of the queries and of the keys, W within
  // 16 steps twice for each warp, decays of 16 steps, their sums for the gradient of the decays, <S, dS> and its parts
  static constexpr int slots = square, slot = threads * 4, wq = slots + NT / halves * slot, w = kChunk * width * 2, wk = wq + w;
  static constexpr int own = wk + w, ownTile = kSubSteps * unit * 2, totals = own + warps * 2 * ownTile;
  static constexpr int crossed = totals + kSubs * width * 4, passed = crossed + kSubs * NT * 4;
  static constexpr int through = passed + kSubs * NT * 4, parts = through + NT * 4;
  static constexpr int within = parts + 2 * threads * 4, rows = products > within ? products : within, bytes = rows + 16;
};

// Where a chunk is: kept in shared memory, since the registers are all taken by the products.
struct Rows {
  int64_t start;
  int batch, length;
};

// Two lanes exchange: of 16 channels, 8 bytes a lane in order become a pair of each tile of 8 columns, or the other way.
__device__ __forceinline__ void exchangePair(uint32_t (&x)[2]) {
  const bool odd = threadIdx.x & 1;
  const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? x[0] : x[1], 1);
  if (odd) x[0] = other;
  else x[1] = other;
}
// The first of the four channels that a lane has in order.
__device__ __forceinline__ int orderedChannel() {
  const int t = threadIdx.x % 4;
  return t % 2 ? 8 + 2 * (t - 1) : 2 * t;
}
// Reads this lane's pairs of 16 channels; zeros where it is not inside.
template <class T>
__device__ __forceinline__ void readPairs(uint32_t (&x)[2], const T* row, bool inside) {
  const uint2 v = inside ? *reinterpret_cast<const uint2*>(row + orderedChannel()) : make_uint2(0, 0);
  x[0] = v.x, x[1] = v.y;
  exchangePair(x);
}
template <class T>
__device__ __forceinline__ void writePairs(const float (&x)[4], T* row, bool inside) {
  uint32_t v[2] = {pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3])};
  exchangePair(v);
  if (inside) *reinterpret_cast<uint2*>(row + orderedChannel()) = make_uint2(v[0], v[1]);
}

// x = the sum over the rows of 16 before each of this lane's; returns the sum over all, in every lane.
__device__ __forceinline__ float exclusiveRows(float& x0, float& x1) {
  const int lane = threadIdx.x % 32;
  float sums[2] = {x0, x1}, all[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
#pragma unroll
    for (int d = 4; d < 32; d *= 2) {
      const float other = __shfl_up_sync(kAllLanes, sums[r], d);
      if (lane >= d) sums[r] += other;
    }
    all[r] = __shfl_sync(kAllLanes, sums[r], 28 + lane % 4);
  }
  x0 = sums[0] - x0, x1 = sums[1] - x1 + all[0];
  return all[0] + all[1];
}
__device__ __forceinline__ float sumRows(float x) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(kAllLanes, x, d);
  return x;
}

// The gradients of queries, keys and log-decays of a chunk, by units of 16 channels. R, what comes through the states (in the slots of
// the threads) and <S, dS> are there; a barrier goes before <S, dS> is read.
template <class T, int NT, int PT>
__device__ __forceinline__ void gradientsWithin(const Scan& s, const Gradient& g, int head, const Rows& at) {
  using Tiles = ChannelTiles<NT, PT>;
  constexpr int THREADS = kGradientThreads, WIDTH = Tiles::width, COLS = NT / Tiles::halves;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, sub = warp / Tiles::halves, half = warp % Tiles::halves;
  const int row0 = sub * kSubSteps, group = head / s.share();
  unsigned char* tiles = chunkScanShared;
  const uint32_t shared = sharedAddress(tiles);
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(tiles + offset); };
  // Fragments hold rows lane / 4 and 8 more, which all tiles swizzle alike; of 16 channels a lane has two pairs, c = 2 j + e: channel
  // 8 j + 2 (lane % 4) + e.
  constexpr int C = 4;
  const int row = lane / 4, pair = lane % 4 * 2;
  const auto rowOf = [&](auto type, const Operand& x, int h, int r) {
    return x.at<decltype(type)>(at.batch, at.start + row0 + row, h) + r * 8 * x.time;
  };
  const auto channelOf = [&](int c) { return c / 2 * 8 + pair + c % 2; };
  const auto inner = [&](int h) {  // which of a pair of columns meet a row in blocks of h steps
    const auto meets = [&](int col) { return (row ^ (pair + col)) / h == 1; };
    return (meets(0) ? 0xffffu : 0u) | (meets(1) ? 0xffff0000u : 0u);
  };
  const uint32_t own = shared + Tiles::own + warp * 2 * Tiles::ownTile;
  unsigned char* ownTiles = tiles + Tiles::own + warp * 2 * Tiles::ownTile;
  float *totals = floats(Tiles::totals), *crossed = floats(Tiles::crossed), *passed = floats(Tiles::passed);

#pragma unroll 1
  for (int unit = 0; unit < Tiles::units; unit++) {
    const int n0 = half * COLS + unit * Tiles::unit;
    const bool hasChannels = n0 + orderedChannel() < s.n;
    float* slots = floats(Tiles::slots) + unit * 16 * THREADS + threadIdx.x;
    uint32_t q[2][2], key[2][2], w[2][2];
    float gate[2][C] = {};
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + row + 8 * r;
      const bool inside = t < at.length && hasChannels;
      readPairs<T>(q[r], rowOf(T{}, s.q, group, r) + n0, inside);
      readPairs<T>(key[r], rowOf(T{}, s.k, group, r) + n0, inside);
      if (s.gate.dtype == MM_F32) {
        const float* from = rowOf(0.f, s.gate, head, r) + n0;
#pragma unroll
        for (int j = 0; j < 2; j++)
          if (t < at.length && n0 + 8 * j < s.n) {
            const float2 x = *reinterpret_cast<const float2*>(from + 8 * j + pair);
            gate[r][2 * j] = x.x, gate[r][2 * j + 1] = x.y;
          }
      } else {
        uint32_t x[2];
        readPairs<T>(x, rowOf(T{}, s.gate, head, r) + n0, inside);
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float2 y = unpack2<T>(x[j]);
          gate[r][2 * j] = y.x, gate[r][2 * j + 1] = y.y;
        }
      }
#pragma unroll
      for (int c = 0; c < C; c++) gate[r][c] = __expf(gate[r][c]);
    }
    Halves<C> halves(gate);

    float dq[2][C] = {}, dk[2][C] = {}, crossing[2][C] = {};  // within the chunk, but for the scale
    const auto add = [&](bool query, int r, int c, float factor, float weight, float z) {
      if (query) dq[r][c] = fmaf(factor, z, dq[r][c]), crossing[r][c] = fmaf(weight, z, crossing[r][c]);
      else dk[r][c] = fmaf(factor, z, dk[r][c]), crossing[r][c] = fmaf(-weight, z, crossing[r][c]);
    };
    const auto level = [&](auto size, const uint32_t(&a)[4]) {
      constexpr int H = decltype(size)::value, TILE = H == 1 || H == 4 ? 0 : Tiles::ownTile;
      halves.template weigh<T, H>(w, q, key);
#pragma unroll
      for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < 2; j++) *pairAt<2>(ownTiles + TILE + r * (8 * Tiles::unit * 2), row, 8 * j + pair) = w[r][j];
      __syncwarp();
      uint32_t b[2][2];
      loadB<2, true>(b, own + TILE, 0, 0);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float z[4] = {};
        mma16816<T>(z, a, b[j]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float2 x = unpack2<T>(w[r][j]);
          const bool query = halves.template second<H>(r);
          add(query, r, 2 * j, halves.template factor<H>(r, 2 * j), x.x, z[2 * r]);
          add(query, r, 2 * j + 1, halves.template factor<H>(r, 2 * j + 1), x.y, z[2 * r + 1]);
        }
      }
      halves.template widen<H>();
    };
    uint32_t r[4];  // the block of R on the diagonal
    loadA<8, false>(r, shared + Tiles::r, row0, row0);
    level(std::integral_constant<int, 1>{}, {r[0] & inner(1), 0, 0, r[3] & inner(1)});
    level(std::integral_constant<int, 2>{}, {r[0] & inner(2), 0, 0, r[3] & inner(2)});
    level(std::integral_constant<int, 4>{}, {r[0] & inner(4), 0, 0, r[3] & inner(4)});
    level(std::integral_constant<int, 8>{}, {0, r[1], r[2], 0});

    __syncthreads();  // W and decays of the unit before are read
    const auto placeOf = [&](int w, int r, int j) {
      return pairAt<WIDTH / 8>(tiles + w + r * (8 * WIDTH * 2), row0 + row, half * Tiles::unit + 8 * j + pair);
    };
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        *placeOf(Tiles::wq, r, j) = scaled2<T>(q[r][j], halves.up[r][2 * j], halves.up[r][2 * j + 1]);
        *placeOf(Tiles::wk, r, j) = scaled2<T>(key[r][j], halves.down[r][2 * j], halves.down[r][2 * j + 1]);
      }
    if (row == 0)
#pragma unroll
      for (int c = 0; c < C; c++) totals[sub * WIDTH + half * Tiles::unit + channelOf(c)] = halves.up[0][c] * halves.down[0][c];
    __syncthreads();

    const bool odd = sub % 2, late = sub >= 2;
    const auto product = [&](float (&acc)[2][4], bool queries, int from) {
      uint32_t a[4], b[2][2];
      loadA<8, false>(a, shared + Tiles::r, row0, from * kSubSteps);
      loadB<WIDTH / 8, true>(b, shared + (queries ? Tiles::wq : Tiles::wk), from * kSubSteps, half * Tiles::unit);
#pragma unroll
      for (int j = 0; j < 2; j++) mma16816<T>(acc[j], a, b[j]);
    };
    const auto merge = [&](const float (&acc)[2][4], bool query, auto&& factor) {
#pragma unroll
      for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float2 x = unpack2<T>(*placeOf(query ? Tiles::wq : Tiles::wk, r, j));
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int c = 2 * j + e;
            add(query, r, c, query ? halves.up[r][c] : halves.down[r][c], e ? x.y : x.x, acc[j][2 * r + e] * factor(c));
          }
        }
    };
    const auto totalOf = [&](int m, int c) { return totals[m * WIDTH + half * Tiles::unit + channelOf(c)]; };
    {
      float z[2][4] = {};
      product(z, !odd, sub ^ 1);
      merge(z, odd, [](int) { return 1.f; });
    }
    {  // blocks of 32 steps: the 16 steps far from the middle, then those beside it
      float z[2][4] = {};
      product(z, !late, late ? 0 : 3);
#pragma unroll
      for (int c = 0; c < C; c++) {
        const float between = totalOf(late ? 1 : 2, c);
        z[c / 2][c % 2] *= between, z[c / 2][2 + c % 2] *= between;
      }
      product(z, !late, late ? 1 : 2);
      merge(z, late, [&](int c) { return sub == 0 ? totalOf(1, c) : sub == 3 ? totalOf(2, c) : 1.f; });
    }

    // with what comes through the states; crossing becomes what a step adds to the gradients of the decays behind it
    float crosses[C], same[2];  // same: R on its diagonal, which crosses nothing
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + row + 8 * r;
      const float2 x = unpack2<T>(*pairAt<8>(tiles + Tiles::r, t, t & ~1));
      same[r] = t & 1 ? x.y : x.x;
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
      float before = 1.f, behind = 1.f, sum = 0.f;
#pragma unroll
      for (int m = 0; m < kSubs; m++) {
        const float total = totalOf(m, c);
        before *= m < sub ? total : 1.f, behind *= m > sub ? total : 1.f;
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float2 q2 = unpack2<T>(q[r][c / 2]), k2 = unpack2<T>(key[r][c / 2]);
        const float qc = c % 2 ? q2.y : q2.x, kc = c % 2 ? k2.y : k2.x;
        const int slot = (c / 2 * 8 + 2 * r + c % 2) * THREADS;
        const float dqState = slots[slot] * (halves.up[r][c] * before);
        const float dkState = slots[slot + 4 * THREADS] * (halves.down[r][c] * behind);
        dq[r][c] = s.scale * (dqState + fmaf(same[r], kc, dq[r][c]));
        dk[r][c] = fmaf(s.scale, fmaf(same[r], qc, dk[r][c]), dkState);
        const float crossed = s.scale * fmaf(qc, dqState, crossing[r][c]);
        sum += crossed;
        crossing[r][c] = kc * dkState - crossed;
      }
      // paths through the whole chunk cross every step
      crosses[c] = sumRows(sum) + (sub ? 0.f : floats(Tiles::through)[n0 + channelOf(c)] * halves.up[0][c] * halves.down[0][c] * behind);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + row + 8 * r;
      const bool inside = t < at.length && hasChannels;
      if (g.dq.given) writePairs<T>(dq[r], rowOf(T{}, g.dq, group, r) + n0, inside);
      if (g.dk.given) writePairs<T>(dk[r], rowOf(T{}, g.dk, group, r) + n0, inside);
    }
    if (!g.dgate.given) continue;
#pragma unroll
    for (int c = 0; c < C; c++) {
      const float sum = exclusiveRows(crossing[0][c], crossing[1][c]);
      const int n = n0 + channelOf(c);
#pragma unroll
      for (int r = 0; r < 2; r++) slots[(c / 2 * 8 + 2 * r + c % 2) * THREADS] = crossing[r][c];
      if (row) continue;
      passed[sub * NT + n] = sum, crossed[sub * NT + n] = crosses[c];
    }
  }
  if (!g.dgate.given) return;
  __syncthreads();
#pragma unroll 1
  for (int unit = 0; unit < Tiles::units; unit++) {
    const int n0 = half * COLS + unit * Tiles::unit;
    const bool hasChannels = n0 + orderedChannel() < s.n;
    const float* slots = floats(Tiles::slots) + unit * 16 * THREADS + threadIdx.x;
    float offset[C];
#pragma unroll
    for (int c = 0; c < C; c++) {
      const int n = n0 + channelOf(c);
      offset[c] = 0.f;
#pragma unroll
      for (int m = 0; m < kSubs; m++) offset[c] += crossed[m * NT + n] + (m < sub ? passed[m * NT + n] : 0.f);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = row0 + row + 8 * r;
      const bool inside = t < at.length && hasChannels;
      float x[C];
#pragma unroll
      for (int c = 0; c < C; c++) x[c] = slots[(c / 2 * 8 + 2 * r + c % 2) * THREADS] + offset[c];
      if (g.dgate.dtype != MM_F32) {
        writePairs<T>(x, rowOf(T{}, g.dgate, head, r) + n0, inside);
        continue;
      }
      float* to = rowOf(0.f, g.dgate, head, r) + n0;
#pragma unroll
      for (int j = 0; j < 2; j++)
        if (t < at.length && n0 + 8 * j < s.n) *reinterpret_cast<float2*>(to + 8 * j + pair) = {x[2 * j], x[2 * j + 1]};
    }
  }
}

template <class T, int NT, int PT>
__global__ void __launch_bounds__(kGradientThreads, NT == 32 ? 1 : 2)
channelGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task,
                      const __grid_constant__ ChannelTask channel) {
  using Tiles = ChannelTiles<NT, PT>;
  constexpr int THREADS = kGradientThreads, KEYS = NT / 8, VALUES = PT / 8, GROUPS = 2 * THREADS / NT;
  constexpr int COLS = NT / Tiles::halves;  // channels of a warp
  const int64_t block = blockIdx.x;
  const int head = int(block % s.heads);
  const Place at = locate(s, block / s.heads, kChunk);
  if (!at.valid || !at.length) return;
  unsigned char* tiles = chunkScanShared;
  const uint32_t shared = sharedAddress(tiles), k = shared + Tiles::k, v = shared + Tiles::v, dO = shared + Tiles::dO;
  const uint32_t state = shared + Tiles::s, dstate = shared + Tiles::ds, att = shared + Tiles::att;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(tiles + offset); };
  if (threadIdx.x == 0) *reinterpret_cast<Rows*>(tiles + Tiles::rows) = {at.start, at.batch, at.length};
  const bool hasState = !at.first || s.hasInitial, hasGradient = !at.last || g.hasFinal;
  const bool wantsKeys = g.dq.given || g.dk.given || g.dgate.given;
  const auto loadValues = [&](int slice) {
    const int p0 = slice * PT;
    loadTileAsync<THREADS, kChunk, VALUES>(v, s.v.at<const T>(at.batch, at.start, head) + p0, s.v.time, at.length, s.p - p0);
    loadTileAsync<THREADS, kChunk, VALUES>(dO, g.dy.at<const T>(at.batch, at.start, head) + p0, g.dy.time, at.length, s.p - p0);
  };
  const auto loadState = [&](uint32_t tile, const void* states, int slice) {
    // dense, and rows of the same swizzle follow each other: one address for all pieces
    static_assert(THREADS / KEYS % 8 == 0);
    const T* from = static_cast<const T*>(states) + (block * task.slices + slice) * (PT * NT) + threadIdx.x * 8;
    const uint32_t to = tile + swizzled<KEYS>(threadIdx.x / KEYS, threadIdx.x % KEYS);
#pragma unroll
    for (int i = 0; i < (PT * KEYS + THREADS - 1) / THREADS; i++)
      if ((i + 1) * THREADS <= PT * KEYS || threadIdx.x + i * THREADS < PT * KEYS)
        copyAsync16(to + i * THREADS * 16, from + i * THREADS * 8);
  };

  {  // dv and R
    using Square = WarpPart<kChunk>;
    using Values = WarpPart<PT>;
    const Square square;
    const Values values;
    typename Square::Fragments r = {};
    for (int slice = 0; slice < task.slices; slice++) {
      const int p0 = slice * PT;
      __syncthreads();  // the tiles of the slice before are read
      loadValues(slice);
      commitAsync();
      if (g.dv.given && slice == 0) {
        const int64_t base = ((at.batch * s.length + at.start) * s.heads + head) * s.n;
        const T* triangle = static_cast<const T*>(task.attention) + block * (kChunk * kChunk);
        loadTileAsync<THREADS, kChunk, KEYS>(k, static_cast<const T*>(channel.keys) + base, int64_t(s.heads) * s.n, at.length, s.n);
        loadTileAsync<THREADS, kChunk, 8>(att, triangle, kChunk, kChunk, kChunk);
      }
      if (hasGradient) loadState(dstate, task.gradients, slice);
      commitAsync();
      waitAsync<1>();
      __syncthreads();
      warpProduct<T, Square::M, Square::N, VALUES, false, VALUES, false>(r, dO, square.row, v, square.col, 0, PT);
      waitAsync<0>();
      __syncthreads();
      if (!g.dv.given) continue;
      typename Values::Fragments acc = {};
      if (hasGradient) warpProduct<T, Values::M, Values::N, KEYS, false, KEYS, false>(acc, k, values.row, dstate, values.col, 0, NT);
      warpProduct<T, Values::M, Values::N, 8, true, VALUES, true>(acc, att, values.row, dO, values.col, values.row, kChunk);
      forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
        if (t >= at.length || p0 + p >= s.p) return;
        uint32_t* to = reinterpret_cast<uint32_t*>(g.dv.at<T>(at.batch, at.start + t, head) + p0 + p);
        *to = pack2<T>(acc[m][n][2 * half], acc[m][n][2 * half + 1]);
      });
    }
    if (!wantsKeys) return;
    forFragments<Square::M, Square::N>(square.row, square.col, [&](int m, int n, int half, int t, int u) {
      const uint32_t both = pack2<T>(r[m][n][2 * half], r[m][n][2 * half + 1]);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (u + j > t) continue;
        const uint16_t x = uint16_t(both >> 16 * j);
        *(reinterpret_cast<uint16_t*>(pairAt<8>(tiles + Tiles::r, t, (u + j) & ~1)) + ((u + j) & 1)) = x;
        *(reinterpret_cast<uint16_t*>(pairAt<8>(tiles + Tiles::r, u + j, t & ~1)) + (t & 1)) = x;
      }
    });
  }

  {  // through the states
    const int warp = threadIdx.x / 32, row0 = warp / Tiles::halves * kSubSteps, half = warp % Tiles::halves;
    float dq[1][COLS / 8][4] = {}, dk[1][COLS / 8][4] = {}, through[2] = {};
    const int channelPair = threadIdx.x % (NT / 2) * 2, rowGroup = threadIdx.x / (NT / 2);
    for (int slice = 0; slice < task.slices; slice++) {
      __syncthreads();  // k and att, or the tiles of the slice before, are read
      if (task.slices > 1) {
        loadValues(slice);
        if (hasGradient) loadState(dstate, task.gradients, slice);
      }
      commitAsync();
      if (hasState) loadState(state, task.states, slice);
      commitAsync();
      waitAsync<1>();
      __syncthreads();
      if (hasGradient) warpProduct<T, 1, COLS / 8, VALUES, false, KEYS, true>(dk, v, row0, dstate, half * COLS, 0, PT);
      waitAsync<0>();
      __syncthreads();
      if (!hasState) continue;
      warpProduct<T, 1, COLS / 8, VALUES, false, KEYS, true>(dq, dO, row0, state, half * COLS, 0, PT);
      if (!hasGradient) continue;
#pragma unroll 4
      for (int i = 0; i < PT / GROUPS; i++) {
        const int p = rowGroup + i * GROUPS;
        const float2 a = unpack2<T>(*pairAt<KEYS>(tiles + Tiles::s, p, channelPair));
        const float2 b = unpack2<T>(*pairAt<KEYS>(tiles + Tiles::ds, p, channelPair));
        through[0] = fmaf(a.x, b.x, through[0]), through[1] = fmaf(a.y, b.y, through[1]);
      }
    }
    __syncthreads();  // the tiles are free
    float* slots = floats(Tiles::slots) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < COLS / 8; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) slots[(i * 8 + j) * THREADS] = dq[0][i][j], slots[(i * 8 + 4 + j) * THREADS] = dk[0][i][j];
    float* parts = floats(Tiles::parts);
    parts[rowGroup * NT + channelPair] = through[0], parts[rowGroup * NT + channelPair + 1] = through[1];
    __syncthreads();
    if (threadIdx.x < NT) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < GROUPS; i++) sum += parts[i * NT + threadIdx.x];
      floats(Tiles::through)[threadIdx.x] = sum;
    }
  }

  gradientsWithin<T, NT, PT>(s, g, head, *reinterpret_cast<const Rows*>(tiles + Tiles::rows));
}

}  // namespace mm::cuda::chunk_scan
