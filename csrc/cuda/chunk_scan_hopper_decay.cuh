// Scalars by step of a chunk of 128 steps of the chunk engine for Hopper, by one warp: lane i has the steps from 4 i.
#pragma once
#include "cuda/chunk_scan_mma_tiles.cuh"
#include "cuda/half_math.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kHopperChunk = 128, kHopperValues = 64;  // steps; value channels of a block

// What a chunk's products are weighted with, as floats. c_t: the sum of the log-decays, in units of log 2; w_t; scale.
//   SKIP     D by value channel
//   REST     exp(c_T - c_t) w_t by step; bf16: words of two steps, what rounding takes from one word is in another
//   WEIGHTS  of the keys that queries see, for the 16 queries from 16 r on those of keys before 16 (r + 1), from 8 r (r + 1) on:
//            exp(c_m - c_u) w_u scale, with m = 16 r + 7
//   LEVEL    by query, exp(c_t - c_m): a query's result is LEVEL times the sum of its weighted keys and PAST times its past
//   PAST     exp(c_m) scale
//   TIERED   whether it is so. Where decays are too strong for such factors, or weights are negative, WEIGHTS has c_t by step and
//            behind them w_t scale, LEVEL is 1 and PAST exp(c_t) scale
// Four lanes of a warp read WEIGHTS, REST and SKIP by 16 bytes: within 16 elements they lie as inFours() says.
enum { REST = 0, PAST = 128, LEVEL = 256, SKIP = 384, TIERED = 448, WEIGHTS = 456, kHopperDecayFloats = WEIGHTS + 576 };
constexpr float kMostTier = 60.f;  // of the exponents of such factors
// The place of the pair `pair` of two elements: lane t of four gets pairs t and t + 4.
__host__ __device__ constexpr int inFours(int pair) { return pair / 8 * 16 + pair % 4 * 4 + pair / 4 % 2 * 2; }

// A decay of exp(-110) is 0 in f32, and sums of no more than that keep the precision that their differences need.
constexpr float kLeastHopperDecay = -110.f;
// What rounding took from a state before so much decay is far below what f32 sums keep of it.
constexpr float kLeastSince = 1e-9f;

__device__ __forceinline__ float siluApproximate(float x) { return __fdividef(x, 1.f + exp2Approximate(x * -kLog2e)); }

// log(1 + exp(x)), relative error 2^-16
__device__ __forceinline__ float softplusApproximate(float x) {
  const float e = exp2Approximate(fabsf(x) * -1.44269504f);
  const float series = e * fmaf(e, fmaf(e, fmaf(e, -0.25f, 0.33333333f), -0.5f), 1.f);
  return fmaxf(x, 0.f) + (e < 0.02f ? series : __logf(1.f + e));
}

// Two elements, weighted; w, rest: as REST has them.
template <class T>
__device__ __forceinline__ uint32_t weighted(uint32_t word, float w, float rest) {
  if constexpr (std::is_same_v<T, bf16>) {
    const auto pair = [](uint32_t x) { return *reinterpret_cast<const __nv_bfloat162*>(&x); };
    const __nv_bfloat162 x = pair(word), product = __hfma2(x, pair(__float_as_uint(w)), __hmul2_rn(x, pair(__float_as_uint(rest))));
    return *reinterpret_cast<const uint32_t*>(&product);
  } else {
    const float2 x = unpack2<T>(word);
    return pack2<T>(x.x * w, x.y * rest);
  }
}

// A warp's part in them. T: of the products' operands.
template <class T>
struct HopperScalars {
  float rest[4], skip[2], past[4], level[4], weights[8][4], through;
  bool tiered;
  __device__ __forceinline__ void store(float* to) const {
    const int lane = threadIdx.x % 32;
    const auto four = [&](int at, const float (&x)[4]) { *reinterpret_cast<float4*>(to + at + lane * 4) = {x[0], x[1], x[2], x[3]}; };
    const auto two = [&](int at, float x, float y) { *reinterpret_cast<float2*>(to + at) = {x, y}; };
    const int first = inFours(2 * lane), second = inFours(2 * lane + 1);
    if (tiered) {
#pragma unroll
      for (int r = 0; r < 8; r++)
        if (lane < 4 * r + 4) {
          two(WEIGHTS + 8 * r * (r + 1) + first, weights[r][0], weights[r][1]);
          two(WEIGHTS + 8 * r * (r + 1) + second, weights[r][2], weights[r][3]);
        }
    } else {
      four(WEIGHTS, weights[0]), four(WEIGHTS + 128, weights[1]);
    }
    two(REST + first, rest[0], rest[1]), two(REST + second, rest[2], rest[3]);
    two(SKIP + inFours(lane), skip[0], skip[1]);
    four(PAST, past), four(LEVEL, level);
    if (lane == 0) to[TIERED] = tiered ? 1.f : 0.f;
  }
  // From c_t and w_t; falling: whether no decay is a growth.
  __device__ __forceinline__ void solve(const float (&sum)[4], const float (&w)[4], float scale, bool falling) {
    const int lane = threadIdx.x % 32;
    float key[4], weight[4];  // key: c_t less the logarithm of w_t scale
    const float middle = __shfl_sync(kAllLanes, sum[3], lane / 4 * 4 + 1), total = __shfl_sync(kAllLanes, sum[3], 31);
    through = exp2Approximate(total), tiered = falling && std::is_same_v<T, bf16>;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      weight[e] = w[e] * scale, key[e] = sum[e] - log2Approximate(weight[e]);
      rest[e] = exp2Approximate(total - sum[e]) * w[e];
      tiered = tiered && fabsf(sum[e] - middle) <= kMostTier && middle - key[e] <= kMostTier;
    }
    if constexpr (std::is_same_v<T, bf16>) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint32_t high = pack2<T>(rest[i], rest[i + 1]);
        const float2 taken = unpack2<T>(high);
        rest[i + 1] = __uint_as_float(pack2<T>(rest[i] - taken.x, rest[i + 1] - taken.y)), rest[i] = __uint_as_float(high);
      }
    }
    tiered = __all_sync(kAllLanes, tiered);
    if (tiered) {
      const float before = exp2Approximate(middle) * scale;
#pragma unroll
      for (int e = 0; e < 4; e++) past[e] = before, level[e] = exp2Approximate(sum[e] - middle);
#pragma unroll
      for (int r = 0; r < 8; r++) {
        const float reference = __shfl_sync(kAllLanes, sum[3], 4 * r + 1);
#pragma unroll
        for (int e = 0; e < 4; e++) weights[r][e] = exp2Approximate(reference - key[e]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
        past[e] = exp2Approximate(sum[e]) * scale, level[e] = 1.f, weights[0][e] = sum[e], weights[1][e] = weight[e];
    }
  }
};

// An element as it lies in memory, and its value: what is loaded ahead must not be touched before it is needed.
__device__ __forceinline__ uint32_t bitsOf(const void* data, int dtype, int64_t i) {
  return dtype == MM_F32 ? static_cast<const uint32_t*>(data)[i] : static_cast<const uint16_t*>(data)[i];
}
__device__ __forceinline__ float valueOf(uint32_t bits, int dtype) {
  if (dtype == MM_F32) return __uint_as_float(bits);
  return dtype == MM_BF16 ? __uint_as_float(bits << 16) : toFloat(__ushort_as_half(uint16_t(bits)));
}

template <class T>
struct HopperSteps {
  uint32_t raw[4], skip[2], rate, bias;  // bits
  HopperScalars<T> scalars;

  // Starts to load what solve() needs, rows before `rows`. Dtypes are asked for once and not for every element, here and there, as all
  // roles wait for this one.
  __device__ __forceinline__ void load(const Scan& s, int batch, int head, int64_t start, int rows, int column) {
    const int first = threadIdx.x % 32 * 4;
    const int64_t from = batch * s.step.batch + (start + first) * s.step.time + head * s.step.head;
#pragma unroll
    for (int e = 0; e < 4; e++) raw[e] = 0;
    if (s.step.given) {
      if (s.step.dtype == MM_F32) {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (first + e < rows) raw[e] = static_cast<const uint32_t*>(s.step.data)[from + e * s.step.time];
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (first + e < rows) raw[e] = static_cast<const uint16_t*>(s.step.data)[from + e * s.step.time];
      }
    }
    rate = s.rate.given ? bitsOf(s.rate.data, s.rate.dtype, head) : 0;
    bias = s.bias.given ? bitsOf(s.bias.data, s.bias.dtype, head) : 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int p = column + threadIdx.x % 32 * 2 + i;
      skip[i] = s.skip.given ? bitsOf(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head) : 0;
    }
  }
  __device__ __forceinline__ void solve(const Scan& s, int rows) {
    const int lane = threadIdx.x % 32;
    float w[4], sum[4];
    if (s.step.dtype == MM_F32) {
#pragma unroll
      for (int e = 0; e < 4; e++) sum[e] = __uint_as_float(raw[e]);
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) sum[e] = valueOf(raw[e], s.step.dtype);
    }
    if (s.rate.given) {
      const float shift = valueOf(bias, s.bias.dtype), slope = valueOf(rate, s.rate.dtype);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        w[e] = sum[e] + shift;
        if (s.softplus) w[e] = softplusApproximate(w[e]);
        sum[e] = w[e] * slope;
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) w[e] = 1.f;
    }
    float before = 0.f;
    bool falling = true;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (lane * 4 + e >= rows) w[e] = sum[e] = 0.f;
      falling = falling && sum[e] <= 0.f;
      sum[e] = kLog2e * (sum[e] < kLeastHopperDecay ? kLeastHopperDecay : sum[e]) + before;
      before = sum[e];
    }
    exclusiveUp(before);
#pragma unroll
    for (int e = 0; e < 4; e++) sum[e] += before;
    scalars.solve(sum, w, s.scale, falling);
    scalars.skip[0] = valueOf(skip[0], s.skip.dtype), scalars.skip[1] = valueOf(skip[1], s.skip.dtype);
  }
};

}  // namespace mm::cuda::chunk_scan
