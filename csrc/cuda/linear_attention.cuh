// linearAttention's normalisation, before the chunk engine runs: den_t = scale q_t.z_t + 1e-10 with z_t = sum_{u<=t} k_u, and for
// the gradients e_t = d den_t = -dO_t.o_t / den_t, which adds scale e_t z_t to dq_t and scale sum_{u>=t} e_u q_u to dk_t. What lies
// within a chunk is added to R there (chunk_scan.cuh), where it cancels before anything is rounded.
//
// A vector a step is little beside the states' products. The chunks sum their keys (queries), a short scan passes the sums
// on, and then every chunk walks its steps, a thread a channel.
#pragma once
#include "cuda/chunk_scan.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kNormThreads = 128;

struct NormTask {
  int64_t steps = 0;                           // of a chunk, at most 64
  float *before = nullptr, *behind = nullptr;  // (slots, heads, N): z before, sum of scale e q behind a chunk; null: zero
  float *inverse = nullptr, *dden = nullptr;   // 1 / den, e (B, L, heads)
  bool gradient = false, rounds = false;       // rounds: dO as the engine will have it, so that e cancels with it
  Operand o;
};

// sums (slots, heads, N) of the keys of every chunk
template <class T>
__global__ void __launch_bounds__(kNormThreads) normKeysKernel(const __grid_constant__ Scan s, int64_t steps, float* sums) {
  const int64_t index = blockIdx.x;
  const int head = int(index % s.heads);
  const Place at = locate(s, index / s.heads, steps);
  if (!at.valid) return;
  for (int n = threadIdx.x; n < s.n; n += kNormThreads) {
    float sum = 0.f;
    for (int t = 0; t < at.length; t++) sum += toFloat(s.k.at<const T>(at.batch, at.start + t, head)[n]);
    sums[index * s.n + n] = sum;
  }
}

// sums become the sums before (behind) each chunk
__global__ void __launch_bounds__(kNormThreads) normPassKernel(const __grid_constant__ Scan s, int64_t steps, float* sums, bool backwards) {
  const int64_t i = int64_t(blockIdx.x) * kNormThreads + threadIdx.x, width = int64_t(s.heads) * s.n;
  if (i >= s.sequences * width) return;
  const Slots slots = slotsOf(s, int(i / width), steps);
  float run = 0.f;
  for (int64_t j = 0; j < slots.count; j++) {
    float* x = sums + (slots.first + (backwards ? slots.count - 1 - j : j)) * width + i % width;
    const float mine = *x;
    *x = run;
    run += mine;
  }
}

// 1 / den; with a gradient also e, and in `behind` its sum with the queries of the chunk.
template <class T>
__global__ void __launch_bounds__(kNormThreads)
normDenominatorKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ NormTask task) {
  constexpr int PITCH = kNormThreads + 1;
  float *terms = reinterpret_cast<float*>(chunkScanShared), *weight = terms + task.steps * PITCH;
  const int64_t index = blockIdx.x;
  const int head = int(index % s.heads), lane = threadIdx.x % 32;
  const Place at = locate(s, index / s.heads, task.steps);
  if (!at.valid) return;
  for (int t = 0; t < at.length; t++) terms[t * PITCH + threadIdx.x] = 0.f;
  for (int n = threadIdx.x; n < s.n; n += kNormThreads) {
    float z = task.before ? task.before[index * s.n + n] : 0.f;
    for (int t = 0; t < at.length; t++) {
      z += toFloat(s.k.at<const T>(at.batch, at.start + t, head)[n]);
      float& term = terms[t * PITCH + threadIdx.x];
      term = fmaf(toFloat(s.q.at<const T>(at.batch, at.start + t, head)[n]), z, term);
    }
  }
  __syncthreads();
  for (int t = threadIdx.x / 32; t < at.length; t += kNormThreads / 32) {
    const int64_t step = (at.batch * s.length + at.start + t) * s.heads + head;
    float sum = 0.f;
    for (int i = lane; i < kNormThreads; i += 32) sum += terms[t * PITCH + i];
    const float inverse = 1.f / (s.scale * warpReduce(sum) + 1e-10f);
    float product = 0.f;
    if (task.gradient && g.dy.given)
      for (int p = lane; p < s.p; p += 32) {
        const float dO = toFloat(g.dy.at<const T>(at.batch, at.start + t, head)[p]) * inverse;
        product = fmaf(task.rounds ? toFloat(fromFloat<T>(dO)) : dO, toFloat(task.o.at<const T>(at.batch, at.start + t, head)[p]), product);
      }
    product = warpReduce(product);
    if (lane) continue;
    task.inverse[step] = inverse;
    if (task.gradient) task.dden[step] = -product, weight[t] = -product * s.scale;
  }
  if (!task.behind) return;
  __syncthreads();
  for (int n = threadIdx.x; n < s.n; n += kNormThreads) {
    float sum = 0.f;
    for (int t = 0; t < at.length; t++) sum = fmaf(weight[t], toFloat(s.q.at<const T>(at.batch, at.start + t, head)[n]), sum);
    task.behind[index * s.n + n] = sum;
  }
}
inline size_t normShared(int64_t steps) { return sizeof(float) * steps * (kNormThreads + 2); }

}  // namespace mm::cuda::chunk_scan
