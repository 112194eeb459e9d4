// The walks over the states, gla on Hopper: what each segment adds, and from there the states before all chunks.
#pragma once
#include "cuda/gla_hopper.cuh"

namespace mm::cuda::gla {

// What the walk with chunks needs of the one with segments, and what it leaves.
struct StatesTask {
  bf16* keys = nullptr;     // k', (B, L, H, K)
  float* decays = nullptr;  // of the chunks, (chunks, heads, 128)
  bf16* states = nullptr;   // before every chunk, (chunks, heads, 128, 128)
};
struct StatesMaps {
  CUtensorMap k, v, q, dO;
};

// A ring of stages of TILES tiles of rows.
template <int TILES, int STAGES>
struct StatesLayout {
  static constexpr int tiles = TILES, stages = STAGES, stage = TILES * Rows::bytes;
  static constexpr int parts = STAGES * stage, decay = parts + 8 * kWidth * 4, barriers = decay + 2 * kWidth * 4;
  static constexpr int shared = barriers + STAGES * 8 + 1024;  // and what aligning the first tile takes
};
template <bool GRADIENTS>
using SegmentsLayout = StatesLayout<GRADIENTS ? 4 : 2, GRADIENTS ? 3 : 5>;
using ChunksLayout = StatesLayout<2, 6>;

template <class Layout>
struct Stages {
  uint32_t base;
  const StatesMaps& maps;
  const Segment& at;

  __device__ __forceinline__ uint32_t stage(int i) const { return base + i % Layout::stages * Layout::stage; }
  __device__ __forceinline__ uint32_t full(int i) const { return base + Layout::barriers + i % Layout::stages * 8; }
  __device__ __forceinline__ void load(int i) const {  // by one thread
    const CUtensorMap* const all[4] = {&maps.k, &maps.v, &maps.q, &maps.dO};
    arriveExpecting(full(i), Layout::stage);
#pragma unroll
    for (int j = 0; j < Layout::tiles; j++)
      copyTile<Rows>(stage(i) + j * Rows::bytes, *all[j], full(i), (at.first + i) * kSteps, at.head, at.batch);
  }
  __device__ __forceinline__ void await(int i) const { waitBarrier(full(i), i / Layout::stages & 1); }
  __device__ __forceinline__ void start(int count) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Layout::stages; i++) initBarrier(full(i), 1);
      fenceBarriers();
      for (int i = 0; i < Layout::stages && i < count; i++) load(i);
    }
    __syncthreads();
  }
};

// What a segment adds to the state, and its decay. GRADIENTS: what it adds to the gradient of the state as well, and the decayed keys for
// the walk with chunks; else nobody needs what the last segment adds.
template <class G, bool GRADIENTS>
__global__ void __launch_bounds__(kThreads, 1)
    glaSegmentsKernel(const __grid_constant__ Scan s, const __grid_constant__ Walk walk, const __grid_constant__ StatesTask task,
                      const __grid_constant__ StatesMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = SegmentsLayout<GRADIENTS>;
  enum { K, V, Q, DO };
  const Segment at(s, walk);
  if (!GRADIENTS && at.number + 1 == walk.segments) return;

  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const Stages<Layout> stages = {sharedAddress(shared), maps, at};
  stages.start(at.count);
  float* const decay = reinterpret_cast<float*>(shared + Layout::decay);

  const auto load = [&](RawGates<G>& raw, int i) { loadGates(raw, s, at.batch, int64_t(at.first + i) * kSteps, at.head); };
  RawGates<G> raw;
  load(raw, 0);
  StateTile state = {}, gradient = {};
  float sum[kOwnChannels] = {};  // log2 of the decays of the chunks before
#pragma unroll 1
  for (int i = 0; i < at.count; i++) {
    Own c;
    float before[kOwnChannels], total[kOwnChannels];
    accumulate(c, before, total, raw, reinterpret_cast<float*>(shared + Layout::parts));
    if (i + 1 < at.count) load(raw, i + 1);
    stages.await(i);
    char* const tiles = shared + i % Layout::stages * Layout::stage;
    scaleOwn(tiles + K * Rows::bytes, [&](int r, int j) { return exp2Approximate(total[j] - c[r][j]); });
    if (GRADIENTS) {
      scaleOwn(tiles + Q * Rows::bytes, [&](int r, int j) { return exp2Approximate(c[r][j] + sum[j]) * s.scale; });
      const int64_t start = int64_t(at.first + i) * kSteps;
      bf16* to = task.keys + ((at.batch * s.length + start + ownStep()) * s.heads + at.head) * s.n + ownChannel();
      const int count = ownCount(s, start);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++, to += int64_t(s.heads) * s.n)
        if (r < count) *reinterpret_cast<uint2*>(to) = *ownPiece(tiles + K * Rows::bytes, r);
    }
    if (threadIdx.x < 32) {
      const float4 x = {exp2Approximate(total[0]), exp2Approximate(total[1]), exp2Approximate(total[2]), exp2Approximate(total[3])};
      *reinterpret_cast<float4*>(decay + ownChannel()) = x;
      const int64_t chunk = int64_t(at.batch) * walk.chunks + at.first + i;
      if (GRADIENTS) *reinterpret_cast<float4*>(task.decays + (chunk * s.heads + at.head) * kWidth + ownChannel()) = x;
    }
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) sum[j] += total[j];
    fenceAsyncProxy();
    waitProducts<0>();
    settle(asProduct(state));
    if (GRADIENTS) settle(asProduct(gradient));
    __syncthreads();  // the decayed keys are there, those of the chunk before are read
    if (threadIdx.x == 0 && i && i - 1 + Layout::stages < at.count) stages.load(i - 1 + Layout::stages);
    decayState(state, decay);
    fenceProducts();
    issueAdvance(state, stages.stage(i) + V * Rows::bytes, stages.stage(i) + K * Rows::bytes);
    if (GRADIENTS) issueAdvance(gradient, stages.stage(i) + DO * Rows::bytes, stages.stage(i) + Q * Rows::bytes);
  }
  waitProducts<0>();
  settle(asProduct(state));
  if (GRADIENTS) settle(asProduct(gradient));
  if (!walk.states) return;
  const int64_t index = at.slot * s.heads + at.head;
  chunk_scan::writeTiled<kWidth>(state, walk.states + index * (kWidth * kWidth), stateRow());
  if (GRADIENTS) chunk_scan::writeTiled<kWidth>(gradient, walk.gradients + index * (kWidth * kWidth), stateRow());
  if (threadIdx.x >= 32 || ownChannel() >= s.n) return;
  *reinterpret_cast<float4*>(walk.totals + index * s.n + ownChannel()) = {exp2Approximate(sum[0]), exp2Approximate(sum[1]), exp2Approximate(sum[2]),
                                                                          exp2Approximate(sum[3])};
#else
  __trap();
#endif
}

// The state before every chunk, rounded. maps.k: the decayed keys.
__global__ void __launch_bounds__(kThreads, 1)
    glaChunksKernel(const __grid_constant__ Scan s, const __grid_constant__ Walk walk, const __grid_constant__ StatesTask task,
                    const __grid_constant__ StatesMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = ChunksLayout;
  const Segment at(s, walk);
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const Stages<Layout> stages = {sharedAddress(shared), maps, at};
  const int steps = at.count - 1;  // nobody needs what the last chunk adds
  stages.start(steps);
  StateTile state;
  readFirst<false>(state, s, walk, at, s.initial);

  const auto slotAt = [&](int i) { return (int64_t(at.batch) * walk.chunks + at.first + i) * s.heads + at.head; };
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
    chunk_scan::writeRounded<kWidth>(state, task.states + slotAt(i) * (kWidth * kWidth), stateRow());
    if (i >= steps) break;
    stages.await(i);
    decayState(state, decay);
    fenceProducts();
    issueAdvance(state, stages.stage(i) + Rows::bytes, stages.stage(i));
    waitProducts<0>();
    settle(asProduct(state));
  }
#else
  __trap();
#endif
}

}  // namespace mm::cuda::gla
