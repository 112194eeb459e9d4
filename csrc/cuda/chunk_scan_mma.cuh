// The chunk engine (chunk_scan.cuh has the formulas) on the tensor cores: bf16 and f16 operands, f32 accumulation, chunks of 64
// steps.
//
// A head's N key channels stay whole (NT = 32, 64 or 128, padded with zeros); its value channels are cut into slices of PT, each
// a virtual head that shares decay, keys and queries, so a state is at most 128 x 128 and fits the registers of a block.
// States are held transposed, (PT, NT).
//
// Forward. Sequences are cut into segments of many chunks, about as many as fill the device. One kernel walks the segments
// and leaves what each adds to the state, a short scan passes the states on, and a second kernel walks the segments again,
// now with the right state in its registers, and writes the outputs. Chunk states never go to memory: at L = 103424, H = 16,
// N = P = 128 they would be 0.8 GB in bf16, twice the size of x, while reading k and v twice costs 0.8 GB.
//   Warp w owns the 16 value channels from 16 w: the accumulators of its state, rounded and packed, are the B fragments of
//   q S as they stand, and a transposed A fragment of v serves both att v and the state's update.
//
// Backward. The chunk's gradients need S before and dS behind it at once, and the two walks run in opposite directions; so
// both walks store the state of every chunk in the dtype of the operands, and the gradients are one kernel over all chunks in
// parallel. Heads of a group are taken one after the other by one block, dq and dk stay in registers, and what several blocks
// sum for one group goes through f32 parts that are added in order.
//
// With a decay per channel (chunk_scan_mma_channel.cuh) the walks are the same; their keys and queries are decayed beforehand, and
// the triangle is there already.
//
// f16 states beyond 65504 overflow here; the general kernels keep them in f32.
#pragma once
#include "cuda/chunk_scan.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kChunk = 64;
// Scalars by step: c_t = hi + lo, w, exp(c_t), exp(c_T - c_t)
enum { HI, LO, W, UP, DOWN, kStepKinds };
constexpr int kStepFloats = kStepKinds * kChunk, kStepBytes = kStepFloats * 4;
constexpr int kGradientThreads = 256;
// Sums by step that the decays' gradient is made of (decayGradient)
enum { CROSSING, CARRIED, DIRECT, kGradientKinds };

struct MmaTask {
  int slices = 1;
  int64_t segment = 1;             // chunks of a segment
  const float* steps = nullptr;    // (chunk slots, heads, kStepKinds, 64)
  // (segment slots, virtual heads, PT, NT): what a segment adds, then the states before (behind) it; null: one segment
  float *segmentStates = nullptr, *segmentGradients = nullptr;
  float* segmentTotals = nullptr;  // (segment slots, heads), by channel (.., N)
  void *states = nullptr, *gradients = nullptr;  // (chunk slots, virtual heads, PT, NT) before and behind every chunk
  float* sums = nullptr;           // (chunk slots, virtual heads, kGradientKinds, 64)
  float* through = nullptr;        // (chunk slots, virtual heads)
  int headsPerPart = 1;            // virtual heads that a block of the gradient kernel takes
  // decay per channel: exp(c_T) (chunk slots, heads, N), att (chunk slots, heads, 64, 64); s.q and s.k are decayed to the ends of chunks
  const float* totals = nullptr;
  const void* attention = nullptr;

  __host__ __device__ int virtualHeads(const Scan& s) const { return s.heads * slices; }
};

// exp(c_t - c_u) for u <= t, from the scalars of a chunk
__device__ __forceinline__ float decayBetween(const float* steps, int t, int u) {
  return __expf((steps[HI * kChunk + t] - steps[HI * kChunk + u]) + (steps[LO * kChunk + t] - steps[LO * kChunk + u]));
}

template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t v) {
  if constexpr (std::is_same_v<T, bf16>) return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v));
  else return __half22float2(*reinterpret_cast<const __half2*>(&v));
}

// The 4-byte pair of columns `col`, col + 1 of a swizzled tile with rows of 8 PIECES elements.
template <int PIECES>
__device__ __forceinline__ uint32_t* pairAt(unsigned char* tile, int row, int col) {
  return reinterpret_cast<uint32_t*>(tile + swizzled<PIECES>(row, col / 8) + col % 8 * 2);
}

// ROWS rows of 8 PIECES elements; zeros from row `rows` and column `cols` (a multiple of 8) on
template <int THREADS, int ROWS, int PIECES, class T>
__device__ __forceinline__ void loadTileAsync(uint32_t tile, const T* x, int64_t stride, int rows, int cols) {
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
    const int row = i / PIECES, piece = i % PIECES;
    const bool inside = row < rows && piece * 8 < cols;
    copyAsync16(tile + swizzled<PIECES>(row, piece), inside ? x + row * stride + piece * 8 : x, inside);
  }
}
// COUNT floats, zeros from `count` (a multiple of 4) on
template <int THREADS, int COUNT>
__device__ __forceinline__ void loadFloatsAsync(uint32_t shared, const float* x, int count = COUNT) {
  for (int i = threadIdx.x; i < COUNT / 4; i += THREADS) copyAsync16(shared + i * 16, i * 4 < count ? x + i * 4 : x, i * 4 < count);
}
// What a walk needs of a chunk's decay: its scalars by step, or the decay of each channel over the chunk.
template <int THREADS, int NT, Decay KIND>
__device__ __forceinline__ void loadDecayAsync(uint32_t shared, const Scan& s, const MmaTask& task, int64_t chunk, int head) {
  const int64_t index = chunk * s.heads + head;
  if (KIND == Decay::Head) loadFloatsAsync<THREADS, kStepFloats>(shared, task.steps + index * kStepFloats);
  else loadFloatsAsync<THREADS, NT>(shared, task.totals + index * s.n, s.n);
}

// Fragments (common/mma.cuh) of swizzled tiles. A, 16 x 16 from (m, k): rows of the tile are m, or k when transposed.
template <int PIECES, bool TRANSPOSED>
__device__ __forceinline__ void loadA(uint32_t (&a)[4], uint32_t tile, int m, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (TRANSPOSED) ldmatrix4Transposed(a, tile + swizzled<PIECES>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
  else ldmatrix4(a, tile + swizzled<PIECES>(m + lane % 16, k / 8 + lane / 16));
}
// B, 16 k x 16 n from (k, n), two tiles of 8 columns: rows of the tile are n, or k when transposed.
template <int PIECES, bool TRANSPOSED>
__device__ __forceinline__ void loadB(uint32_t (&b)[2][2], uint32_t tile, int k, int n) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  if constexpr (TRANSPOSED) ldmatrix4Transposed(r, tile + swizzled<PIECES>(k + lane % 16, n / 8 + lane / 16));
  else ldmatrix4(r, tile + swizzled<PIECES>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// acc (16 M rows from `row`, 8 N columns from `col`) += A B over k0 <= k < k1, by one warp
template <class T, int M, int N, int PA, bool TA, int PB, bool TB>
__device__ __forceinline__ void warpProduct(float (&acc)[M][N][4], uint32_t a, int row, uint32_t b, int col, int k0, int k1) {
#pragma unroll 4
  for (int k = k0; k < k1; k += 16) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) loadA<PA, TA>(fa[m], a, row + 16 * m, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[2][2];
      loadB<PB, TB>(fb, b, k, col + 8 * n);
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma16816<T>(acc[m][n], fa[m], fb[0]);
        mma16816<T>(acc[m][n + 1], fa[m], fb[1]);
      }
    }
  }
}

// f(m, n, half, row, column) for the pairs (row, column), (row, column + 1) that acc[m][n][2 half], [2 half + 1] hold
template <int M, int N, class F>
__device__ __forceinline__ void forFragments(int row, int col, F&& f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < N; n++) f(m, n, half, row + 16 * m + 8 * half + lane / 4, col + 8 * n + lane % 4 * 2);
}

// Four lanes of a row exchange: lane t gets word t of the four lanes.
__device__ __forceinline__ void transposeQuad(uint32_t (&r)[4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, t & 1 ? r[j] : r[j + 1], 1);
    (t & 1 ? r[j] : r[j + 1]) = other;
  }
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, t & 2 ? r[j] : r[j + 2], 2);
    (t & 2 ? r[j] : r[j + 2]) = other;
  }
}

// ---- the walk over the states of a segment

template <int NT, int PT>
struct StateTiles {
  static constexpr int threads = 2 * PT, stages = 3;  // a warp holds 16 value channels
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, stage = keys + values + kStepBytes;
  static constexpr int bytes = stages * stage;
};

// Element (p, n) of a state of the call.
__device__ __forceinline__ int64_t stateOffset(const Scan& s, int n, int p) {
  return s.byValue ? int64_t(p) * s.n + n : int64_t(n) * s.p + p;
}

// The state of a warp, NT / 8 accumulator tiles of 16 value channels from `p` x 8 key channels.
template <int NT>
__device__ __forceinline__ void readState(float (&state)[NT / 8][4], const Scan& s, const float* from, int p, int pEnd) {
  const int row = p + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int v = row + i / 2 * 8, n = 8 * j + col + i % 2;
      state[j][i] = v < pEnd && n < s.n ? from[stateOffset(s, n, v)] : 0.f;
    }
}
template <int NT>
__device__ __forceinline__ void writeState(const float (&state)[NT / 8][4], const Scan& s, float* to, int p, int pEnd) {
  const int row = p + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int v = row + i / 2 * 8, n = 8 * j + col + i % 2;
      if (v < pEnd && n < s.n) to[stateOffset(s, n, v)] = state[j][i];
    }
}
// The same for a state (PT, NT) of the workspace; row0: the warp's first row
template <int NT>
__device__ __forceinline__ float2* tiledPair(float* states, int row0, int j, int half) {
  const int lane = threadIdx.x % 32;
  return reinterpret_cast<float2*>(states + (row0 + lane / 4 + 8 * half) * NT + 8 * j + lane % 4 * 2);
}
template <int NT>
__device__ __forceinline__ void readTiled(float (&state)[NT / 8][4], float* from, int row0) {
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float2 v = *tiledPair<NT>(from, row0, j, half);
      state[j][2 * half] = v.x, state[j][2 * half + 1] = v.y;
    }
}
template <int NT>
__device__ __forceinline__ void writeTiled(const float (&state)[NT / 8][4], float* to, int row0) {
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) *tiledPair<NT>(to, row0, j, half) = {state[j][2 * half], state[j][2 * half + 1]};
}
// In the dtype of the operands, 16 bytes a lane.
template <int NT, class T>
__device__ __forceinline__ void writeRounded(const float (&state)[NT / 8][4], T* to, int row0) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int j = 0; j < NT / 8; j += 4) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = pack2<T>(state[j + i][2 * half], state[j + i][2 * half + 1]);
      transposeQuad(r);
      *reinterpret_cast<uint4*>(to + (row0 + lane / 4 + 8 * half) * NT + (j + lane % 4) * 8) = make_uint4(r[0], r[1], r[2], r[3]);
    }
}

// The 64 steps' fragments of v for the 16 value channels from row0.
template <int PT>
__device__ __forceinline__ void loadValues(uint32_t (&x)[kChunk / 16][4], uint32_t values, int row0) {
#pragma unroll
  for (int k = 0; k < kChunk / 16; k++) loadA<PT / 8, true>(x[k], values, row0, 16 * k);
}
// state = exp(c_T) state + sum over the steps of scale(s) v_s k_s^T, from the fragments of v; by channel v is taken as it is. decay: what
// loadDecayAsync brought.
template <class T, int NT, Decay KIND, class Scale>
__device__ __forceinline__ void advanceState(float (&state)[NT / 8][4], const float* decay, const uint32_t (&x)[kChunk / 16][4],
                                             uint32_t keys, Scale&& scale) {
  const int t = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) state[j][i] *= decay[KIND == Decay::Head ? UP * kChunk + kChunk - 1 : 8 * j + t + i % 2];
#pragma unroll
  for (int k = 0; k < kChunk / 16; k++) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (KIND == Decay::Channel) {
        a[i] = x[k][i];
        continue;
      }
      const int step = 16 * k + t + i / 2 * 8;
      const float2 v = unpack2<T>(x[k][i]);
      a[i] = pack2<T>(v.x * scale(step), v.y * scale(step + 1));
    }
#pragma unroll
    for (int j = 0; j < NT / 8; j += 2) {
      uint32_t b[2][2];
      loadB<NT / 8, true>(b, keys, 16 * k, 8 * j);
      mma16816<T>(state[j], a, b[0]);
      mma16816<T>(state[j + 1], a, b[1]);
    }
  }
}
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

// ---- outputs

template <int NT, int PT, Decay KIND>
struct OutputTiles {
  static constexpr int threads = 2 * PT, warps = PT / 16;
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, square = kChunk * kChunk * 2;
  // q, k, v, the decay and by channel att, twice; else one att behind them
  static constexpr int k = keys, v = 2 * keys, decay = v + values, loadedAtt = decay + kStepBytes;
  static constexpr int stage = KIND == Decay::Channel ? loadedAtt + square : loadedAtt;
  static constexpr int madeAtt = 2 * stage, bytes = KIND == Decay::Channel ? madeAtt : madeAtt + square;
  // the warps' parts of the triangle
  static constexpr int rowParts = warps < 4 ? warps : 4, colParts = warps / rowParts;
  static constexpr int rows = kChunk / rowParts, cols = kChunk / colParts;
};

// Walks a segment and writes its outputs, and at the end of the sequence its final state; or (GATE) dz = dy y' silu'(z) with y' the
// output before the gate.
template <class T, int NT, int PT, Decay KIND, bool GATE>
__global__ void __launch_bounds__(2 * PT)
mmaOutputKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task) {
  using Tiles = OutputTiles<NT, PT, KIND>;
  constexpr int K = kChunk / 16, THREADS = Tiles::threads;
  const int virtualHeads = task.virtualHeads(s), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = blockIdx.x, slot = index / virtualHeads;
  const int virtualHead = int(index % virtualHeads), head = virtualHead / task.slices, p0 = virtualHead % task.slices * PT;
  const Place at = locate(s, slot, task.segment * kChunk);
  if (!at.valid) return;
  const int64_t chunk0 = slotsOf(s, at.sequence, kChunk).first + at.local * task.segment;
  const int chunks = (at.length + kChunk - 1) / kChunk, group = head / s.share();
  const uint32_t shared = sharedAddress(chunkScanShared);

  const auto load = [&](int i) {
    const int rows = min(kChunk, at.length - i * kChunk);
    const int64_t t = at.start + int64_t(i) * kChunk;
    const uint32_t stage = shared + i % 2 * Tiles::stage;
    loadTileAsync<THREADS, kChunk, NT / 8>(stage, s.q.at<const T>(at.batch, t, group), s.q.time, rows, s.n);
    loadTileAsync<THREADS, kChunk, NT / 8>(stage + Tiles::k, s.k.at<const T>(at.batch, t, group), s.k.time, rows, s.n);
    loadTileAsync<THREADS, kChunk, PT / 8>(stage + Tiles::v, s.v.at<const T>(at.batch, t, head) + p0, s.v.time, rows, s.p - p0);
    loadDecayAsync<THREADS, NT, KIND>(stage + Tiles::decay, s, task, chunk0 + i, head);
    if (KIND == Decay::Channel) {
      const T* att = static_cast<const T*>(task.attention) + ((chunk0 + i) * s.heads + head) * (kChunk * kChunk);
      loadTileAsync<THREADS, kChunk, 8>(stage + Tiles::loadedAtt, att, kChunk, kChunk, kChunk);
    }
    commitAsync();
  };
  if (chunks) load(0);

  const int row0 = warp * 16, col = p0 + row0 + lane % 4 * 2;  // value channels of this warp; the first of this lane's outputs
  const int64_t pair = int64_t(at.sequence) * s.heads + head;
  float state[NT / 8][4] = {};
  bool zero = at.first && !s.hasInitial;
  if (!zero && task.segmentStates) readTiled<NT>(state, task.segmentStates + index * (PT * NT), row0);
  else if (!zero) readState<NT>(state, s, s.initial + pair * s.stateSize(), p0 + row0, s.p);
  float skip[2][2] = {};
  if (s.skip.given)
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int p = col + 8 * n + i;
        if (p < s.p) skip[n][i] = element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head);
      }

  for (int i = 0; i < chunks; i++) {
    waitAsync<0>();
    __syncthreads();
    if (i + 1 < chunks) load(i + 1);
    unsigned char* tiles = chunkScanShared + i % 2 * Tiles::stage;
    const uint32_t queries = shared + i % 2 * Tiles::stage, keys = queries + Tiles::k, values = queries + Tiles::v;
    const uint32_t attention = KIND == Decay::Channel ? queries + Tiles::loadedAtt : shared + Tiles::madeAtt;
    const float* steps = reinterpret_cast<const float*>(tiles + Tiles::decay);
    const int rows = min(kChunk, at.length - i * kChunk);
    const int64_t t0 = at.start + int64_t(i) * kChunk;

    if (KIND == Decay::Head) {  // the triangle
      constexpr int M = Tiles::rows / 16, N = Tiles::cols / 8;
      const int row = warp % Tiles::rowParts * Tiles::rows, c0 = warp / Tiles::rowParts * Tiles::cols;
      if (c0 < row + Tiles::rows) {
        float acc[M][N][4] = {};
        warpProduct<T, M, N, NT / 8, false, NT / 8, false>(acc, queries, row, keys, c0, 0, NT);
        forFragments<M, N>(row, c0, [&](int m, int n, int half, int t, int u) {
          float x[2];
#pragma unroll
          for (int j = 0; j < 2; j++)
            x[j] = u + j <= t ? acc[m][n][2 * half + j] * (decayBetween(steps, t, u + j) * steps[W * kChunk + u + j] * s.scale) : 0.f;
          *pairAt<8>(chunkScanShared + Tiles::madeAtt, t, u) = pack2<T>(x[0], x[1]);
        });
      }
    }
    float acc[K][2][4] = {};
    if (!zero) {  // q S: the state's tiles are fragments of it
#pragma unroll
      for (int k = 0; k < NT / 16; k++) {
        uint32_t b[2][2];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int j = 0; j < 2; j++) b[n][j] = pack2<T>(state[2 * k + j][2 * n], state[2 * k + j][2 * n + 1]);
#pragma unroll
        for (int m = 0; m < K; m++) {
          uint32_t a[4];
          loadA<NT / 8, false>(a, queries, 16 * m, 16 * k);
          mma16816<T>(acc[m][0], a, b[0]);
          mma16816<T>(acc[m][1], a, b[1]);
        }
      }
      if (KIND == Decay::Head)
        forFragments<K, 2>(0, 0, [&](int m, int n, int half, int t, int) {
          const float up = steps[UP * kChunk + t] * s.scale;
          acc[m][n][2 * half] *= up, acc[m][n][2 * half + 1] *= up;
        });
    }
    if (KIND == Decay::Head) __syncthreads();
    uint32_t x[K][4];
    loadValues<PT>(x, values, row0);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const uint32_t b0[2] = {x[k][0], x[k][2]}, b1[2] = {x[k][1], x[k][3]};
#pragma unroll
      for (int m = k; m < K; m++) {
        uint32_t a[4];
        loadA<8, false>(a, attention, 16 * m, 16 * k);
        mma16816<T>(acc[m][0], a, b0);
        mma16816<T>(acc[m][1], a, b1);
      }
    }

    forFragments<K, 2>(0, 0, [&](int m, int n, int half, int t, int) {
      const int p = col + 8 * n;
      if (t >= rows || p >= s.p) return;
      float o[2] = {acc[m][n][2 * half], acc[m][n][2 * half + 1]};
      if (s.normalized) {
        const float inverse = s.inverse[(at.batch * s.length + t0 + t) * s.heads + head];
        o[0] *= inverse, o[1] *= inverse;
      }
      if (s.skip.given) {
        const float2 v = unpack2<T>(*pairAt<PT / 8>(tiles + Tiles::v, t, p - p0));
        o[0] = fmaf(skip[n][0], v.x, o[0]), o[1] = fmaf(skip[n][1], v.y, o[1]);
      }
      if (s.z.given) {
        const float2 z = unpack2<T>(*reinterpret_cast<const uint32_t*>(s.z.at<const T>(at.batch, t0 + t, head) + p));
        if (GATE) {
          const float2 dy = unpack2<T>(*reinterpret_cast<const uint32_t*>(g.dy.at<const T>(at.batch, t0 + t, head) + p));
          o[0] *= dy.x * siluSlope(z.x), o[1] *= dy.y * siluSlope(z.y);
        } else o[0] *= silu(z.x), o[1] *= silu(z.y);
      }
      const Operand& result = GATE ? g.dz : s.y;
      *reinterpret_cast<uint32_t*>(result.at<T>(at.batch, t0 + t, head) + p) = pack2<T>(o[0], o[1]);
    });
    if (i + 1 < chunks || (!GATE && at.last))
      advanceState<T, NT, KIND>(state, steps, x, keys, [&](int t) { return steps[DOWN * kChunk + t] * steps[W * kChunk + t]; });
    zero = false;
  }
  if (!GATE && at.last) writeState<NT>(state, s, s.final + pair * s.stateSize(), p0 + row0, s.p);
}

// ---- gradients of a chunk

template <int NT, int PT>
struct GradientTiles {
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, state = PT * NT * 2, square = kChunk * kChunk * 2;
  static constexpr int row = kChunk * 4;
  // q, k, v, dO, S, dS, att, R; scalars of the steps; sums by row (and column) of the warps' parts; diagonals of the triangles
  static constexpr int q = 0, k = keys, v = 2 * keys, dO = v + values, s = dO + values, ds = s + state, att = ds + state, r = att + square;
  static constexpr int steps = r + square, rows = steps + kStepBytes, cols = rows + 4 * row, inter = cols + 2 * row;
  static constexpr int carried = inter + 4 * row, diagonal = carried + 4 * row, bytes = diagonal + 2 * row;
};
// The part of this warp of a (64, WIDTH) result: 32 x WIDTH / 4, of narrow ones 16 x WIDTH / 2.
template <int WIDTH>
struct WarpPart {
  static constexpr int rowParts = WIDTH >= 64 ? 2 : 4, colParts = 8 / rowParts, rows = kChunk / rowParts, cols = WIDTH / colParts;
  static constexpr int M = rows / 16, N = cols / 8;
  int rowPart = threadIdx.x / 32 / colParts, colPart = threadIdx.x / 32 % colParts, row = rowPart * rows, col = colPart * cols;
  using Fragments = float[M][N][4];
};

// sums[row] = sum over the columns of this warp of v[m][half], rows as in forFragments
template <int M>
__device__ __forceinline__ void storeRowSums(float (&v)[M][2], float* sums, int row) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float x = v[m][half];
      x += __shfl_xor_sync(kAllLanes, x, 1);
      x += __shfl_xor_sync(kAllLanes, x, 2);
      if (threadIdx.x % 4 == 0) sums[row + 16 * m + 8 * half + threadIdx.x % 32 / 4] = x;
    }
}
// sums[col] = sum over the rows of this warp of v[n][j]
template <int N>
__device__ __forceinline__ void storeColumnSums(float (&v)[N][2], float* sums, int col) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float x = v[n][j];
#pragma unroll
      for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(kAllLanes, x, d);
      if (threadIdx.x % 32 < 4) sums[col + 8 * n + threadIdx.x % 4 * 2 + j] = x;
    }
}

// dq or dk of a group: the gradient itself, or the part of this block. adds(t, c): what comes to the pair of columns from elsewhere.
template <class T, int M, int N, class Adds>
__device__ __forceinline__ void storeKeyGradient(const float (&acc)[M][N][4], int row, int col, const Scan& s, const Gradient& g,
                                                 const Place& at, int group, int part, const Operand& result, float* heads, Adds&& adds) {
  forFragments<M, N>(row, col, [&](int m, int n, int half, int t, int c) {
    if (t >= at.length || c >= s.n) return;
    const float2 more = adds(t, c);
    const float x = acc[m][n][2 * half] + more.x, y = acc[m][n][2 * half + 1] + more.y;
    const int64_t step = at.batch * s.length + at.start + t;
    if (g.sharers > 1) *reinterpret_cast<float2*>(heads + ((step * s.groups + group) * g.sharers + part) * s.n + c) = {x, y};
    else *reinterpret_cast<uint32_t*>(result.at<T>(at.batch, at.start + t, group) + c) = pack2<T>(x, y);
  });
}

template <class T, int NT, int PT>
__global__ void __launch_bounds__(kGradientThreads)
mmaGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task) {
  using Tiles = GradientTiles<NT, PT>;
  constexpr int THREADS = kGradientThreads, KEYS = NT / 8, VALUES = PT / 8;  // pieces of a row
  const int virtualHeads = task.virtualHeads(s), share = s.share() * task.slices, parts = share / task.headsPerPart;
  const int64_t slot = blockIdx.x / (s.groups * parts);
  const int group = int(blockIdx.x / parts % s.groups), part = int(blockIdx.x % parts);
  const int firstHead = group * share + part * task.headsPerPart, endHead = firstHead + task.headsPerPart;
  const Place at = locate(s, slot, kChunk);
  if (!at.valid || !at.length) {
    for (int h = firstHead; g.wantsSkip && h < endHead; h++) {
      const int head = h / task.slices, slice = h % task.slices, end = min(s.p, (slice + 1) * PT);
      if (s.skip.wide) {
        for (int p = slice * PT + threadIdx.x; p < end; p += THREADS) g.skipParts[(slot * s.heads + head) * s.p + p] = 0.f;
      } else if (threadIdx.x == 0) g.skipParts[(slot * task.slices + slice) * s.heads + head] = 0.f;
    }
    return;
  }
  unsigned char* tiles = chunkScanShared;
  const uint32_t shared = sharedAddress(tiles), q = shared + Tiles::q, k = shared + Tiles::k, v = shared + Tiles::v;
  const uint32_t dO = shared + Tiles::dO, state = shared + Tiles::s, dstate = shared + Tiles::ds;
  const uint32_t att = shared + Tiles::att, r = shared + Tiles::r;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(tiles + offset); };
  const auto pair = [&](uint32_t word) { return unpack2<T>(word); };
  const float* steps = floats(Tiles::steps);
  const int64_t firstStep = (at.batch * s.length + at.start) * s.heads;
  const bool decay = g.wantsDecay(), hasState = !at.first || s.hasInitial, hasGradient = !at.last || g.hasFinal;

  loadTileAsync<THREADS, kChunk, KEYS>(q, s.q.at<const T>(at.batch, at.start, group), s.q.time, at.length, s.n);
  loadTileAsync<THREADS, kChunk, KEYS>(k, s.k.at<const T>(at.batch, at.start, group), s.k.time, at.length, s.n);

  using Square = WarpPart<kChunk>;
  using Keys = WarpPart<NT>;
  using Values = WarpPart<PT>;
  const Square square;
  const Keys keys;
  const Values values;
  typename Square::Fragments raw = {};  // scale q.k, the same for all heads of the group
  typename Keys::Fragments dq = {}, dk = {};

  for (int virtualHead = firstHead; virtualHead < endHead; virtualHead++) {
    const int head = virtualHead / task.slices, slice = virtualHead % task.slices, p0 = slice * PT;
    const int64_t index = slot * virtualHeads + virtualHead;
    const T *x = s.v.at<const T>(at.batch, at.start, head) + p0, *dy = g.dy.at<const T>(at.batch, at.start, head) + p0;
    __syncthreads();  // the tiles of the head before are read
    loadTileAsync<THREADS, kChunk, VALUES>(v, x, s.v.time, at.length, s.p - p0);
    loadTileAsync<THREADS, kChunk, VALUES>(dO, dy, g.dy.time, at.length, s.p - p0);
    loadFloatsAsync<THREADS, kStepFloats>(shared + Tiles::steps, task.steps + (slot * s.heads + head) * kStepFloats);
    commitAsync();
    if (hasGradient) loadTileAsync<THREADS, PT, KEYS>(dstate, static_cast<const T*>(task.gradients) + index * (PT * NT), NT, PT, NT);
    commitAsync();
    if (hasState) loadTileAsync<THREADS, PT, KEYS>(state, static_cast<const T*>(task.states) + index * (PT * NT), NT, PT, NT);
    commitAsync();
    waitAsync<2>();
    __syncthreads();

    if (virtualHead == firstHead) {
      warpProduct<T, Square::M, Square::N, KEYS, false, KEYS, false>(raw, q, square.row, k, square.col, 0, NT);
      forFragments<Square::M, Square::N>(0, 0, [&](int m, int n, int half, int, int) {
        raw[m][n][2 * half] *= s.scale, raw[m][n][2 * half + 1] *= s.scale;
      });
    }
    {  // att and R, and the sums over rows and columns of what passes through the decay mask
      typename Square::Fragments acc = {};
      float rows[Square::M][2] = {}, cols[Square::N][2] = {};
      warpProduct<T, Square::M, Square::N, VALUES, false, VALUES, false>(acc, dO, square.row, v, square.col, 0, PT);
      forFragments<Square::M, Square::N>(square.row, square.col, [&](int m, int n, int half, int t, int u) {
        const float dden = g.dden && slice == 0 && t < at.length ? g.dden[firstStep + int64_t(t) * s.heads + head] : 0.f;
        float a[2], b[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float e = decayBetween(steps, t, u + j), w = steps[W * kChunk + u + j], product = acc[m][n][2 * half + j] + dden;
          a[j] = u + j <= t ? raw[m][n][2 * half + j] * e : 0.f;
          b[j] = u + j <= t ? product * e * w * s.scale : 0.f;
          const float both = product * a[j];
          if (u + j < t) rows[m][half] = fmaf(w, both, rows[m][half]), cols[n][j] += both;
          if (u + j == t) floats(Tiles::diagonal)[t] = both, floats(Tiles::diagonal)[kChunk + t] = product;
        }
        *pairAt<8>(tiles + Tiles::att, t, u) = pack2<T>(a[0], a[1]);
        *pairAt<8>(tiles + Tiles::r, t, u) = pack2<T>(b[0], b[1]);
      });
      storeRowSums<Square::M>(rows, floats(Tiles::rows) + square.colPart * kChunk, square.row);
      storeColumnSums<Square::N>(cols, floats(Tiles::cols) + square.rowPart * kChunk, square.col);
    }
    waitAsync<1>();
    __syncthreads();

    {  // dv
      typename Values::Fragments acc = {};
      float carried[Values::M][2] = {};
      if (hasGradient) {
        warpProduct<T, Values::M, Values::N, KEYS, false, KEYS, false>(acc, k, values.row, dstate, values.col, 0, NT);
        forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
          const float down = steps[DOWN * kChunk + t];
          const float2 value = pair(*pairAt<VALUES>(tiles + Tiles::v, t, p));
          float* d = acc[m][n] + 2 * half;
          d[0] *= down, d[1] *= down;
          carried[m][half] = fmaf(value.y, d[1], fmaf(value.x, d[0], carried[m][half]));
        });
      }
      storeRowSums<Values::M>(carried, floats(Tiles::carried) + values.colPart * kChunk, values.row);
      if (g.dv.given) {
        warpProduct<T, Values::M, Values::N, 8, true, VALUES, true>(acc, att, values.row, dO, values.col, values.row, kChunk);
        forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
          if (t >= at.length || p0 + p >= s.p) return;
          const float w = steps[W * kChunk + t];
          float d[2] = {acc[m][n][2 * half] * w, acc[m][n][2 * half + 1] * w};
          if (s.skip.given) {
            const float2 dy2 = pair(*pairAt<VALUES>(tiles + Tiles::dO, t, p));
            const int64_t i = s.skip.wide ? int64_t(head) * s.p + p0 + p : head;
            d[0] = fmaf(element(s.skip.data, s.skip.dtype, i), dy2.x, d[0]);
            d[1] = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? i + 1 : i), dy2.y, d[1]);
          }
          *reinterpret_cast<uint32_t*>(g.dv.at<T>(at.batch, at.start + t, head) + p0 + p) = pack2<T>(d[0], d[1]);
        });
      }
    }
    if (g.wantsSkip && s.skip.wide && threadIdx.x < PT / 2 && p0 + int(threadIdx.x) * 2 < s.p) {
      const int p = threadIdx.x * 2;
      float sum[2] = {};
      for (int t = 0; t < at.length; t++) {
        const float2 a = pair(*pairAt<VALUES>(tiles + Tiles::v, t, p)), b = pair(*pairAt<VALUES>(tiles + Tiles::dO, t, p));
        sum[0] = fmaf(a.x, b.x, sum[0]), sum[1] = fmaf(a.y, b.y, sum[1]);
      }
      float* to = g.skipParts + (slot * s.heads + head) * s.p + p0 + p;
      to[0] = sum[0], to[1] = sum[1];
    }
    waitAsync<0>();
    __syncthreads();

    if (g.dq.given || decay) {
      typename Keys::Fragments acc = {};
      float inter[Keys::M][2] = {};
      if (hasState) {
        warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(acc, dO, keys.row, state, keys.col, 0, PT);
        forFragments<Keys::M, Keys::N>(keys.row, keys.col, [&](int m, int n, int half, int t, int c) {
          const float up = steps[UP * kChunk + t] * s.scale;
          const float2 query = pair(*pairAt<KEYS>(tiles + Tiles::q, t, c));
          const float d0 = acc[m][n][2 * half] * up, d1 = acc[m][n][2 * half + 1] * up;
          dq[m][n][2 * half] += d0, dq[m][n][2 * half + 1] += d1;
          inter[m][half] = fmaf(query.y, d1, fmaf(query.x, d0, inter[m][half]));
        });
      }
      storeRowSums<Keys::M>(inter, floats(Tiles::inter) + keys.colPart * kChunk, keys.row);
      if (g.dq.given) warpProduct<T, Keys::M, Keys::N, 8, false, KEYS, true>(dq, r, keys.row, k, keys.col, 0, keys.row + Keys::rows);
    }
    if (g.dk.given) {
      if (hasGradient) {
        typename Keys::Fragments acc = {};
        warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(acc, v, keys.row, dstate, keys.col, 0, PT);
        forFragments<Keys::M, Keys::N>(keys.row, keys.col, [&](int m, int n, int half, int t, int) {
          const float f = steps[DOWN * kChunk + t] * steps[W * kChunk + t];
          dk[m][n][2 * half] = fmaf(f, acc[m][n][2 * half], dk[m][n][2 * half]);
          dk[m][n][2 * half + 1] = fmaf(f, acc[m][n][2 * half + 1], dk[m][n][2 * half + 1]);
        });
      }
      warpProduct<T, Keys::M, Keys::N, 8, true, KEYS, true>(dk, r, keys.row, q, keys.col, keys.row, kChunk);
    }
    float through = 0.f;
    if (decay && hasState && hasGradient) {
      const uint4 *a = reinterpret_cast<const uint4*>(tiles + Tiles::s), *b = reinterpret_cast<const uint4*>(tiles + Tiles::ds);
      for (int i = threadIdx.x; i < PT * NT / 8; i += THREADS) {
        const uint4 x4 = a[i], y4 = b[i];
        const uint32_t xs[4] = {x4.x, x4.y, x4.z, x4.w}, ys[4] = {y4.x, y4.y, y4.z, y4.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 x2 = pair(xs[j]), y2 = pair(ys[j]);
          through = fmaf(x2.y, y2.y, fmaf(x2.x, y2.x, through));
        }
      }
    }
    __syncthreads();  // the triangle's tile is free: scratch of the reduction
    if (decay) {
      through = blockReduce(through, floats(Tiles::att)) * steps[UP * kChunk + kChunk - 1];
      if (threadIdx.x < kChunk) {
        const int t = threadIdx.x;
        const auto sum = [&](int offset, int count) {
          float all = 0.f;
          for (int i = 0; i < count; i++) all += floats(offset)[i * kChunk + t];
          return all;
        };
        const float cols = sum(Tiles::cols, Square::rowParts), carried = sum(Tiles::carried, Values::colParts);
        float* sums = task.sums + index * kGradientKinds * kChunk + t;
        sums[CROSSING * kChunk] = sum(Tiles::rows, Square::colParts) - steps[W * kChunk + t] * cols + sum(Tiles::inter, Keys::colParts);
        sums[CARRIED * kChunk] = carried;
        sums[DIRECT * kChunk] = floats(Tiles::diagonal)[t] + cols + carried;
        if (t == 0) task.through[index] = through;
      }
    }
    if (g.wantsSkip && !s.skip.wide && threadIdx.x < 32) {
      const float* diagonal = floats(Tiles::diagonal) + kChunk;
      const float sum = warpReduce(diagonal[threadIdx.x] + diagonal[32 + threadIdx.x]);
      if (threadIdx.x == 0) g.skipParts[(slot * task.slices + slice) * s.heads + head] = sum;
    }
  }
  // where den is differentiated every head is its own group
  if (g.dq.given)
    storeKeyGradient<T>(dq, keys.row, keys.col, s, g, at, group, part, g.dq, g.dqHeads, [&](int t, int c) {
      if (!g.before || part) return float2{0.f, 0.f};
      const float f = g.dden[firstStep + int64_t(t) * s.heads + group] * s.scale;
      const float* z = g.before + (slot * s.heads + group) * s.n + c;
      return float2{f * z[0], f * z[1]};
    });
  if (g.dk.given)
    storeKeyGradient<T>(dk, keys.row, keys.col, s, g, at, group, part, g.dk, g.dkHeads, [&](int, int c) {
      if (!g.behind || part) return float2{0.f, 0.f};
      const float* e = g.behind + (slot * s.heads + group) * s.n + c;
      return float2{e[0], e[1]};
    });
}

// ---- launchers of the instances, in chunk_scan_mma_{states,output,gradient}.cu

struct MmaSizes {
  int nt = 0, pt = 0;
};
// Calls f(T{}, NT, PT) with the instance of these sizes.
template <class F>
int32_t dispatchMma(int32_t dtype, const MmaSizes& sizes, F&& f) {
  const auto bySize = [&](auto t) {
    const auto call = [&](auto nt, auto pt) { return f(t, nt, pt); };
    using std::integral_constant;
    constexpr integral_constant<int, 32> c32{};
    constexpr integral_constant<int, 64> c64{};
    constexpr integral_constant<int, 128> c128{};
    if (sizes.nt == 32) return call(c32, c32);
    if (sizes.nt == 64) return sizes.pt == 64 ? call(c64, c64) : call(c64, c128);
    return sizes.pt == 32 ? call(c128, c32) : sizes.pt == 64 ? call(c128, c64) : call(c128, c128);
  };
  return dtype == MM_BF16 ? bySize(bf16{}) : bySize(f16{});
}

int32_t launchMmaStates(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool chunks, int direction, int directions);
int32_t launchMmaOutput(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, Decay kind,
                        int64_t segments, bool gate);
int32_t launchMmaGradient(const MMCall* c, const Scan& s, const Gradient& g, const MmaTask& task, const MmaSizes& sizes, int64_t blocks);

// ---- decay per channel, chunk_scan_mma_channel.{cuh,cu}

struct ChannelTask {
  void *queries = nullptr, *keys = nullptr;  // q decayed from the start of the chunk, k to its end (B, L, heads, N)
  void* attention = nullptr;                 // (chunk slots, heads, 64, 64)
  float* totals = nullptr;                   // (chunk slots, heads, N)
  // (chunk slots, heads, 64, 64), (B, L, heads, N) twice, (chunk slots, heads, N): what chunk_scan_general.cuh's Task says
  float *r = nullptr, *dq = nullptr, *dk = nullptr, *through = nullptr;
};
size_t channelGradientShared(const MmaSizes& sizes);
int32_t launchChannelOperands(const MMCall* c, const Scan& s, const ChannelTask& channel, int64_t blocks);
// `decayed` has the decayed queries and keys, `s` those of the call.
int32_t launchChannelGradient(const MMCall* c, const Scan& s, const Scan& decayed, const Gradient& g, const MmaTask& task,
                              const ChannelTask& channel, const MmaSizes& sizes, int64_t blocks);

}  // namespace mm::cuda::chunk_scan
