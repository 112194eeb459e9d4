// selectiveScanBackward of 16 states in 2-byte operands, B and C varying: the channel walk of selective_scan_backward.cuh with each
// channel's states on two warps, eight each, which doubles the warps that hide each other's waiting, and 8 steps at a time, which
// lets 16 warps of a multiprocessor have their registers. 26 instructions a state and step of a channel, 17 of them in the loop over
// states, 65 % of the issue slots; with a thread a channel and 16 steps, 8 warps, it was a third.
//
// A block is 128 channels by two halves of the states. 16 steps begin with the states before them, which a sweep left: eight steps
// forward give the states in their middle, then the later and the earlier eight are walked back. The two warps of a channel share
// the preparation of steps (four each) and add up their sums over states through shared memory.
//
// dB and dC are sums over the block's channels: tensor cores add the four lanes of a group (tf32 products with ones, f32 sums) and
// place the 16 sums of a state in one tile; its rows and the warps' tiles are added from shared memory after the loop over states.
//
// Tiles of 16 steps and states come and go by bulk tensor copies (sm_90), results in the place of the operands, one tile ahead. By
// cp.async and stores of the threads, tiles took a quarter of the time: 39.1 ms for B 8, D 4096, L 32768 on an H100, 30.4 with bulk
// copies, 29.2 with two tiles and the sweep's operands through shared memory (sweep 5.7, this kernel 23.1).
#pragma once
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"
#include "cuda/selective_scan_backward.cuh"
#include "cuda/selective_scan_lanes.cuh"

namespace mm::cuda {

constexpr int kHalvesChannels = 128, kHalvesSteps = kLanesBorder, kHalvesWalk = 8, kHalvesHeld = kLanesStates / 2;

template <class T>
struct ScanHalvesBlock {
  static constexpr int kTile = kHalvesChannels * kHalvesSteps * int(sizeof(T)), kSlots = kLanesStates * kHalvesChannels;
  static constexpr int kProjections = 2 * kLanesStates * kHalvesSteps;
  char *u, *delta, *dOut, *z;            // two tiles each
  float *a, *ds, *da, *border, *middle;  // [state][channel]
  float* projections;                    // of two tiles: B and C, [state][step]
  char* raw;                             // B and C of the next tile, 16-byte pieces as they came
  float4* sums;                          // [warp][state of its half][lane]; between two loops what the warps of a channel exchange
  uint64_t* barriers;                    // of the two tiles, of the states
  uint32_t bytes;

  __host__ __device__ __forceinline__ explicit ScanHalvesBlock(char* base) {
    ScanShared s{base, 0};
    for (char** tile : {&u, &delta, &dOut, &z}) *tile = s.take<char>(true, 2 * kTile);
    for (float** slots : {&border, &a, &ds, &da, &middle}) *slots = s.take<float>(true, kSlots);
    projections = s.take<float>(true, 2 * kProjections), raw = s.take<char>(true, 64 * 16);
    sums = s.take<float4>(true, 8 * kHalvesHeld * 32);
    barriers = s.take<uint64_t>(true, 3);
    bytes = s.used;
  }
};

// The two warps of 32 channels wait for each other.
__device__ __forceinline__ void meetHalves(int pair) { asm volatile("bar.sync %0, 64;" ::"r"(1 + pair) : "memory"); }

// Four steps to the other half, and its four steps from there.
__device__ __forceinline__ void giveHalf(float4* slot, const float* v) { *slot = make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ void takeHalf(const float4* slot, float* v) {
  const float4 p = *slot;
  v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w;
}

// Maps of the tiles, (L, channels of a group, G, B), and of the states that the sweep left, (channels of a group, G, borders N, B).
struct ScanHalvesMaps {
  CUtensorMap u, delta, dOut, z, dU, dDelta, dZ, borders;
};

__device__ __forceinline__ void copyScanTile(uint32_t tile, const CUtensorMap& map, uint32_t barrier, int t, const ScanPlace& place) {
  copyBox(tile, map, barrier, t, place.block * kHalvesChannels, place.group, int(place.b));
}
__device__ __forceinline__ void storeScanTile(const CUtensorMap& map, uint32_t tile, int t, const ScanPlace& place) {
  storeBox(map, tile, t, place.block * kHalvesChannels, place.group, int(place.b));
}

template <class T>
__global__ void __launch_bounds__(256, 2) selectiveScanBwdHalvesKernel(const ScanBackward v, const __grid_constant__ ScanHalvesMaps maps) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) char scanHalvesShared[];
  constexpr int STEPS = kHalvesSteps, WALK = kHalvesWalk, HELD = kHalvesHeld, CHANNELS = kHalvesChannels;
  using Block = ScanHalvesBlock<T>;
  const ScanShape& shape = v.in.shape;
  const Block m(scanHalvesShared);
  const ScanPlace place(shape, CHANNELS);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pair = warp % 4, half = warp / 4, row = threadIdx.x % CHANNELS;
  const bool active = row < place.valid, gated = v.in.z.data, wantsY = v.dZ.data, wantsSums = v.partialB || v.partialC;
  const int64_t d = place.channel + row, chunkRow = int64_t(place.chunk) * kLanesStates + half * HELD,
      chunkRows = int64_t(shape.chunks) * kLanesStates, borders = (shape.length + kLanesBorder - 1) / kLanesBorder;
  // This thread's states: slots[k * CHANNELS + ...]
  constexpr int BORDER = 0, A = Block::kSlots, DS = 2 * Block::kSlots, DA = 3 * Block::kSlots, MIDDLE = 4 * Block::kSlots;
  float* const slots = m.border + half * HELD * CHANNELS + row;
  constexpr int C = kLanesStates * STEPS;  // from B to C
#pragma unroll
  for (int k = 0; k < HELD; k++) {
    const int n = half * HELD + k;
    slots[k * CHANNELS + A] = active ? v.in.a.at(d * kLanesStates + n) : 0.f;
    slots[k * CHANNELS + DS] = !active ? 0.f : v.carries ? v.carries[place.at(shape, chunkRow + k, chunkRows, row)] : v.dLastState
        ? v.dLastState[(place.b * shape.channels + d) * kLanesStates + n] : 0.f;
    slots[k * CHANNELS + DA] = 0.f;
  }
  const float bias = v.in.bias.data && active ? v.in.bias.at(d) : 0.f, skip = v.in.d.data && active ? v.in.d.at(d) : 0.f;
  float dSkip = 0.f, dBias = 0.f;
  float4 *mine = m.sums + warp * HELD * 32 + lane, *others = m.sums + (warp ^ 4) * HELD * 32 + lane;  // exchange, 8 slots of 32
  float ones[8];  // the tile's column that a product adds to
#pragma unroll
  for (int i = 0; i < 8; i++) ones[i] = lane / 4 == i ? 1.f : 0.f;

  const uint32_t tileBarrier = sharedAddress(m.barriers), borderBarrier = tileBarrier + 16;
  if (threadIdx.x == 0) {
    initBarrier(tileBarrier, 1), initBarrier(tileBarrier + 8, 1), initBarrier(borderBarrier, 1), fenceBarriers();
    prefetchMap(maps.u), prefetchMap(maps.delta), prefetchMap(maps.dOut), prefetchMap(maps.borders);
  }
  // A tile by one thread, once what was stored from its place is read.
  const auto loadTile = [&](int64_t t, int stage) {
    if (threadIdx.x) return;
    const uint32_t barrier = tileBarrier + stage * 8, at = stage * Block::kTile;
    waitStoresRead();
    arriveExpecting(barrier, (gated ? 4 : 3) * Block::kTile);
    copyScanTile(sharedAddress(m.delta) + at, maps.delta, barrier, int(t), place);
    copyScanTile(sharedAddress(m.u) + at, maps.u, barrier, int(t), place);
    copyScanTile(sharedAddress(m.dOut) + at, maps.dOut, barrier, int(t), place);
    if (gated) copyScanTile(sharedAddress(m.z) + at, maps.z, barrier, int(t), place);
  };
  const auto loadBorders = [&](int64_t border) {
    if (threadIdx.x) return;
    arriveExpecting(borderBarrier, Block::kSlots * 4);
    copyBox(sharedAddress(m.border), maps.borders, borderBarrier, place.block * CHANNELS, place.group, int(border) * kLanesStates,
        int(place.b));
  };
  // Of 64 threads each brings eight steps of a state of B or C, and turns them into floats once they are there.
  const int pieceOf = threadIdx.x % 32 / 2, pieceFrom = threadIdx.x % 2 * 8;
  const auto loadProjections = [&](int64_t t) {
    if (threadIdx.x >= 64) return;
    const bool there = t + pieceFrom < place.end;
    const T* from = static_cast<const T*>(threadIdx.x < 32 ? v.in.b.data : v.in.c.data) +
        ((place.b * shape.groups + place.group) * kLanesStates + pieceOf) * shape.length + t + pieceFrom;
    copyAsync16(sharedAddress(m.raw) + threadIdx.x * 16, there ? from : static_cast<const T*>(v.in.b.data), there);
    commitAsync();
  };
  const auto unpackProjections = [&](int stage) {
    if (threadIdx.x >= 64) return;
    float values[8];
    waitAsync<0>();
    readPacked<T>(m.raw + threadIdx.x * 16, values);
    writeFloats(m.projections + stage * Block::kProjections + (threadIdx.x / 32 * kLanesStates + pieceOf) * STEPS + pieceFrom, values);
  };
  // This half's four of the eight steps from `at` on, in every tile at the same place.
  const auto own = [&](int at) { return ScanTile<T, STEPS>::at(row, at) + uint32_t(half) * 8; };

  const int64_t firstTile = place.begin / STEPS, lastTile = (place.end + STEPS - 1) / STEPS - 1;
  __syncthreads();
  if (lastTile >= firstTile) loadTile(lastTile * STEPS, 0), loadBorders(lastTile), loadProjections(lastTile * STEPS), unpackProjections(0);
  __syncthreads();
  int turn = 0;
  for (int64_t tile = lastTile; tile >= firstTile; tile--, turn++) {
    const int64_t t = tile * STEPS;
    const int left = scanLeft(t, place.end, STEPS), stage = turn % 2;
    char *const tileU = m.u + stage * Block::kTile, *const tileDelta = m.delta + stage * Block::kTile,
        *const tileOut = m.dOut + stage * Block::kTile, *const tileZ = m.z + stage * Block::kTile;
    const float* const projections = m.projections + stage * Block::kProjections + half * HELD * STEPS;
    waitBarrier(tileBarrier + stage * 8, turn / 2 % 2);
    {
      // To the middle of the 16 steps.
      float step[WALK], du[WALK];
      const uint32_t at = own(0);
      const auto prepare = [&](auto h) {
        constexpr int H = decltype(h)::value;
        float raw[4], u[4];
        readPacked<T>(tileDelta + at, raw);
        readPacked<T>(tileU + at, u);
        scanStepsOf<T>(raw, bias, shape.softplus, 4 * H, left);
#pragma unroll
        for (int i = 0; i < 4; i++) step[4 * H + i] = raw[i], du[4 * H + i] = raw[i] * u[i] * kLn2;
        giveHalf(others + 6 * 32, step + 4 * H), giveHalf(others + 7 * 32, du + 4 * H);
        meetHalves(pair);
        takeHalf(mine + 6 * 32, step + 4 - 4 * H), takeHalf(mine + 7 * 32, du + 4 - 4 * H);
      };
      if (half) prepare(std::integral_constant<int, 1>{});
      else prepare(std::integral_constant<int, 0>{});
      waitBarrier(borderBarrier, turn % 2);
      if (v.starts && active) {
        const float sum = v.borderSums[place.at(shape, tile, borders, row)];
        float starts[HELD];
#pragma unroll
        for (int k = 0; k < HELD; k++) starts[k] = v.starts[place.at(shape, chunkRow + k, chunkRows, row)];
#pragma unroll
        for (int k = 0; k < HELD; k++)
          slots[k * CHANNELS + BORDER] = fmaf(exp2Approximate(sum * slots[k * CHANNELS + A]), starts[k], slots[k * CHANNELS + BORDER]);
        fenceAsyncProxy();  // the next copy comes here
      }
      float* slot = slots;
      const float* projection = projections;
#pragma unroll 2
      for (int k = 0; k < HELD; k++, slot += CHANNELS, projection += STEPS) {
        const float a = slot[A];
        float s = slot[BORDER], b[WALK];
        readFloats(projection, b);
#pragma unroll
        for (int i = 0; i < WALK; i++) s = fmaf(exp2Approximate(step[i] * a), s, du[i] * b[i]);
        slot[MIDDLE] = s;
      }
    }
#pragma unroll 1
    for (int sub = WALK; sub >= 0; sub -= WALK) {
      // stepU: gradient of step u, dStep: of the step through the decays
      float step[WALK], du[WALK], dy[WALK], stepU[WALK], dStep[WALK], y[WALK];
      const uint32_t at = own(sub);
      const auto prepare = [&](auto h) {
        constexpr int H = decltype(h)::value;
        float raw[4], u[4], up[4];
        readPacked<T>(tileDelta + at, raw);
        readPacked<T>(tileU + at, u);
        readPacked<T>(tileOut + at, up);
        scanStepsOf<T>(raw, bias, shape.softplus, sub + 4 * H, left);
        if (gated) {
          float z[4];
          readPacked<T>(tileZ + at, z);
#pragma unroll
          for (int i = 0; i < 4; i++) up[i] *= z[i] * sigmoidFor<T>(z[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) step[4 * H + i] = raw[i], du[4 * H + i] = raw[i] * u[i] * kLn2, dy[4 * H + i] = up[i];
        giveHalf(others, step + 4 * H), giveHalf(others + 32, du + 4 * H), giveHalf(others + 2 * 32, dy + 4 * H);
        meetHalves(pair);
        takeHalf(mine, step + 4 - 4 * H), takeHalf(mine + 32, du + 4 - 4 * H), takeHalf(mine + 2 * 32, dy + 4 - 4 * H);
      };
      if (half) prepare(std::integral_constant<int, 1>{});
      else prepare(std::integral_constant<int, 0>{});
#pragma unroll
      for (int i = 0; i < WALK; i++) stepU[i] = dStep[i] = y[i] = 0.f;
      float* slot = slots;
      const float* before = slots + (sub ? MIDDLE : BORDER);
      const float* projection = projections + sub;
      float4* sums = mine;
#pragma unroll 1
      for (int k = 0; k < HELD; k++, slot += CHANNELS, before += CHANNELS, projection += STEPS, sums += 32) {
        const float a = slot[A], start = *before;
        float ds = slot[DS], da = 0.f, b[WALK], c[WALK], decay[WALK], s[WALK], quads[WALK / 2][4], tile[4] = {};
        readFloats(projection, b);
        readFloats(projection + C, c);
#pragma unroll
        for (int i = 0; i < WALK; i++) {
          decay[i] = exp2Approximate(step[i] * a);
          s[i] = fmaf(decay[i], i ? s[i - 1] : start, du[i] * b[i]);
        }
        if (wantsY)
#pragma unroll
          for (int i = 0; i < WALK; i++) y[i] = fmaf(c[i], s[i], y[i]);
#pragma unroll
        for (int i = WALK - 1; i >= 0; i--) {
          ds = fmaf(dy[i], c[i], ds);
          stepU[i] = fmaf(ds, b[i], stepU[i]);
          const float decayed = ds * decay[i], w = decayed * (i ? s[i - 1] : start);
          quads[i / 2][i % 2 * 2] = ds * du[i], quads[i / 2][i % 2 * 2 + 1] = dy[i] * s[i];
          da = fmaf(w, step[i], da);
          dStep[i] = fmaf(w, a, dStep[i]);
          ds = decayed;
        }
        slot[DS] = ds;
        slot[DA] += da;
        // Lane 4g + t holds of the group g: dB of steps 2t and 2t + 1, dC of both.
#pragma unroll
        for (int i = 0; i < WALK / 2; i++)
          mmaTf32(tile, quads[i][0], quads[i][1], quads[i][2], quads[i][3], ones[2 * i], ones[2 * i + 1]);
        *sums = make_float4(tile[0], tile[1], tile[2], tile[3]);
      }
      __syncthreads();
      if (tile > firstTile) {
        if (sub) loadTile(t - STEPS, stage ^ 1), loadProjections(t - STEPS);
        else loadBorders(tile - 1), unpackProjections(stage ^ 1);
      }
      if (wantsSums) {
        // Lanes of one t add different groups and warps; two exchanges leave each one of the four sums.
        const int step2 = lane % 4, parity = lane / 4 % 2, upper = lane / 8 % 2, k = warp % 4 * 2 + lane / 16;
        const float4* from = m.sums + ((half * 4 + upper * 2) * HELD + k) * 32 + parity * 4 + step2;
        float total[4] = {}, two[2], one[1];
#pragma unroll
        for (int w = 0; w < 2; w++)
#pragma unroll
          for (int g = 0; g < 4; g++) {
            const float4 p = from[w * HELD * 32 + g * 8];
            total[0] += p.x, total[1] += p.y, total[2] += p.z, total[3] += p.w;
          }
        foldLanes(total, lane, 8, two);
        foldLanes(two, lane, 4, one);
        float* to = upper ? v.partialC : v.partialB;
        const int at = sub + 2 * step2 + parity;
        const int64_t part = (place.b * shape.groups + place.group) * shape.blocks + place.block;
        if (to && at < left) to[(part * kLanesStates + half * HELD + k) * shape.length + t + at] = one[0];
      }
      __syncthreads();
      const auto finish = [&](auto h) {
        constexpr int H = decltype(h)::value, OTHER = 4 - 4 * H;
        giveHalf(others + 3 * 32, stepU + OTHER), giveHalf(others + 4 * 32, dStep + OTHER);
        if (wantsY) giveHalf(others + 5 * 32, y + OTHER);
        meetHalves(pair);
        float du4[4], dStep4[4], u[4], part[4];
        readPacked<T>(tileU + at, u);
        takeHalf(mine + 3 * 32, du4), takeHalf(mine + 4 * 32, dStep4);
        if (wantsY) {
          float z[4], up[4];
          takeHalf(mine + 5 * 32, part);
          readPacked<T>(tileZ + at, z);
          readPacked<T>(tileOut + at, up);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float gate = sigmoidFor<T>(z[i]);
            z[i] = up[i] * fmaf(skip, u[i], y[4 * H + i] + part[i]) * gate * fmaf(z[i], 1.f - gate, 1.f);
          }
          storePacked<4>(reinterpret_cast<T*>(tileZ + at), z);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float gradient = stepU[4 * H + i] + du4[i];
          dSkip = fmaf(dy[4 * H + i], u[i], dSkip);
          dStep4[i] = fmaf(gradient, u[i], dStep[4 * H + i] + dStep4[i]);
          du4[i] = fmaf(gradient, step[4 * H + i] * kLn2, dy[4 * H + i] * skip);
        }
        storePacked<4>(reinterpret_cast<T*>(tileU + at), du4);
        if (shape.softplus) {
          float raw[4];
          readPacked<T>(tileDelta + at, raw);
#pragma unroll
          for (int i = 0; i < 4; i++) dStep4[i] *= sigmoidFor<T>(raw[i] + bias);
        }
        storePacked<4>(reinterpret_cast<T*>(tileDelta + at), dStep4);
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (sub + 4 * H + i < left) dBias += dStep4[i];
      };
      if (half) finish(std::integral_constant<int, 1>{});
      else finish(std::integral_constant<int, 0>{});
    }
    fenceAsyncProxy();
    __syncthreads();
    if (threadIdx.x == 0) {
      if (v.dU.data) storeScanTile(maps.dU, sharedAddress(tileU), int(t), place);
      if (v.dDelta.data) storeScanTile(maps.dDelta, sharedAddress(tileDelta), int(t), place);
      if (wantsY) storeScanTile(maps.dZ, sharedAddress(tileZ), int(t), place);
      commitStores();
    }
  }
  if (threadIdx.x == 0) waitStoresRead();
  // Both halves hold sums of the same channel.
  if (half) mine[0] = make_float4(dSkip, dBias, 0.f, 0.f);
  meetHalves(pair);
  if (!active) return;
  const int64_t rows = (place.b * shape.chunks + place.chunk) * v.rows;
  const auto put = [&](int64_t at, float value) { v.partial[(rows + at) * shape.channels + d] = value; };
#pragma unroll
  for (int k = 0; k < HELD; k++) put(half * HELD + k, slots[k * CHANNELS + DA] * kLn2);
  if (!half) put(v.rowD, dSkip + others[0].x), put(v.rowD + 1, dBias + others[0].y);
#else
  __trap();
#endif
}

}  // namespace mm::cuda
