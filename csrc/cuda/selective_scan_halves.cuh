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
#pragma once
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
  uint32_t bytes;

  __host__ __device__ __forceinline__ explicit ScanHalvesBlock(char* base) {
    ScanShared s{base, 0};
    for (char** tile : {&u, &delta, &dOut, &z}) *tile = s.take<char>(true, kTile);
    for (float** slots : {&a, &ds, &da, &border, &middle}) *slots = s.take<float>(true, kSlots);
    b = s.take<float>(true, kLanesStates * kHalvesSteps), c = s.take<float>(true, kLanesStates * kHalvesSteps);
    sums = s.take<float4>(true, 8 * kHalvesHeld * 32);
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

template <class T>
__global__ void __launch_bounds__(256, 2) selectiveScanBwdHalvesKernel(const ScanBackward v) {
  extern __shared__ __align__(128) char scanShared[];
  constexpr int STEPS = kHalvesSteps, WALK = kHalvesWalk, HELD = kHalvesHeld;
  const ScanShape& shape = v.in.shape;
  const ScanHalvesBlock<T> m(scanShared);
  const ScanPlace place(shape, kHalvesChannels);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pair = warp % 4, half = warp / 4, row = threadIdx.x % kHalvesChannels;
  const bool active = row < place.valid, gated = v.in.z.data, wantsY = v.dZ.data, wantsSums = v.partialB || v.partialC;
  const int64_t d = place.channel + row, chunkRow = int64_t(place.chunk) * kLanesStates, chunkRows = int64_t(shape.chunks) * kLanesStates;
  const int64_t borders = (shape.length + kLanesBorder - 1) / kLanesBorder;
  const auto slot = [&](float* slots, int n) -> float& { return slots[n * kHalvesChannels + row]; };
  for (int k = 0; k < HELD; k++) {
    const int n = half * HELD + k;
    slot(m.a, n) = active ? v.in.a.at(d * kLanesStates + n) : 0.f;
    slot(m.ds, n) = !active ? 0.f : v.carries ? v.carries[place.at(shape, chunkRow + n, chunkRows, row)] : v.dLastState
        ? v.dLastState[d * kLanesStates + place.b * shape.channels * kLanesStates + n] : 0.f;
    slot(m.da, n) = 0.f;
  }
  const float bias = v.in.bias.data && active ? v.in.bias.at(d) : 0.f, skip = v.in.d.data && active ? v.in.d.at(d) : 0.f;
  float dSkip = 0.f, dBias = 0.f;
  float4 *mine = m.sums + warp * HELD * 32 + lane, *others = m.sums + (warp ^ 4) * HELD * 32 + lane;  // exchange, 8 slots of 32
  float ones[8];  // the tile's column that a product adds to
#pragma unroll
  for (int i = 0; i < 8; i++) ones[i] = lane / 4 == i ? 1.f : 0.f;

  const bool wholeBorders = shape.channels % 4 == 0 && place.channel % 4 == 0 && place.valid % 4 == 0;
  const auto loadBorders = [&](int64_t border) {
    const float* from = v.borders + place.at(shape, border * kLanesStates, borders * kLanesStates, 0);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int i = k * 256 + int(threadIdx.x), n = i / 32, channel = i % 32 * 4;
      float* to = m.border + n * kHalvesChannels + channel;
      const float* p = from + n * shape.channels + channel;
      if (wholeBorders) copyAsync16(sharedAddress(to), channel < place.valid ? p : from, channel < place.valid);
      else
#pragma unroll
        for (int e = 0; e < 4; e++) to[e] = channel + e < place.valid ? p[e] : 0.f;
    }
    commitAsync();
  };
  // This half's four of eight steps from `at` on
  const auto readOwn = [&](const char* tile, int at, float (&out)[4]) { readScanPart<T, STEPS>(tile, row, at + 4 * half, out); };

  bool first = true;
  for (int64_t tile = (place.end + STEPS - 1) / STEPS - 1; tile * STEPS >= place.begin; tile--) {
    const int64_t t = tile * STEPS;
    const int left = scanLeft(t, place.end, STEPS);
    loadScanRows<T, STEPS, 16>(m.u, v.in.u, place, t, left, warp * 16);
    loadScanRows<T, STEPS, 16>(m.delta, v.in.delta, place, t, left, warp * 16);
    loadScanRows<T, STEPS, 16>(m.dOut, v.dOut, place, t, left, warp * 16);
    if (gated) loadScanRows<T, STEPS, 16>(m.z, v.in.z, place, t, left, warp * 16);
    commitAsync();
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
    waitAsync<0>();
    __syncthreads();
#pragma unroll 1
    for (int group = left > kLanesBorder ? kLanesBorder : 0; group >= 0; group -= kLanesBorder) {
      {
        // To the middle of the 16 steps.
        float step[WALK], du[WALK];
        const auto prepare = [&](auto h) {
          constexpr int H = decltype(h)::value;
          float raw[4], u[4];
          readOwn(m.delta, group, raw);
          readOwn(m.u, group, u);
          scanStepsOf<T>(raw, bias, shape.softplus, group + 4 * H, left);
#pragma unroll
          for (int i = 0; i < 4; i++) step[4 * H + i] = raw[i], du[4 * H + i] = raw[i] * u[i] * kLn2;
          giveHalf(others + 6 * 32, step + 4 * H), giveHalf(others + 7 * 32, du + 4 * H);
          waitAsync<0>();
          meetHalves(pair);
          takeHalf(mine + 6 * 32, step + 4 - 4 * H), takeHalf(mine + 7 * 32, du + 4 - 4 * H);
        };
        if (half) prepare(std::integral_constant<int, 1>{});
        else prepare(std::integral_constant<int, 0>{});
        __syncthreads();  // the borders are there
        const int64_t border = (t + group) / kLanesBorder;
        const float sum = v.starts && active ? v.borderSums[place.at(shape, border, borders, row)] : 0.f;
#pragma unroll 2
        for (int k = 0; k < HELD; k++) {
          const int n = half * HELD + k;
          const float a = slot(m.a, n);
          float s = slot(m.border, n), b[WALK];
          if (v.starts && active)
            slot(m.border, n) = s = fmaf(exp2Approximate(sum * a), v.starts[place.at(shape, chunkRow + n, chunkRows, row)], s);
          readFloats(m.b + n * STEPS + group, b);
#pragma unroll
          for (int i = 0; i < WALK; i++) s = fmaf(exp2Approximate(step[i] * a), s, du[i] * b[i]);
          slot(m.middle, n) = s;
        }
      }
#pragma unroll 1
      for (int sub = group + WALK; sub >= group; sub -= WALK) {
        float* starts = sub > group ? m.middle : m.border;
        // stepU: gradient of step u, dStep: of the step through the decays
        float step[WALK], du[WALK], dy[WALK], stepU[WALK], dStep[WALK], y[WALK];
        const auto prepare = [&](auto h) {
          constexpr int H = decltype(h)::value;
          float raw[4], u[4], up[4];
          readOwn(m.delta, sub, raw);
          readOwn(m.u, sub, u);
          readOwn(m.dOut, sub, up);
          scanStepsOf<T>(raw, bias, shape.softplus, sub + 4 * H, left);
          if (gated) {
            float z[4];
            readOwn(m.z, sub, z);
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
#pragma unroll 1
        for (int k = 0; k < HELD; k++) {
          const int n = half * HELD + k;
          const float a = slot(m.a, n), before = slot(starts, n);
          float ds = slot(m.ds, n), da = 0.f, b[WALK], c[WALK], decay[WALK], s[WALK], quads[WALK / 2][4], tile[4] = {};
          readFloats(m.b + n * STEPS + sub, b);
          readFloats(m.c + n * STEPS + sub, c);
#pragma unroll
          for (int i = 0; i < WALK; i++) {
            decay[i] = exp2Approximate(step[i] * a);
            s[i] = fmaf(decay[i], i ? s[i - 1] : before, du[i] * b[i]);
          }
          if (wantsY)
#pragma unroll
            for (int i = 0; i < WALK; i++) y[i] = fmaf(c[i], s[i], y[i]);
#pragma unroll
          for (int i = WALK - 1; i >= 0; i--) {
            ds = fmaf(dy[i], c[i], ds);
            stepU[i] = fmaf(ds, b[i], stepU[i]);
            const float decayed = ds * decay[i], w = decayed * (i ? s[i - 1] : before);
            quads[i / 2][i % 2 * 2] = ds * du[i], quads[i / 2][i % 2 * 2 + 1] = dy[i] * s[i];
            da = fmaf(w, step[i], da);
            dStep[i] = fmaf(w, a, dStep[i]);
            ds = decayed;
          }
          slot(m.ds, n) = ds;
          slot(m.da, n) += da;
          // Lane 4g + t holds of the group g: dB of steps 2t and 2t + 1, dC of both.
#pragma unroll
          for (int i = 0; i < WALK / 2; i++)
            mmaTf32(tile, quads[i][0], quads[i][1], quads[i][2], quads[i][3], ones[2 * i], ones[2 * i + 1]);
          mine[k * 32] = make_float4(tile[0], tile[1], tile[2], tile[3]);
        }
        __syncthreads();
        if (sub == group && t + group > place.begin) loadBorders((t + group) / kLanesBorder - 1);
        if (wantsSums) {
          // Lanes of one t add different groups and warps; two exchanges leave each one of the four sums.
          const int step2 = lane % 4, parity = lane / 4 % 2, upper = lane / 8 % 2, k = warp % 4 * 2 + lane / 16;
          float total[4] = {}, two[2], one[1];
#pragma unroll
          for (int w = 0; w < 2; w++)
#pragma unroll
            for (int g = 0; g < 4; g++) {
              const float4 p = m.sums[((half * 4 + upper * 2 + w) * HELD + k) * 32 + (g * 2 + parity) * 4 + step2];
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
          readOwn(m.u, sub, u);
          takeHalf(mine + 3 * 32, du4), takeHalf(mine + 4 * 32, dStep4);
          if (wantsY) {
            float z[4], up[4];
            takeHalf(mine + 5 * 32, part);
            readOwn(m.z, sub, z);
            readOwn(m.dOut, sub, up);
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const float gate = sigmoidFor<T>(z[i]);
              z[i] = up[i] * fmaf(skip, u[i], y[4 * H + i] + part[i]) * gate * fmaf(z[i], 1.f - gate, 1.f);
            }
            writeScanPart<T, STEPS>(m.z, row, sub + 4 * H, z);
          }
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float gradient = stepU[4 * H + i] + du4[i];
            dSkip = fmaf(dy[4 * H + i], u[i], dSkip);
            dStep4[i] = fmaf(gradient, u[i], dStep[4 * H + i] + dStep4[i]);
            du4[i] = fmaf(gradient, step[4 * H + i] * kLn2, dy[4 * H + i] * skip);
          }
          writeScanPart<T, STEPS>(m.u, row, sub + 4 * H, du4);
          if (shape.softplus) {
            float raw[4];
            readOwn(m.delta, sub, raw);
#pragma unroll
            for (int i = 0; i < 4; i++) dStep4[i] *= sigmoidFor<T>(raw[i] + bias);
          }
          writeScanPart<T, STEPS>(m.delta, row, sub + 4 * H, dStep4);
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (sub + 4 * H + i < left) dBias += dStep4[i];
        };
        if (half) finish(std::integral_constant<int, 1>{});
        else finish(std::integral_constant<int, 0>{});
      }
    }
    __syncthreads();
    if (v.dU.data) storeScanRows<T, STEPS, 16>(m.u, v.dU, place, t, left, warp * 16);
    if (v.dDelta.data) storeScanRows<T, STEPS, 16>(m.delta, v.dDelta, place, t, left, warp * 16);
    if (wantsY) storeScanRows<T, STEPS, 16>(m.z, v.dZ, place, t, left, warp * 16);
    __syncwarp();
  }
  // Both halves hold sums of the same channel.
  if (half) mine[0] = make_float4(dSkip, dBias, 0.f, 0.f);
  meetHalves(pair);
  if (!active) return;
  const int64_t rows = (place.b * shape.chunks + place.chunk) * v.rows;
  const auto put = [&](int64_t at, float value) { v.partial[(rows + at) * shape.channels + d] = value; };
  for (int k = 0; k < HELD; k++) put(half * HELD + k, slot(m.da, half * HELD + k) * kLn2);
  if (!half) put(v.rowD, dSkip + others[0].x), put(v.rowD + 1, dBias + others[0].y);
}

}  // namespace mm::cuda
