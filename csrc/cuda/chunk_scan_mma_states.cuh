// The walk over the states of a segment.
#pragma once
#include "cuda/chunk_scan_mma_walk.cuh"

namespace mm::cuda::chunk_scan {

template <int NT, int PT>
struct StateTiles {
  static constexpr int threads = 2 * PT, stages = 3;  // a warp holds 16 value channels
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, stage = keys + values + kStepBytes;
  static constexpr int bytes = stages * stage;
};

// The decay of a segment, by one block.
template <Decay KIND>
__device__ __forceinline__ void storeSegmentTotals(const Scan& s, const MmaTask& task, int64_t slot, int64_t chunk0, int chunks, int head) {
  const int64_t index = slot * s.heads + head;
  if (KIND == Decay::Channel) {
    for (int n = threadIdx.x; n < s.n; n += blockDim.x) {
      float total = 1.f;
#pragma unroll 8
      for (int i = 0; i < chunks; i++) total *= task.totals[((chunk0 + i) * s.heads + head) * s.n + n];
      task.segmentTotals[index * s.n + n] = total;
    }
  } else if (threadIdx.x < 32) {
    float total = 1.f;
    for (int i = threadIdx.x; i < chunks; i += 32)
      total *= task.steps[((chunk0 + i) * s.heads + head) * kStepFloats + UP * kChunk + kChunk - 1];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) total *= __shfl_xor_sync(kAllLanes, total, d);
    if (threadIdx.x == 0) task.segmentTotals[index] = total;
  }
}

// Walks a segment, forwards with k and v or (blockIdx.y + direction = 1) backwards with q and dO. CHUNKS: starts from the state
// before (behind) the segment and stores the state before (behind) every chunk, and at the start of the sequence the gradient of its
// initial state; otherwise starts from zero and stores what the segment adds, and its decay; none needs what the last one adds.
template <class T, int NT, int PT, Decay KIND, bool CHUNKS>
__global__ void __launch_bounds__(2 * PT)
mmaStatesKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task, int direction) {
  using Tiles = StateTiles<NT, PT>;
  const bool backwards = blockIdx.y + direction;
  const int virtualHeads = task.virtualHeads(s), warp = threadIdx.x / 32;
  const int64_t index = blockIdx.x, slot = index / virtualHeads;
  const int virtualHead = int(index % virtualHeads), head = virtualHead / task.slices, p0 = virtualHead % task.slices * PT;
  const Place at = locate(s, slot, task.segment * kChunk);
  if (!at.valid) return;
  const int64_t chunk0 = slotsOf(s, at.sequence, kChunk).first + at.local * task.segment;
  const int chunks = (at.length + kChunk - 1) / kChunk;
  const Operand &keys = backwards ? s.q : s.k, &values = backwards ? g.dy : s.v;
  const uint32_t shared = sharedAddress(chunkScanShared);

  constexpr int THREADS = Tiles::threads;

  const auto chunkAt = [&](int i) { return backwards ? chunks - 1 - i : i; };
  const auto load = [&](int i) {
    if (i < chunks) {
      const int chunk = chunkAt(i), rows = min(kChunk, at.length - chunk * kChunk);
      const int64_t t = at.start + int64_t(chunk) * kChunk;
      const uint32_t stage = shared + i % Tiles::stages * Tiles::stage;
      const T *k = keys.at<const T>(at.batch, t, head / s.share()), *v = values.at<const T>(at.batch, t, head) + p0;
      loadTileAsync<THREADS, kChunk, NT / 8>(stage, k, keys.time, rows, s.n);
      loadTileAsync<THREADS, kChunk, PT / 8>(stage + Tiles::keys, v, values.time, rows, s.p - p0);
      loadDecayAsync<THREADS, NT, KIND>(stage + Tiles::keys + Tiles::values, s, task, chunk0 + chunk, head);
    }
    commitAsync();
  };
  if (!CHUNKS && !backwards && p0 == 0) storeSegmentTotals<KIND>(s, task, slot, chunk0, chunks, head);
  if (!CHUNKS && (backwards ? at.first : at.last)) return;
  load(0);
  load(1);

  float state[NT / 8][4] = {};
  const int64_t pair = int64_t(at.sequence) * s.heads + head;
  bool zero = true;
  if (CHUNKS) {
    float* segmentStates = backwards ? task.segmentGradients : task.segmentStates;
    const float* first = backwards ? g.dFinal : s.initial;
    const bool begins = backwards ? at.last : at.first;
    zero = begins && !(backwards ? g.hasFinal : s.hasInitial);
    if (!zero && segmentStates) readTiled<NT>(state, segmentStates + index * (PT * NT), warp * 16);
    else if (!zero) readState<NT>(state, s, first + pair * s.stateSize(), p0 + warp * 16, s.p);
  }
  for (int i = 0; i < chunks; i++) {
    waitAsync<1>();
    __syncthreads();
    load(i + 2);
    const uint32_t stage = shared + i % Tiles::stages * Tiles::stage;
    const float* steps = reinterpret_cast<const float*>(chunkScanShared + i % Tiles::stages * Tiles::stage + Tiles::keys + Tiles::values);
    if (CHUNKS && !zero) {
      T* to = static_cast<T*>(backwards ? task.gradients : task.states);
      writeRounded<NT>(state, to + ((chunk0 + chunkAt(i)) * virtualHeads + virtualHead) * (PT * NT), warp * 16);
    }
    zero = false;
    if (CHUNKS && i + 1 == chunks && !(backwards && at.first && g.wantsInitial)) break;
    uint32_t x[kChunk / 16][4];
    loadValues<PT>(x, stage + Tiles::keys, warp * 16);
    advanceState<T, NT, KIND>(state, steps, x, stage, [&](int t) {
      return backwards ? steps[UP * kChunk + t] * s.scale : steps[DOWN * kChunk + t] * steps[W * kChunk + t];
    });
  }
  waitAsync<0>();
  if (!CHUNKS) writeTiled<NT>(state, (backwards ? task.segmentGradients : task.segmentStates) + index * (PT * NT), warp * 16);
  else if (backwards && at.first && g.wantsInitial)
    writeState<NT>(state, s, g.dInitial + pair * s.stateSize(), p0 + warp * 16, s.p);
}

}  // namespace mm::cuda::chunk_scan
