// Scalars by step of a chunk of 128 steps of the chunk engine for Hopper, by one warp: lane i has the steps from 4 i.
#pragma once
#include "cuda/chunk_scan.cuh"
#include "cuda/half_math.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kHopperChunk = 128, kHopperValues = 64;  // steps; value channels of a block

// By step, with c_t in units of log 2: c_t, scale w_t, exp(c_T - c_t) w_t, scale exp(c_t). Then D by value channel, and exp(c_T).
enum { SUM = 0, WEIGHT = 128, REST = 256, PAST = 384, SKIP = 512, THROUGH = 576, kHopperDecayFloats = 584 };

// A decay of exp(-110) is 0 in f32, and sums of no more than that keep the precision that their differences need.
constexpr float kLeastHopperDecay = -110.f;

__device__ __forceinline__ float siluApproximate(float x) { return __fdividef(x, 1.f + exp2Approximate(x * -kLog2e)); }

// log(1 + exp(x)), relative error 2^-16
__device__ __forceinline__ float softplusApproximate(float x) {
  const float e = exp2Approximate(fabsf(x) * -1.44269504f);
  const float series = e * fmaf(e, fmaf(e, fmaf(e, -0.25f, 0.33333333f), -0.5f), 1.f);
  return fmaxf(x, 0.f) + (e < 0.02f ? series : __logf(1.f + e));
}

struct HopperScalars {
  float sum[4], weight[4], rest[4], past[4], skip[2], through;
  __device__ __forceinline__ void store(float* to) const {
    const int lane = threadIdx.x % 32;
    const auto put = [&](int kind, const float (&x)[4]) { *reinterpret_cast<float4*>(to + kind + lane * 4) = {x[0], x[1], x[2], x[3]}; };
    put(SUM, sum), put(WEIGHT, weight), put(REST, rest), put(PAST, past);
    *reinterpret_cast<float2*>(to + SKIP + lane * 2) = {skip[0], skip[1]};
    if (lane == 0) to[THROUGH] = through;
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

struct HopperSteps {
  uint32_t raw[4], skip[2], rate, bias;  // bits
  HopperScalars scalars;

  // Starts to load what solve() needs, rows before `rows`.
  __device__ __forceinline__ void load(const Scan& s, int batch, int head, int64_t start, int rows, int column) {
    const int64_t base = batch * s.step.batch + start * s.step.time + head * s.step.head;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int i = threadIdx.x % 32 * 4 + e;
      raw[e] = s.step.given && i < rows ? bitsOf(s.step.data, s.step.dtype, base + i * s.step.time) : 0;
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
    float w[4];
    double c[4], sum = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const bool inside = lane * 4 + e < rows;
      float decay = valueOf(raw[e], s.step.dtype);
      w[e] = 1.f;
      if (s.rate.given) {
        const float x = decay + valueOf(bias, s.bias.dtype);
        w[e] = s.softplus ? softplusApproximate(x) : x;
        decay = w[e] * valueOf(rate, s.rate.dtype);
      }
      if (!inside) w[e] = decay = 0.f;
      sum += double(decay < kLeastHopperDecay ? kLeastHopperDecay : decay);
      c[e] = sum;
    }
    const double total = exclusiveUp(sum);
    constexpr double kLog2e = 1.4426950408889634;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      c[e] += sum;
      scalars.sum[e] = float(c[e] * kLog2e);
      scalars.weight[e] = w[e] * s.scale;
      scalars.rest[e] = exp2Approximate(float((total - c[e]) * kLog2e)) * w[e];
      scalars.past[e] = exp2Approximate(scalars.sum[e]) * s.scale;
    }
    scalars.through = exp2Approximate(float(total * kLog2e));
    scalars.skip[0] = valueOf(skip[0], s.skip.dtype), scalars.skip[1] = valueOf(skip[1], s.skip.dtype);
  }
};

}  // namespace mm::cuda::chunk_scan
