// Scalars by step of a chunk of 128 steps of the chunk engine for Hopper, by one warp: lane i has the steps from 4 i.
#pragma once
#include "cuda/chunk_scan.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kHopperChunk = 128, kHopperValues = 64;  // steps; value channels of a block

// By step, with c_t in units of log 2: c_t, scale w_t, exp(c_T - c_t) w_t, scale exp(c_t). Then D by value channel, and exp(c_T).
enum { SUM = 0, WEIGHT = 128, REST = 256, PAST = 384, SKIP = 512, THROUGH = 576, kHopperDecayFloats = 584 };

// A decay of exp(-110) is 0 in f32, and sums of no more than that keep the precision that their differences need.
constexpr float kLeastHopperDecay = -110.f;

// 2^x, relative error 2^-22, for what is rounded to 16 bits.
__device__ __forceinline__ float exp2Approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float siluApproximate(float x) { return __fdividef(x, 1.f + exp2Approximate(x * -1.44269504f)); }

struct HopperSteps {
  float sum[4], weight[4], rest[4], past[4], skip[2], through;
};

__device__ __forceinline__ HopperSteps hopperSteps(const Scan& s, int batch, int head, int64_t start, int rows, int column) {
  HopperSteps r;
  const int lane = threadIdx.x % 32;
  const float rate = s.rate.given ? element(s.rate.data, s.rate.dtype, head) : 0.f;
  const float bias = s.bias.given ? element(s.bias.data, s.bias.dtype, head) : 0.f;
  const int64_t base = batch * s.step.batch + start * s.step.time + head * s.step.head;
  float raw[4], w[4];
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int t = lane * 4 + e;
    raw[e] = t < rows && s.step.given ? element(s.step.data, s.step.dtype, base + t * s.step.time) : 0.f;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int p = column + lane * 2 + i;
    r.skip[i] = s.skip.given ? element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head) : 0.f;
  }
  double c[4], sum = 0;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const bool inside = lane * 4 + e < rows;
    float g = raw[e];
    w[e] = 1.f;
    if (s.rate.given) {
      const float x = raw[e] + bias;
      w[e] = s.softplus ? softplus(x) : x;
      g = w[e] * rate;
    }
    if (!inside) w[e] = g = 0.f;
    sum += double(g < kLeastHopperDecay ? kLeastHopperDecay : g);
    c[e] = sum;
  }
  const double total = exclusiveUp(sum);
  constexpr double kLog2e = 1.4426950408889634;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    c[e] += sum;
    r.sum[e] = float(c[e] * kLog2e);
    r.weight[e] = w[e] * s.scale;
    r.rest[e] = exp2f(float((total - c[e]) * kLog2e)) * w[e];
    r.past[e] = exp2f(r.sum[e]) * s.scale;
  }
  r.through = exp2f(float(total * kLog2e));
  return r;
}

__device__ __forceinline__ void storeHopperSteps(float* to, const HopperSteps& r) {
  const int lane = threadIdx.x % 32;
  const auto put = [&](int kind, const float (&x)[4]) { *reinterpret_cast<float4*>(to + kind + lane * 4) = {x[0], x[1], x[2], x[3]}; };
  put(SUM, r.sum), put(WEIGHT, r.weight), put(REST, r.rest), put(PAST, r.past);
  *reinterpret_cast<float2*>(to + SKIP + lane * 2) = {r.skip[0], r.skip[1]};
  if (lane == 0) to[THROUGH] = r.through;
}

}  // namespace mm::cuda::chunk_scan
