// selectiveScanBackward of 16 states in 2-byte operands, B and C varying: the channel walk of selective_scan_backward.cuh with each
// channel's states on two warps, eight each, which doubles the warps that hide each other's waiting, and 8 steps at a time, which
// lets 16 warps have their registers.
//
// A block is 128 channels by two halves of the states. 16 steps begin with the states before them, which a sweep left: eight steps
// forward give the states in their middle, then the later and the earlier eight are walked back. The two warps of a channel share
// the preparation of steps (four each) and add up their sums over states through shared memory.
//
// dB and dC are sums over the block's channels: tensor cores add the four lanes of a group (tf32 products with ones, f32 sums) and
// place the 16 sums of a state in one tile; its rows and the warps' tiles are added from shared memory after the loop over states.
//
// BULK (sm_90): tiles and states come and go by bulk tensor copies. By cp.async and stores of the threads, tiles took a quarter of
// the time.
#pragma once
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"
#include "cuda/selective_scan_backward.cuh"
#include "cuda/selective_scan_lanes.cuh"

namespace mm::cuda {

constexpr int kHalvesChannels = 128, kHalvesSteps = 32, kHalvesWalk = 8, kHalvesHeld = kLanesStates / 2;

template <class T>
struct ScanHalvesBlock {
  static constexpr int kTile = kHalvesChannels * kHalvesSteps * int(sizeof(T)), kSlots = kLanesStates * kHalvesChannels;
  char *u, *delta, *dOut, *z;
  float *a, *ds, *da, *border, *middle;  // [state][channel]
  float *b, *c;                          // [state][step]
  float4* sums;                          // [warp][state of its half][lane]; between two loops what the warps of a channel exchange
  uint64_t* barriers;                    // of the tiles, of the states
  uint32_t bytes;

  __host__ __device__ __forceinline__ explicit ScanHalvesBlock(char* base) {
    ScanShared s{base, 0};
    for (char** tile : {&u, &delta, &dOut, &z}) *tile = s.take<char>(true, kTile);
    for (float** slots : {&border, &a, &ds, &da, &middle}) *slots = s.take<float>(true, kSlots);
    b = s.take<float>(true, kLanesStates * kHalvesSteps), c = s.take<float>(true, kLanesStates * kHalvesSteps);
    sums = s.take<float4>(true, 8 * kHalvesHeld * 32);
    barriers = s.take<uint64_t>(true, 2);
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

// Maps of the tiles, (L, channels of a group, G, B), and of the states that the sweep left, (D, borders N, B).
struct ScanHalvesMaps {
  CUtensorMap u, delta, dOut, z, dU, dDelta, dZ, borders;
};

__device__ __forceinline__ void copyScanTile(uint32_t tile, const CUtensorMap& map, uint32_t barrier, int t, const ScanPlace& place) {
  copyBox(tile, map, barrier, t, place.block * kHalvesChannels, place.group, int(place.b));
}
__device__ __forceinline__ void storeScanTile(const CUtensorMap& map, uint32_t tile, int t, const ScanPlace& place) {
  storeBox(map, tile, t, place.block * kHalvesChannels, place.group, int(place.b));
}

template <class T, bool BULK>
__global__ void __launch_bounds__(256, 2) selectiveScanBwdHalvesKernel(const ScanBackward v, const __grid_constant__ ScanHalvesMaps maps) {
  extern __shared__ __align__(1024) char scanHalvesShared[];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr bool COPIES = false;  // not launched there
#else
  constexpr bool COPIES = BULK;
#endif
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
  const float* const projections = m.b + half * HELD * STEPS;
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

  const uint32_t tileBarrier = sharedAddress(m.barriers), borderBarrier = tileBarrier + 8;
  int tileTurn = 0, borderTurn = 0;
  if constexpr (COPIES)
    if (threadIdx.x == 0) {
      initBarrier(tileBarrier, 1), initBarrier(borderBarrier, 1), fenceBarriers();
      prefetchMap(maps.u), prefetchMap(maps.delta), prefetchMap(maps.dOut), prefetchMap(maps.borders);
    }
  __syncthreads();

  const bool wholeBorders = shape.channels % 4 == 0 && place.channel % 4 == 0 && place.valid % 4 == 0;
  const auto loadBorders = [&](int64_t border) {
    if constexpr (COPIES) {
      if (threadIdx.x == 0) {
        arriveExpecting(borderBarrier, Block::kSlots * 4);
        copyBox(sharedAddress(m.border), maps.borders, borderBarrier, int(place.channel), int(border) * kLanesStates, int(place.b), 0);
      }
    } else {
      const float* from = v.borders + place.at(shape, border * kLanesStates, borders * kLanesStates, 0);
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const int i = k * 256 + int(threadIdx.x), n = i / 32, channel = i % 32 * 4;
        float* to = m.border + n * CHANNELS + channel;
        const float* p = from + n * shape.channels + channel;
        if (wholeBorders) copyAsync16(sharedAddress(to), channel < place.valid ? p : from, channel < place.valid);
        else
#pragma unroll
          for (int e = 0; e < 4; e++) to[e] = channel + e < place.valid ? p[e] : 0.f;
      }
      commitAsync();
    }
  };
  // This half's four of the eight steps from `at` on, in every tile at the same place.
  const auto own = [&](int at) { return ScanTile<T, STEPS>::at(row, at) + uint32_t(half) * 8; };

  bool first = true;
  for (int64_t tile = (place.end + STEPS - 1) / STEPS - 1; tile * STEPS >= place.begin; tile--) {
    const int64_t t = tile * STEPS;
    const int left = scanLeft(t, place.end, STEPS);
    if constexpr (COPIES) {
      if (threadIdx.x == 0) {
        waitStoresRead();
        arriveExpecting(tileBarrier, (gated ? 4 : 3) * Block::kTile);
        copyScanTile(sharedAddress(m.delta), maps.delta, tileBarrier, int(t), place);
        copyScanTile(sharedAddress(m.u), maps.u, tileBarrier, int(t), place);
        copyScanTile(sharedAddress(m.dOut), maps.dOut, tileBarrier, int(t), place);
        if (gated) copyScanTile(sharedAddress(m.z), maps.z, tileBarrier, int(t), place);
      }
    } else {
      loadScanRows<T, STEPS, 16>(m.u, v.in.u, place, t, left, warp * 16);
      loadScanRows<T, STEPS, 16>(m.delta, v.in.delta, place, t, left, warp * 16);
      loadScanRows<T, STEPS, 16>(m.dOut, v.dOut, place, t, left, warp * 16);
      if (gated) loadScanRows<T, STEPS, 16>(m.z, v.in.z, place, t, left, warp * 16);
      commitAsync();
    }
    if (first) loadBorders((t + left - 1) / kLanesBorder), first = false;
    if (threadIdx.x < 128) {
      const int i = threadIdx.x % 64, from = i % 4 * 8;
      const Pack<T, 8> piece = loadScanPiece<T>(threadIdx.x < 64 ? v.in.b : v.in.c, shape, place, i / 4, t + from, left - from);
      float values[8];
      unpack(piece, values);
      writeFloats((threadIdx.x < 64 ? m.b : m.c) + i / 4 * STEPS + from, values);
    }
    if (t > place.begin) {
      prefetchScanRow(half ? v.in.delta : v.in.u, place, t - STEPS, sizeof(T), row);
      if (!half || gated) prefetchScanRow(half ? v.in.z : v.dOut, place, t - STEPS, sizeof(T), row);
    }
    if constexpr (COPIES) waitBarrier(tileBarrier, tileTurn), tileTurn ^= 1;
    else waitAsync<0>();
    __syncthreads();
#pragma unroll 1
    for (int group = left > kLanesBorder ? kLanesBorder : 0; group >= 0; group -= kLanesBorder) {
      {
        // To the middle of the 16 steps.
        float step[WALK], du[WALK];
        const uint32_t at = own(group);
        const auto prepare = [&](auto h) {
          constexpr int H = decltype(h)::value;
          float raw[4], u[4];
          readPacked<T>(m.delta + at, raw);
          readPacked<T>(m.u + at, u);
          scanStepsOf<T>(raw, bias, shape.softplus, group + 4 * H, left);
#pragma unroll
          for (int i = 0; i < 4; i++) step[4 * H + i] = raw[i], du[4 * H + i] = raw[i] * u[i] * kLn2;
          giveHalf(others + 6 * 32, step + 4 * H), giveHalf(others + 7 * 32, du + 4 * H);
          meetHalves(pair);
          takeHalf(mine + 6 * 32, step + 4 - 4 * H), takeHalf(mine + 7 * 32, du + 4 - 4 * H);
        };
        if (half) prepare(std::integral_constant<int, 1>{});
        else prepare(std::integral_constant<int, 0>{});
        if constexpr (COPIES) {
          waitBarrier(borderBarrier, borderTurn), borderTurn ^= 1;
        } else {
          waitAsync<0>();
          __syncthreads();
        }
        if (v.starts && active) {
          const float sum = v.borderSums[place.at(shape, (t + group) / kLanesBorder, borders, row)];
          float starts[HELD];
#pragma unroll
          for (int k = 0; k < HELD; k++) starts[k] = v.starts[place.at(shape, chunkRow + k, chunkRows, row)];
#pragma unroll
          for (int k = 0; k < HELD; k++)
            slots[k * CHANNELS + BORDER] = fmaf(exp2Approximate(sum * slots[k * CHANNELS + A]), starts[k], slots[k * CHANNELS + BORDER]);
          if constexpr (COPIES) fenceAsyncProxy();  // the next copy comes here
        }
        float* slot = slots;
        const float* projection = projections + group;
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
      for (int sub = group + WALK; sub >= group; sub -= WALK) {
        // stepU: gradient of step u, dStep: of the step through the decays
        float step[WALK], du[WALK], dy[WALK], stepU[WALK], dStep[WALK], y[WALK];
        const uint32_t at = own(sub);
        const auto prepare = [&](auto h) {
          constexpr int H = decltype(h)::value;
          float raw[4], u[4], up[4];
          readPacked<T>(m.delta + at, raw);
          readPacked<T>(m.u + at, u);
          readPacked<T>(m.dOut + at, up);
          scanStepsOf<T>(raw, bias, shape.softplus, sub + 4 * H, left);
          if (gated) {
            float z[4];
            readPacked<T>(m.z + at, z);
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
        const float* before = slots + (sub > group ? MIDDLE : BORDER);
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
        if (sub == group && t + group > place.begin) loadBorders((t + group) / kLanesBorder - 1);
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
          readPacked<T>(m.u + at, u);
          takeHalf(mine + 3 * 32, du4), takeHalf(mine + 4 * 32, dStep4);
          if (wantsY) {
            float z[4], up[4];
            takeHalf(mine + 5 * 32, part);
            readPacked<T>(m.z + at, z);
            readPacked<T>(m.dOut + at, up);
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const float gate = sigmoidFor<T>(z[i]);
              z[i] = up[i] * fmaf(skip, u[i], y[4 * H + i] + part[i]) * gate * fmaf(z[i], 1.f - gate, 1.f);
            }
            storePacked<4>(reinterpret_cast<T*>(m.z + at), z);
          }
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float gradient = stepU[4 * H + i] + du4[i];
            dSkip = fmaf(dy[4 * H + i], u[i], dSkip);
            dStep4[i] = fmaf(gradient, u[i], dStep[4 * H + i] + dStep4[i]);
            du4[i] = fmaf(gradient, step[4 * H + i] * kLn2, dy[4 * H + i] * skip);
          }
          storePacked<4>(reinterpret_cast<T*>(m.u + at), du4);
          if (shape.softplus) {
            float raw[4];
            readPacked<T>(m.delta + at, raw);
#pragma unroll
            for (int i = 0; i < 4; i++) dStep4[i] *= sigmoidFor<T>(raw[i] + bias);
          }
          storePacked<4>(reinterpret_cast<T*>(m.delta + at), dStep4);
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (sub + 4 * H + i < left) dBias += dStep4[i];
        };
        if (half) finish(std::integral_constant<int, 1>{});
        else finish(std::integral_constant<int, 0>{});
      }
    }
    if constexpr (COPIES) {
      fenceAsyncProxy();
      __syncthreads();
      if (threadIdx.x == 0) {
        if (v.dU.data) storeScanTile(maps.dU, sharedAddress(m.u), int(t), place);
        if (v.dDelta.data) storeScanTile(maps.dDelta, sharedAddress(m.delta), int(t), place);
        if (wantsY) storeScanTile(maps.dZ, sharedAddress(m.z), int(t), place);
        commitStores();
      }
    } else {
      __syncthreads();
      if (v.dU.data) storeScanRows<T, STEPS, 16>(m.u, v.dU, place, t, left, warp * 16);
      if (v.dDelta.data) storeScanRows<T, STEPS, 16>(m.delta, v.dDelta, place, t, left, warp * 16);
      if (wantsY) storeScanRows<T, STEPS, 16>(m.z, v.dZ, place, t, left, warp * 16);
      __syncwarp();
    }
  }
  if constexpr (COPIES)
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
}

}  // namespace mm::cuda
