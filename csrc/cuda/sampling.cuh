// argmax and sample: the next token from logits (rows, n).
//
// The arithmetic of sample is that of cpu/sampling.cc with one change: probabilities are integers, mass = exp((x - top) / T) in
// units of 2^-40 or so, whose sums do not depend on their order. The limits are thresholds found by radix selection: logits
// become integers of the same order, and histograms of 8 bits of them (of counts for topK, of mass for topP) walk down to the
// last one kept; each lane has its own column of the histogram, so that lanes do not meet in an address. Nothing is sorted, and
// a block walks over its row, which stays in the second-level cache, at most a dozen times.
#pragma once
#include "cuda/common/rows.cuh"
#include "ops/sampling.h"

namespace mm::cuda {

// Integers in the order of the floats; NaN becomes the lowest.
__device__ __forceinline__ uint32_t orderKey(float x) {
  const uint32_t u = __float_as_uint(x);
  if (x != x) return 0;
  return u >> 31 ? ~u : u | 0x80000000u;
}

// Reductions over the block of whole warps, for all threads. `scratch`: 32 words.
template <class Op>
__device__ __forceinline__ uint64_t blockReduce64(uint64_t v, uint64_t* scratch, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  __syncthreads();
  return v;
}
struct Larger64 {
  __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct Sum64 {
  __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

// A lane's share of the first largest element, as (order of the value, how early) for a maximum; 0 without any. NaN is never
// chosen, and both zeros are equal.
template <class T>
__device__ __forceinline__ uint64_t largestOf(const T* row, int64_t n, int lane, int lanes) {
  float best = -INFINITY;
  int32_t at = -1;
  walkRows<4, 1, T>({row}, nullptr, n, lane, lanes, [&](int64_t j, auto& v) {
    constexpr int N = sizeof(v[0]) / sizeof(float);
#pragma unroll
    for (int i = 0; i < N; i++)
      if (v[0][i] > best || (at < 0 && v[0][i] == v[0][i])) {
        best = v[0][i];
        at = int32_t(j) + i;
      }
  });
  return at < 0 ? 0 : uint64_t(orderKey(best + 0.f)) << 32 | uint32_t(~at);
}
__device__ __forceinline__ int32_t indexOf(uint64_t largest) { return largest ? int32_t(~uint32_t(largest)) : 0; }

template <class T>
__global__ void __launch_bounds__(1024) argmaxKernel(const T* __restrict__ x, int32_t* __restrict__ index,
    const __grid_constant__ Nest<1> nest, int64_t rows, int64_t n, int lanes) {
  __shared__ uint64_t scratch[32];
  const Team team(lanes);
  const int64_t row = int64_t(blockIdx.x) * team.count + team.index;
  int64_t at[1];
  rowOffsets(nest, nest.ndim, row, at);
  uint64_t largest = row < rows ? largestOf(x + at[0], n, team.lane, lanes) : 0;
  if (lanes > 32) {
    largest = blockReduce64(largest, scratch, Larger64());
  } else {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = Larger64()(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  }
  if (team.lane == 0 && row < rows) index[row] = indexOf(largest);
}

constexpr int kSampleThreads = 1024, kSampleWarps = kSampleThreads / 32;
constexpr int kHistogram = 256 * 32;  // words of one half of the histogram

// Tokens above `key`, and those equal to it up to token `last`.
struct Kept {
  uint32_t key = 0;
  int32_t last = 0x7fffffff;

  __device__ __forceinline__ bool operator()(uint32_t k, int32_t token) const { return k > key || (k == key && token <= last); }
};

// Sums of up to n amounts of up to 2^bits: a column of the histogram gets about n / 32 of them, in two halves of bits / 2.
__host__ __device__ inline int massBits(int64_t n) {
  int columns = 0;
  while ((n / 32 + 512) >> columns) columns++;
  const int bits = 2 * (32 - columns);
  return bits < 48 ? bits : 48;
}

struct SampleShared {
  uint64_t scratch[32], bins[256], sums[32];
  uint64_t above, amount;
  int32_t found;
};

// One row of logits in the hands of a block.
template <class T>
struct SampleRow {
  static constexpr int kDrop = std::is_same_v<T, float> ? 0 : std::is_same_v<T, bf16> ? 16 : 13;  // low bits that are always the same
  static constexpr int kDigits = (32 - kDrop + 7) / 8;

  const T* row;
  int32_t n;
  float top, scale, unit;  // unit: 2^half^2
  int half;
  SampleShared& shared;
  uint32_t* histogram;

  static __device__ __forceinline__ uint32_t keyOf(float x) { return orderKey(x) >> kDrop; }
  __device__ __forceinline__ uint64_t massOf(float x) const { return x == x ? __float2ull_rn(expf((x - top) * scale) * unit) : 0; }
  // The float of a key, which is not that of NaN.
  static __device__ __forceinline__ float floatOf(uint32_t key) {
    const uint32_t k = key << kDrop | ((1u << kDrop) - 1);
    return k >> 31 ? __uint_as_float((key << kDrop) ^ 0x80000000u) : __uint_as_float(~k);
  }
  // f(token, x) over tokens [from, from + count) with `lanes` threads
  template <class F>
  __device__ __forceinline__ void walk(int32_t from, int32_t count, int lane, int lanes, F&& f) const {
    walkRows<4, 1, T>({row + from}, nullptr, count, lane, lanes, [&](int64_t j, auto& v) {
      constexpr int N = sizeof(v[0]) / sizeof(float);
#pragma unroll
      for (int i = 0; i < N; i++) f(from + int32_t(j) + i, v[0][i]);
    });
  }

  template <class A>
  __device__ uint64_t total(A&& amount) const {
    uint64_t sum = 0;
    walk(0, n, threadIdx.x, kSampleThreads, [&](int32_t token, float x) { sum += amount(token, x); });
    return blockReduce64(sum, shared.scratch, Sum64());
  }

  // The key at which the amounts, from the largest key down, reach `goal`, 1 <= goal <= their sum. above: the amounts of larger
  // keys; equal: those of this key.
  template <class A>
  __device__ uint32_t select(uint64_t goal, A&& amount, uint64_t& above, uint64_t& equal) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t prefix = 0;
    above = 0;
    for (int shift = 8 * (kDigits - 1); shift >= 0; shift -= 8) {
      for (int i = threadIdx.x; i < 2 * kHistogram; i += kSampleThreads) histogram[i] = 0;
      __syncthreads();
      walk(0, n, threadIdx.x, kSampleThreads, [&](int32_t token, float x) {
        const uint32_t key = keyOf(x);
        if ((uint64_t(key) >> (shift + 8)) != (uint64_t(prefix) >> (shift + 8))) return;
        const uint64_t a = amount(token, x);
        if (!a) return;
        uint32_t* column = histogram + (key >> shift & 255) * 32 + lane;
        atomicAdd(column, uint32_t(a) & ((1u << half) - 1));
        if (a >> half) atomicAdd(column + kHistogram, uint32_t(a >> half));
      });
      __syncthreads();
      for (int bin = warp; bin < 256; bin += kSampleWarps) {
        uint64_t v = histogram[bin * 32 + lane] + (uint64_t(histogram[kHistogram + bin * 32 + lane]) << half);
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
        if (lane == 0) shared.bins[bin] = v;
      }
      __syncthreads();
      if (warp == 0) {  // lane l has the bins from 255 - 8 l down
        uint64_t own = 0;
        for (int i = 0; i < 8; i++) own += shared.bins[255 - 8 * lane - i];
        uint64_t before = above + own;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
          const uint64_t left = __shfl_up_sync(0xffffffffu, before - above, offset);
          if (lane >= offset) before += left;
        }
        before -= own;  // what is above the lane's bins
        if (before < goal && before + own >= goal) {
          int bin = 255 - 8 * lane;
          while (before + shared.bins[bin] < goal) before += shared.bins[bin--];
          shared.found = bin;
          shared.above = before;
          shared.amount = shared.bins[bin];
        }
      }
      __syncthreads();
      prefix |= uint32_t(shared.found) << shift;
      above = shared.above;
      equal = shared.amount;
    }
    __syncthreads();
    return prefix;
  }

  // The first token at which the cumulated amounts exceed goal(their sum), which is below that. Parts of the row, a warp each,
  // then parts of the part, then one by one.
  template <class A, class G>
  __device__ int32_t search(A&& amount, G&& goal) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t begin = 0, length = n;
    uint64_t target = 0;
    for (int level = 0; level < 2; level++) {
      const int32_t part = length / kSampleWarps + 1, end = begin + length, first = begin + warp * part < end ? begin + warp * part : end;
      uint64_t sum = 0;
      walk(first, first + part < end ? part : end - first, lane, 32, [&](int32_t token, float x) { sum += amount(token, x); });
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (lane == 0) shared.sums[warp] = sum;
      __syncthreads();
      const uint64_t own = shared.sums[lane];
      uint64_t through = own;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t left = __shfl_up_sync(0xffffffffu, through, offset);
        if (lane >= offset) through += left;
      }
      if (level == 0) target = goal(__shfl_sync(0xffffffffu, through, 31));
      const int chosen = __ffs(__ballot_sync(0xffffffffu, through > target)) - 1;
      target -= __shfl_sync(0xffffffffu, through - own, chosen);
      begin = begin + chosen * part;
      length = begin + part < end ? part : end - begin;
      __syncthreads();
    }
    if (warp == 0) {
      for (int32_t at = begin; at < begin + length; at += 32) {
        const int32_t token = at + lane;
        uint64_t through = token < begin + length ? amount(token, toFloat(row[token])) : 0;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
          const uint64_t left = __shfl_up_sync(0xffffffffu, through, offset);
          if (lane >= offset) through += left;
        }
        const uint32_t over = __ballot_sync(0xffffffffu, through > target);
        if (over) {
          if (lane == 0) shared.found = at + __ffs(over) - 1;
          break;
        }
        target -= __shfl_sync(0xffffffffu, through, 31);
      }
    }
    __syncthreads();
    const int32_t found = shared.found;
    __syncthreads();
    return found;
  }

  // The threshold that keeps, of what `within` keeps, the fewest tokens whose amounts reach goal; unitOf(x): the amount of x.
  template <class U>
  __device__ Kept keepUntil(const Kept& within, uint64_t goal, U&& unitOf) const {
    uint64_t above, equal;
    Kept kept;
    kept.key = select(goal, [&](int32_t token, float x) { return within(keyOf(x), token) ? unitOf(x) : uint64_t(0); }, above, equal);
    const uint64_t one = equal ? unitOf(kept.key ? floatOf(kept.key) : NAN) : 1, ties = (goal - above + one - 1) / one;
    if (ties * one < equal)
      kept.last = search([&](int32_t, float x) { return uint64_t(keyOf(x) == kept.key); }, [&](uint64_t) { return ties - 1; });
    else if (kept.key == within.key)
      kept.last = within.last;
    return kept;
  }
};

// A block a row. Dynamic shared memory: 2 kHistogram words where there is a limit.
template <class T>
__global__ void __launch_bounds__(kSampleThreads) sampleKernel(const T* __restrict__ logits, int64_t stride, int32_t* __restrict__ token,
    int32_t n, float scale, int64_t topK, double topP, uint64_t seed, uint64_t offset) {
  extern __shared__ uint32_t histogram[];
  __shared__ SampleShared shared;
  const T* row = logits + blockIdx.x * stride;
  const int32_t best = indexOf(blockReduce64(largestOf(row, n, threadIdx.x, kSampleThreads), shared.scratch, Larger64()));
  const float top = toFloat(row[best]);
  if (!(top < INFINITY && top > -INFINITY)) {  // nothing to weigh
    if (threadIdx.x == 0) token[blockIdx.x] = best;
    return;
  }
  const int half = massBits(n) / 2;
  const SampleRow<T> sampler = {row, n, top, scale, float(uint64_t(1) << (2 * half)), half, shared, histogram};
  Kept kept;
  if (topK > 0 && topK < n) kept = sampler.keepUntil(kept, uint64_t(topK), [](float) { return uint64_t(1); });
  const auto amount = [&](int32_t t, float x) { return kept(sampler.keyOf(x), t) ? sampler.massOf(x) : uint64_t(0); };
  if (topP < 1) {
    const uint64_t total = sampler.total(amount), wanted = uint64_t(ceil(topP * double(total))),
        goal = wanted < 1 ? 1 : wanted < total ? wanted : total;
    kept = sampler.keepUntil(Kept(kept), goal, [&](float x) { return sampler.massOf(x); });
  }
  const uint64_t u = ops::sample::philox(seed, offset, blockIdx.x) >> 8;  // 24 bits
  const int32_t drawn = sampler.search(amount, [&](uint64_t total) { return __umul64hi(u << 40, total); });
  if (threadIdx.x == 0) token[blockIdx.x] = drawn;
}

}  // namespace mm::cuda
