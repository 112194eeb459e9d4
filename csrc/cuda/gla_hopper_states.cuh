// The walks over the states, gla on Hopper: what each segment adds, and from there the states before all chunks and the gradients behind.
#pragma once
#include "cuda/gla_hopper.cuh"

namespace mm::cuda::gla {

// What the walks with chunks need of those with segments, and what they leave.
struct StatesTask {
  bf16 *keys = nullptr, *queries = nullptr;  // k' and scale q exp(c), (B, L, H, K); null: not wanted
  float* decays = nullptr;                   // of the chunks, (chunks, heads, 128)
  bf16 *states = nullptr, *gradients = nullptr;  // before and behind every chunk, (chunks, heads, 128, 128)
};
struct StatesMaps {
  CUtensorMap keys, values, queries, dO;
};

template <int STAGES>
struct StatesLayout {
  static constexpr int stages = STAGES, values = Rows::bytes, stage = 2 * Rows::bytes;
  static constexpr int parts = STAGES * stage, decay = parts + 8 * kWidth * 4, barriers = decay + 2 * kWidth * 4;
  static constexpr int shared = barriers + STAGES * 8 + 1024;  // and what aligning the first tile takes
};
using SegmentsLayout = StatesLayout<5>;
using ChunksLayout = StatesLayout<6>;

// The ring of stages of a walk, filled by one thread.
template <class Layout>
struct Stages {
  uint32_t base, full;
  const CUtensorMap *keys, *values;
  const Segment& at;
  bool backwards;

  __device__ __forceinline__ int chunkAt(int i) const { return at.first + (backwards ? at.count - 1 - i : i); }
  __device__ __forceinline__ uint32_t stage(int i) const { return base + i % Layout::stages * Layout::stage; }
  __device__ __forceinline__ void load(int i) const {
    const uint32_t bar = full + i % Layout::stages * 8, to = stage(i);
    arriveExpecting(bar, Layout::stage);
    copyTile<Rows>(to, *keys, bar, chunkAt(i) * kSteps, at.head, at.batch);
    copyTile<Rows>(to + Layout::values, *values, bar, chunkAt(i) * kSteps, at.head, at.batch);
  }
  __device__ __forceinline__ void await(int i) const { waitBarrier(full + i % Layout::stages * 8, i / Layout::stages & 1); }
  __device__ __forceinline__ void start(int count) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Layout::stages; i++) initBarrier(full + 8 * i, 1);
      fenceBarriers();
      for (int i = 0; i < Layout::stages && i < count; i++) load(i);
    }
    __syncthreads();
  }
};

// What a segment adds to the state, and its decay; blockIdx.y = 1: to the gradient of the state. Leaves the decayed keys (queries) for the
// walks with chunks where these follow; else nobody needs what the last segment adds.
template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    glaSegmentsKernel(const __grid_constant__ Scan s, const __grid_constant__ Walk walk, const __grid_constant__ StatesTask task,
                      const __grid_constant__ StatesMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = SegmentsLayout;
  const bool backwards = blockIdx.y;
  const Segment at(s, walk);
  bf16* const scaled = backwards ? task.queries : task.keys;
  if (!scaled && at.number + 1 == walk.segments) return;

  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared);
  const Stages<Layout> stages = {base, base + Layout::barriers, backwards ? &maps.queries : &maps.keys, backwards ? &maps.dO : &maps.values,
                                 at, backwards};
  stages.start(at.count);
  float* const decay = reinterpret_cast<float*>(shared + Layout::decay);

  const auto load = [&](RawGates<G>& raw, int i) { loadGates(raw, s, at.batch, int64_t(stages.chunkAt(i)) * kSteps, at.head); };
  RawGates<G> raw;
  load(raw, 0);
  StateTile state = {};
  float sum[kOwnChannels] = {};
#pragma unroll 1
  for (int i = 0; i < at.count; i++) {
    Own c;
    float total[kOwnChannels];
    accumulate(c, total, raw, reinterpret_cast<float*>(shared + Layout::parts));
    if (i + 1 < at.count) load(raw, i + 1);
    stages.await(i);
    const int64_t start = int64_t(stages.chunkAt(i)) * kSteps + ownStep();
    char* const keys = shared + i % Layout::stages * Layout::stage;
    scaleOwn(keys, [&](int r, int j) { return backwards ? exp2Fast(c[r][j]) * s.scale : exp2Fast(total[j] - c[r][j]); });
    if (scaled && ownChannel() < s.n) {
      bf16* to = scaled + ((at.batch * s.length + start) * s.heads + at.head) * s.n + ownChannel();
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++)
        if (start + r < s.length) *reinterpret_cast<uint2*>(to + int64_t(r) * s.heads * s.n) = *ownPiece(keys, r);
    }
    if (threadIdx.x < 32) {
      const float4 x = {exp2Fast(total[0]), exp2Fast(total[1]), exp2Fast(total[2]), exp2Fast(total[3])};
      *reinterpret_cast<float4*>(decay + ownChannel()) = x;
      const int64_t chunk = int64_t(at.batch) * walk.chunks + stages.chunkAt(i);
      if (scaled && !backwards) *reinterpret_cast<float4*>(task.decays + (chunk * s.heads + at.head) * kWidth + ownChannel()) = x;
    }
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) sum[j] += total[j];
    fenceAsyncProxy();
    waitProducts<0>();
    settle(asProduct(state));
    __syncthreads();  // the decayed keys are there, those of the chunk before are read
    if (threadIdx.x == 0 && i && i - 1 + Layout::stages < at.count) stages.load(i - 1 + Layout::stages);
    decayState(state, decay);
    fenceProducts();
    issueAdvance(state, stages.stage(i) + Layout::values, stages.stage(i));
  }
  waitProducts<0>();
  settle(asProduct(state));
  if (!walk.states) return;
  const int64_t index = at.slot * s.heads + at.head;
  chunk_scan::writeTiled<kWidth>(state, (backwards ? walk.gradients : walk.states) + index * (kWidth * kWidth), stateRow());
  if (backwards || threadIdx.x >= 32 || ownChannel() >= s.n) return;
  *reinterpret_cast<float4*>(walk.totals + index * s.n + ownChannel()) = {exp2Fast(sum[0]), exp2Fast(sum[1]), exp2Fast(sum[2]),
                                                                          exp2Fast(sum[3])};
#else
  __trap();
#endif
}

// The state before every chunk, blockIdx.y = 1: its gradient behind every chunk, rounded; and the gradient of the initial state.
__global__ void __launch_bounds__(kThreads, 1)
    glaChunksKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Walk walk,
                    const __grid_constant__ StatesTask task, const __grid_constant__ StatesMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = ChunksLayout;
  const bool backwards = blockIdx.y;
  const Segment at(s, walk);
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared);
  const Stages<Layout> stages = {base, base + Layout::barriers, backwards ? &maps.queries : &maps.keys, backwards ? &maps.dO : &maps.values,
                                 at, backwards};
  // nobody needs what the last chunk adds, but for the initial state's gradient
  const bool wantsInitial = backwards && at.number == 0 && g.wantsInitial;
  const int steps = wantsInitial ? at.count : at.count - 1;
  stages.start(steps);

  const int64_t index = at.slot * s.heads + at.head, pair = int64_t(at.batch) * s.heads + at.head;
  const bool begins = backwards ? at.number + 1 == walk.segments : at.number == 0, given = backwards ? g.hasFinal : s.hasInitial;
  float* const segments = backwards ? walk.gradients : walk.states;
  StateTile state = {};
  if (segments && (!begins || given)) chunk_scan::readTiled<kWidth>(state, segments + index * (kWidth * kWidth), stateRow());
  else if (given) chunk_scan::readState<kWidth>(state, s, (backwards ? g.dFinal : s.initial) + pair * s.stateSize(), stateRow(), s.p);

  const auto slotAt = [&](int i) { return (int64_t(at.batch) * walk.chunks + stages.chunkAt(i)) * s.heads + at.head; };
  float* const decays = reinterpret_cast<float*>(shared + Layout::decay);
  const auto load = [&](int i) { return threadIdx.x < kWidth ? task.decays[slotAt(i) * kWidth + threadIdx.x] : 0.f; };
  float ahead = load(0);
#pragma unroll 1
  for (int i = 0; i < at.count; i++) {
    float* const decay = decays + i % 2 * kWidth;
    if (threadIdx.x < kWidth) decay[threadIdx.x] = ahead;
    if (i + 1 < steps) ahead = load(i + 1);
    __syncthreads();  // the tiles of the chunk before are read
    if (threadIdx.x == 0 && i && i - 1 + Layout::stages < steps) stages.load(i - 1 + Layout::stages);
    chunk_scan::writeRounded<kWidth>(state, (backwards ? task.gradients : task.states) + slotAt(i) * (kWidth * kWidth), stateRow());
    if (i >= steps) break;
    stages.await(i);
    decayState(state, decay);
    fenceProducts();
    issueAdvance(state, stages.stage(i) + Layout::values, stages.stage(i));
    waitProducts<0>();
    settle(asProduct(state));
  }
  if (wantsInitial) chunk_scan::writeState<kWidth>(state, s, g.dInitial + pair * s.stateSize(), stateRow(), s.p);
#else
  __trap();
#endif
}

}  // namespace mm::cuda::gla
