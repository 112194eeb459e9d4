// selectiveScan: d = delta + deltaBias (softplus of it), s_t = exp(d_t A) s_{t-1} + d_t B_t u_t, y_t = <C_t, s_t> + D u_t,
// out = y silu(z). u, delta, z (B, D, L) of any strides; A (D, N); B, C (D, N) or (B, G, N, L); states in f32.
//
// A thread owns a channel and walks its length; nothing is exchanged between channels. Bound by the exponentials, one a step and
// state (16 a clock and multiprocessor), so everything else is kept below that: u, delta, z come in tiles of 128 bytes a channel
// through shared memory (cp.async, whole sectors; rows are swizzled, as every thread reads its own), B and C as rows of one tile,
// read by all channels of the block at once. 16 steps at a time: step, d u and y of 16 steps stay in registers, the loop over
// states is outside them, and A and s of a (state, channel) lie in shared memory between two visits. So N is any number; what
// does not fit at once goes in passes over ranges of states, y being carried in f32.
//
// Where B x D leaves the device idle, the length is cut into chunks: a sweep finds each chunk's last state from a zero start and
// its sum of steps (which gives its decay), a small kernel chains them, and the chunks run at once from their true starts.
// 16 states in 2-byte operands have kernels of their own: selective_scan_lanes.cuh.
#pragma once
#include "cuda/common/mma.cuh"
#include "cuda/half_math.cuh"
#include "ops/selective_scan.h"

namespace mm::cuda {

constexpr int kScanSteps = 16;  // that are held in registers; times log2(e), while A is as given

// ---- operands

// How a (B, D, L) operand is read and written: 16 bytes along its steps or along its channels, or one element at a time.
enum class ScanAccess : int32_t { elements, steps, channels };

struct ScanOperand {
  void* data;  // null: absent
  int64_t batch, channel, time;
  ScanAccess access;
};

// A parameter or constant projection of any float dtype, dense.
struct ScanParameter {
  const void* data;  // null: absent
  int32_t dtype;

  __device__ __forceinline__ float at(int64_t i) const {
    return dtype == MM_F32 ? static_cast<const float*>(data)[i] : dtype == MM_BF16 ? toFloat(static_cast<const bf16*>(data)[i])
        : toFloat(static_cast<const f16*>(data)[i]);
  }
};

struct ScanShape {
  int64_t batch, channels, length;
  int32_t states, first, count;  // N; the states [first, first + count) of this pass
  int32_t groups, perGroup, blocks;  // blocks of channels of one group
  int32_t chunks;
  int64_t chunkSteps;  // a multiple of 64
  bool variesB, variesC, wholeRows;  // wholeRows: rows of B and C can be read in 16 bytes
  bool softplus;
};

struct ScanInputs {
  ScanShape shape;
  ScanOperand u, delta, z;
  ScanParameter a, b, c, d, bias;
};

// What one block works on: one chunk of `channels` channels of one group and batch, blocks fastest.
struct ScanPlace {
  int64_t b, channel, begin, end;  // first channel; steps [begin, end)
  int32_t group, block, chunk, valid;  // valid: channels that exist

  __device__ __forceinline__ ScanPlace(const ScanShape& v, int channels) {
    unsigned i = blockIdx.x;
    block = int32_t(i % unsigned(v.blocks)), i /= unsigned(v.blocks);
    group = int32_t(i % unsigned(v.groups)), i /= unsigned(v.groups);
    b = i % v.batch, chunk = int32_t(i / v.batch);
    const int at = block * channels;
    channel = int64_t(group) * v.perGroup + at;
    valid = v.perGroup - at < channels ? v.perGroup - at : channels;
    begin = chunk * v.chunkSteps;
    end = begin + v.chunkSteps < v.length ? begin + v.chunkSteps : v.length;
  }
  // Of a (batch, rows, D) array in f32, row `row` of `rows`, the block's channel `i`.
  __device__ __forceinline__ int64_t at(const ScanShape& v, int64_t row, int64_t rows, int i) const {
    return (b * rows + row) * v.channels + channel + i;
  }
  // The same, this thread's channel.
  __device__ __forceinline__ int64_t at(const ScanShape& v, int64_t row, int64_t rows) const { return at(v, row, rows, threadIdx.x); }
};

// ---- tiles: [channel][step], rows of STEPS elements of T, swizzled in pieces of 16 bytes

template <class T, int STEPS>
struct ScanTile {
  static constexpr int kPieces = STEPS * int(sizeof(T)) / 16, kEach = 16 / int(sizeof(T)), kBytes = STEPS * int(sizeof(T));

  static __device__ __forceinline__ uint32_t at(int row, int t) { return swizzled<kPieces>(row,
      t / kEach) + uint32_t(t % kEach) * uint32_t(sizeof(T)); }
  static __device__ __forceinline__ T& element(char* tile, int row, int t) { return *reinterpret_cast<T*>(tile + at(row, t)); }
};

__device__ __forceinline__ int scanLeft(int64_t t, int64_t end, int most) { return end - t < most ? int(end - t) : most; }

// Every warp reads and writes the rows of its own 32 channels, so that a warp's barrier is enough. Missing channels and steps are
// read as zero and not written. `left` steps from t are there.
//
// Along the channels, or element by element; calls of their own, as their registers are of no use to the others.
template <class T, int STEPS>
__device__ __noinline__ void loadScanRowsAcross(char* tile, const T* p, int64_t channel, int64_t time, bool vectors, int valid, int left) {
  using Tile = ScanTile<T, STEPS>;
  constexpr int E = Tile::kEach, ACROSS = 32 / E, ALONG = 32 / ACROSS;
  const int lane = threadIdx.x % 32, row0 = threadIdx.x - lane;
  if (vectors) {
    const int row = row0 + lane % ACROSS * E, step = lane / ACROSS;
    Pack<T, E> packs[STEPS / ALONG];
#pragma unroll
    for (int k = 0; k < STEPS / ALONG; k++) {
      if (row < valid && k * ALONG + step < left) packs[k] = *reinterpret_cast<const Pack<T, E>*>(p + row + (k * ALONG + step) * time);
      else
#pragma unroll
        for (int i = 0; i < E; i++) packs[k].v[i] = fromFloat<T>(0.f);
    }
#pragma unroll
    for (int k = 0; k < STEPS / ALONG; k++)
#pragma unroll
      for (int i = 0; i < E; i++) Tile::element(tile, row + i, k * ALONG + step) = packs[k].v[i];
    return;
  }
  const bool along = time <= channel;  // lanes along the steps
#pragma unroll 8
  for (int i = lane; i < 32 * STEPS; i += 32) {
    const int row = row0 + (along ? i / STEPS : i % 32), step = along ? i % STEPS : i / 32;
    Tile::element(tile, row, step) = row < valid && step < left ? p[row * channel + step * time] : fromFloat<T>(0.f);
  }
}
template <class T, int STEPS>
__device__ __noinline__ void storeScanRowsAcross(char* tile, T* p, int64_t channel, int64_t time, bool vectors, int valid, int left) {
  using Tile = ScanTile<T, STEPS>;
  constexpr int E = Tile::kEach, ACROSS = 32 / E, ALONG = 32 / ACROSS;
  const int lane = threadIdx.x % 32, row0 = threadIdx.x - lane;
  if (vectors) {
    const int row = row0 + lane % ACROSS * E, step = lane / ACROSS;
#pragma unroll
    for (int k = 0; k < STEPS / ALONG; k++) {
      Pack<T, E> pack;
#pragma unroll
      for (int i = 0; i < E; i++) pack.v[i] = Tile::element(tile, row + i, k * ALONG + step);
      if (row < valid && k * ALONG + step < left) *reinterpret_cast<Pack<T, E>*>(p + row + (k * ALONG + step) * time) = pack;
    }
    return;
  }
  const bool along = time <= channel;
#pragma unroll 8
  for (int i = lane; i < 32 * STEPS; i += 32) {
    const int row = row0 + (along ? i / STEPS : i % 32), step = along ? i % STEPS : i / 32;
    if (row < valid && step < left) p[row * channel + step * time] = Tile::element(tile, row, step);
  }
}

template <class T, int STEPS>
__device__ __forceinline__ void loadScanRows(char* tile, const ScanOperand& v, const ScanPlace& place, int64_t t, int left) {
  constexpr int P = ScanTile<T, STEPS>::kPieces, E = ScanTile<T, STEPS>::kEach;
  const int lane = threadIdx.x % 32, row0 = threadIdx.x - lane;
  const T* p = static_cast<const T*>(v.data) + place.b * v.batch + place.channel * v.channel + t * v.time;
  // A row that ends within a piece goes element by element: nothing may be read behind the operand.
  if (v.access != ScanAccess::steps || (left < STEPS && left % E))
    return loadScanRowsAcross<T, STEPS>(tile, p, v.channel, v.time, v.access == ScanAccess::channels, place.valid, left);
  const int piece = lane % P;
#pragma unroll
  for (int k = 0; k < P; k++) {
    const int row = row0 + k * (32 / P) + lane / P;
    const bool valid = row < place.valid && piece * E < left;
    copyAsync16(sharedAddress(tile) + swizzled<P>(row, piece), valid ? p + row * v.channel + piece * E : p, valid);
  }
}

template <class T, int STEPS>
__device__ __forceinline__ void storeScanRows(char* tile, const ScanOperand& v, const ScanPlace& place, int64_t t, int left) {
  constexpr int P = ScanTile<T, STEPS>::kPieces, E = ScanTile<T, STEPS>::kEach;
  const int lane = threadIdx.x % 32, row0 = threadIdx.x - lane;
  T* p = static_cast<T*>(v.data) + place.b * v.batch + place.channel * v.channel + t * v.time;
  if (v.access != ScanAccess::steps) return storeScanRowsAcross<T, STEPS>(tile, p, v.channel, v.time, v.access == ScanAccess::channels,
      place.valid, left);
  const int piece = lane % P, there = left - piece * E;
#pragma unroll
  for (int k = 0; k < P; k++) {
    const int row = row0 + k * (32 / P) + lane / P;
    if (row >= place.valid) continue;
    const Pack<T, E> pack = *reinterpret_cast<const Pack<T, E>*>(tile + swizzled<P>(row, piece));
    T* to = p + row * v.channel + piece * E;
    if (there >= E) *reinterpret_cast<Pack<T, E>*>(to) = pack;
    else
#pragma unroll
      for (int i = 0; i < E; i++)
        if (i < there) to[i] = pack.v[i];
  }
}

// Brings the lines of a later tile near; they are asked for while this one is worked on.
__device__ __forceinline__ void prefetchScanRow(const ScanOperand& v, const ScanPlace& place, int64_t t, int elementBytes) {
  if (v.access != ScanAccess::steps || int(threadIdx.x) >= place.valid) return;
  const int64_t at = place.b * v.batch + (place.channel + threadIdx.x) * v.channel + t * v.time;
  prefetchLine(static_cast<const char*>(v.data) + at * elementBytes);
}

// [state][step] of B or C (B, G, N, L), read by the whole block
template <class T, int STEPS>
__device__ __forceinline__ void loadScanStates(T* tile, const ScanParameter& v, const ScanShape& shape, const ScanPlace& place, int64_t t,
    int left) {
  constexpr int P = STEPS * int(sizeof(T)) / 16, E = 16 / int(sizeof(T));
  const T* p = static_cast<const T*>(v.data) + ((place.b * shape.groups + place.group) * shape.states + shape.first) * shape.length + t;
  if (shape.wholeRows) {
    for (int i = threadIdx.x; i < shape.count * P; i += blockDim.x) {
      const int n = i / P, piece = i % P, there = left - piece * E;
      copyAsync16(sharedAddress(tile + n * STEPS + piece * E), there > 0 ? p + n * shape.length + piece * E : p, there > 0);
    }
  } else {
    for (int i = threadIdx.x; i < shape.count * STEPS; i += blockDim.x) {
      const int n = i / STEPS, step = i % STEPS;
      tile[i] = step < left ? p[n * shape.length + step] : fromFloat<T>(0.f);
    }
  }
}

// 16 steps of this thread's row
template <class T, int STEPS>
__device__ __forceinline__ void readScanSteps(const char* tile, int t, float (&out)[kScanSteps]) {
  constexpr int P = ScanTile<T, STEPS>::kPieces, E = ScanTile<T, STEPS>::kEach;
#pragma unroll
  for (int k = 0; k < kScanSteps / E; k++) {
    float part[E];
    loadPacked<E>(reinterpret_cast<const T*>(tile + swizzled<P>(threadIdx.x, t / E + k)), part);
#pragma unroll
    for (int i = 0; i < E; i++) out[k * E + i] = part[i];
  }
}
template <class T, int STEPS>
__device__ __forceinline__ void writeScanSteps(char* tile, int t, const float (&in)[kScanSteps]) {
  constexpr int P = ScanTile<T, STEPS>::kPieces, E = ScanTile<T, STEPS>::kEach;
#pragma unroll
  for (int k = 0; k < kScanSteps / E; k++) {
    float part[E];
#pragma unroll
    for (int i = 0; i < E; i++) part[i] = in[k * E + i];
    storePacked<E>(reinterpret_cast<T*>(tile + swizzled<P>(threadIdx.x, t / E + k)), part);
  }
}
// 16 steps of B or C for one state: a row of the tile, or the channel's constant
template <class T, bool VARIES>
__device__ __forceinline__ void readScanState(bool varies, const T* row, float constant, float (&out)[kScanSteps]) {
  constexpr int E = 16 / int(sizeof(T));
  if (VARIES || varies) {
#pragma unroll
    for (int k = 0; k < kScanSteps / E; k++) {
      float part[E];
      loadPacked<E>(row + k * E, part);
#pragma unroll
      for (int i = 0; i < E; i++) out[k * E + i] = part[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kScanSteps; i++) out[i] = constant;
  }
}

// One exchange of a transposing reduction: N values of two lanes that differ in `bit` become N / 2 sums each, of the first half of
// the values in the lower lane.
template <int N>
__device__ __forceinline__ void foldLanes(const float (&v)[N], int lane, int bit, float (&sums)[N / 2]) {
  const bool upper = lane & bit;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    const float keep = upper ? v[i + N / 2] : v[i], send = upper ? v[i] : v[i + N / 2];
    sums[i] = keep + __shfl_xor_sync(0xffffffffu, send, bit);
  }
}

// From delta's tile the steps times log2(e), zero behind the end: such steps leave the state as it is. `raw`: before the softplus.
template <class T, int STEPS>
__device__ __forceinline__ void readScanDeltas(const char* tile, int t, float bias, bool softplus, int left, float (&step)[kScanSteps]) {
  readScanSteps<T, STEPS>(tile, t, step);
#pragma unroll
  for (int i = 0; i < kScanSteps; i++) step[i] += bias;
  if (softplus)
#pragma unroll
    for (int i = 0; i < kScanSteps; i++) step[i] = softplusFor<T>(step[i]);
#pragma unroll
  for (int i = 0; i < kScanSteps; i++) step[i] *= kLog2e;
  if (left < t + kScanSteps)
#pragma unroll
    for (int i = 0; i < kScanSteps; i++)
      if (t + i >= left) step[i] = 0.f;
}

// Shared memory cut into parts; the same walk on the host gives the size.
struct ScanShared {
  char* base;
  uint32_t used;

  template <class E>
  __host__ __device__ __forceinline__ E* take(bool wanted, int count) {
    E* p = reinterpret_cast<E*>(base + used);
    if (wanted) used += (uint32_t(count) * uint32_t(sizeof(E)) + 127) / 128 * 128;
    return wanted ? p : nullptr;
  }
};

// Values of (state, channel) pairs between two visits: value[n * channels + channel].
__device__ __forceinline__ float& scanSlot(float* slots, int n) { return slots[n * int(blockDim.x) + int(threadIdx.x)]; }

__device__ __forceinline__ void fillScanParameter(float* slots, const ScanParameter& v, const ScanShape& shape, const ScanPlace& place) {
  const bool active = int(threadIdx.x) < place.valid;
  for (int n = 0; n < shape.count; n++)
    scanSlot(slots, n) = active ? v.at((place.channel + threadIdx.x) * shape.states + shape.first + n) : 0.f;
}

// ---- forward

template <class T>
constexpr int kScanTileSteps = 128 / int(sizeof(T));

struct ScanForward {
  ScanInputs in;
  ScanOperand out;
  float* lastState;      // (B, D, N)
  const float* starts;   // (B, chunks, N, D) states before the chunks; null: zeros
  float* carried;        // (B, L, D) y between passes; null where one pass does
};

template <class T>
struct ScanForwardShared {
  char *u, *delta, *z;
  T *b, *c;
  float *a, *s, *constB, *constC;
  uint32_t bytes;

  __host__ __device__ __forceinline__ ScanForwardShared(char* base, const ScanShape& v, int channels, bool gated) {
    ScanShared shared{base, 0};
    const int tile = channels * 128;
    u = shared.take<char>(true, tile), delta = shared.take<char>(true, tile), z = shared.take<char>(gated, tile);
    b = shared.take<T>(v.variesB, v.count * kScanTileSteps<T>), c = shared.take<T>(v.variesC, v.count * kScanTileSteps<T>);
    a = shared.take<float>(true, v.count * channels), s = shared.take<float>(true, v.count * channels);
    constB = shared.take<float>(!v.variesB, v.count * channels), constC = shared.take<float>(!v.variesC, v.count * channels);
    bytes = shared.used;
  }
};

// VARIES: both B and C vary in time; otherwise the shape says which.
template <class T, bool VARIES>
__global__ void __launch_bounds__(128, 3) selectiveScanFwdKernel(const ScanForward v) {
  extern __shared__ __align__(128) char scanShared[];
  constexpr int STEPS = kScanTileSteps<T>;
  const ScanShape& shape = v.in.shape;
  const ScanForwardShared<T> m(scanShared, shape, blockDim.x, v.in.z.data);
  const ScanPlace place(shape, blockDim.x);
  const bool active = int(threadIdx.x) < place.valid, opens = shape.first == 0, closes = shape.first + shape.count == shape.states;
  const int64_t d = place.channel + threadIdx.x;
  fillScanParameter(m.a, v.in.a, shape, place);
  if (m.constB) fillScanParameter(m.constB, v.in.b, shape, place);
  if (m.constC) fillScanParameter(m.constC, v.in.c, shape, place);
  for (int n = 0; n < shape.count; n++)
    scanSlot(m.s, n) = v.starts && active ? v.starts[place.at(shape, int64_t(place.chunk) * shape.states + shape.first + n,
        int64_t(shape.chunks) * shape.states)] : 0.f;
  const float bias = v.in.bias.data && active ? v.in.bias.at(d) : 0.f, skip = v.in.d.data && active ? v.in.d.at(d) : 0.f;

  for (int64_t t = place.begin; t < place.end; t += STEPS) {
    const int left = scanLeft(t, place.end, STEPS);
    __syncthreads();  // all have read the last tile of B and C, and stored the last outputs
    loadScanRows<T, STEPS>(m.u, v.in.u, place, t, left);
    loadScanRows<T, STEPS>(m.delta, v.in.delta, place, t, left);
    if (m.z) loadScanRows<T, STEPS>(m.z, v.in.z, place, t, left);
    if (m.b) loadScanStates<T, STEPS>(m.b, v.in.b, shape, place, t, left);
    if (m.c) loadScanStates<T, STEPS>(m.c, v.in.c, shape, place, t, left);
    commitAsync();
    waitAsync<0>();
    __syncthreads();
    if (t + STEPS < place.end) {
      prefetchScanRow(v.in.u, place, t + STEPS, sizeof(T));
      prefetchScanRow(v.in.delta, place, t + STEPS, sizeof(T));
      if (m.z) prefetchScanRow(v.in.z, place, t + STEPS, sizeof(T));
    }
#pragma unroll 1
    for (int sub = 0; sub < left; sub += kScanSteps) {
      float step[kScanSteps], du[kScanSteps], y[kScanSteps];
      readScanDeltas<T, STEPS>(m.delta, sub, bias, shape.softplus, left, step);
      readScanSteps<T, STEPS>(m.u, sub, du);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) {
        y[i] = skip * du[i];
        du[i] *= step[i] * kLn2;
      }
      if (!opens && active)
#pragma unroll
        for (int i = 0; i < kScanSteps; i++)
          if (sub + i < left) y[i] = v.carried[place.at(shape, t + sub + i, shape.length)];
#pragma unroll 2
      for (int n = 0; n < shape.count; n++) {
        const float a = scanSlot(m.a, n);
        float s = scanSlot(m.s, n), b[kScanSteps], c[kScanSteps];
        readScanState<T, VARIES>(shape.variesB, m.b + n * STEPS + sub, VARIES || shape.variesB ? 0.f : scanSlot(m.constB, n), b);
        readScanState<T, VARIES>(shape.variesC, m.c + n * STEPS + sub, VARIES || shape.variesC ? 0.f : scanSlot(m.constC, n), c);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) {
          s = fmaf(exp2Approximate(step[i] * a), s, du[i] * b[i]);
          y[i] = fmaf(c[i], s, y[i]);
        }
        scanSlot(m.s, n) = s;
      }
      if (!closes) {
        if (active)
#pragma unroll
          for (int i = 0; i < kScanSteps; i++)
            if (sub + i < left) v.carried[place.at(shape, t + sub + i, shape.length)] = y[i];
        continue;
      }
      if (m.z) {
        float z[kScanSteps];
        readScanSteps<T, STEPS>(m.z, sub, z);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) y[i] *= z[i] * sigmoidFor<T>(z[i]);
      }
      writeScanSteps<T, STEPS>(m.u, sub, y);
    }
    if (closes) {
      __syncwarp();
      storeScanRows<T, STEPS>(m.u, v.out, place, t, left);
    }
  }
  if (place.end == shape.length && active)
    for (int n = 0; n < shape.count; n++) v.lastState[(place.b * shape.channels + d) * shape.states + shape.first + n] = scanSlot(m.s, n);
}

// ---- the sweep: states without outputs

struct ScanSweep {
  ScanInputs in;
  ScanOperand dOut;  // for REVERSE
  float* ends;       // (B, chunks, N, D): the chunks' last states from a zero start; null: not wanted
  float* sums;       // (B, chunks, D): the chunks' sums of steps, times log2(e); null: not wanted
  float* back;       // (B, chunks, N, D): for REVERSE, d loss / d (state before the chunk), from the chunk's own outputs
  float* borders;    // (B, borders, N, D): the states before every kScanBorder steps, from a zero start; null: not wanted
  float* borderSums; // (B, borders, D): sums of steps of the chunk up to there; null: not wanted
};

constexpr int kScanBorder = 32;

template <class T>
struct ScanSweepShared {
  char *u, *delta, *z, *dOut;
  T *b, *c;
  float *a, *s, *decay, *back, *constB, *constC;
  uint32_t bytes;

  __host__ __device__ __forceinline__ ScanSweepShared(char* base, const ScanShape& v, int channels, bool reverse, bool gated) {
    ScanShared shared{base, 0};
    const int tile = channels * 128;
    u = shared.take<char>(true, tile), delta = shared.take<char>(true, tile);
    z = shared.take<char>(reverse && gated, tile), dOut = shared.take<char>(reverse, tile);
    b = shared.take<T>(v.variesB, v.count * kScanTileSteps<T>), c = shared.take<T>(reverse && v.variesC, v.count * kScanTileSteps<T>);
    a = shared.take<float>(true, v.count * channels), s = shared.take<float>(true, v.count * channels);
    decay = shared.take<float>(reverse, v.count * channels), back = shared.take<float>(reverse, v.count * channels);
    constB = shared.take<float>(!v.variesB, v.count * channels), constC = shared.take<float>(reverse && !v.variesC, v.count * channels);
    bytes = shared.used;
  }
};

// REVERSE: also sum_t (product of the decays up to t) C_t dy_t, which needs no second walk, as the product runs forward.
template <class T, bool VARIES, bool REVERSE>
__global__ void __launch_bounds__(128, 3) selectiveScanSweepKernel(const ScanSweep v) {
  extern __shared__ __align__(128) char scanShared[];
  constexpr int STEPS = kScanTileSteps<T>;
  const ScanShape& shape = v.in.shape;
  const ScanSweepShared<T> m(scanShared, shape, blockDim.x, REVERSE, v.in.z.data);
  const ScanPlace place(shape, blockDim.x);
  const bool active = int(threadIdx.x) < place.valid;
  fillScanParameter(m.a, v.in.a, shape, place);
  if (m.constB) fillScanParameter(m.constB, v.in.b, shape, place);
  if (REVERSE && m.constC) fillScanParameter(m.constC, v.in.c, shape, place);
  for (int n = 0; n < shape.count; n++) {
    scanSlot(m.s, n) = 0.f;
    if (REVERSE) scanSlot(m.decay, n) = 1.f, scanSlot(m.back, n) = 0.f;
  }
  const float bias = v.in.bias.data && active ? v.in.bias.at(place.channel + threadIdx.x) : 0.f;
  const int64_t borders = (shape.length + kScanBorder - 1) / kScanBorder;
  float sum = 0.f;

  for (int64_t t = place.begin; t < place.end; t += STEPS) {
    const int left = scanLeft(t, place.end, STEPS);
    __syncthreads();  // all have read the last tile of B and C
    loadScanRows<T, STEPS>(m.u, v.in.u, place, t, left);
    loadScanRows<T, STEPS>(m.delta, v.in.delta, place, t, left);
    if (m.b) loadScanStates<T, STEPS>(m.b, v.in.b, shape, place, t, left);
    if (REVERSE) {
      loadScanRows<T, STEPS>(m.dOut, v.dOut, place, t, left);
      if (m.z) loadScanRows<T, STEPS>(m.z, v.in.z, place, t, left);
      if (m.c) loadScanStates<T, STEPS>(m.c, v.in.c, shape, place, t, left);
    }
    commitAsync();
    waitAsync<0>();
    __syncthreads();
    if (t + STEPS < place.end) {
      prefetchScanRow(v.in.u, place, t + STEPS, sizeof(T));
      prefetchScanRow(v.in.delta, place, t + STEPS, sizeof(T));
      if (REVERSE) prefetchScanRow(v.dOut, place, t + STEPS, sizeof(T));
      if (m.z) prefetchScanRow(v.in.z, place, t + STEPS, sizeof(T));
    }
#pragma unroll 1
    for (int sub = 0; sub < left; sub += kScanSteps) {
      const int64_t border = (t + sub) / kScanBorder;
      const bool keeps = v.borders && active && (t + sub) % kScanBorder == 0;
      float step[kScanSteps], du[kScanSteps], dy[kScanSteps];
      readScanDeltas<T, STEPS>(m.delta, sub, bias, shape.softplus, left, step);
      readScanSteps<T, STEPS>(m.u, sub, du);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) du[i] *= step[i] * kLn2;
      if (REVERSE) {
        readScanSteps<T, STEPS>(m.dOut, sub, dy);
        if (m.z) {
          float z[kScanSteps];
          readScanSteps<T, STEPS>(m.z, sub, z);
#pragma unroll
          for (int i = 0; i < kScanSteps; i++) dy[i] *= z[i] * sigmoidFor<T>(z[i]);
        }
      }
      if (keeps && v.borderSums) v.borderSums[place.at(shape, border, borders)] = sum;
#pragma unroll 2
      for (int n = 0; n < shape.count; n++) {
        const float a = scanSlot(m.a, n);
        float s = scanSlot(m.s, n), decay = 1.f, back = 0.f, b[kScanSteps], c[kScanSteps];
        if (keeps) v.borders[place.at(shape, border * shape.states + shape.first + n, borders * shape.states)] = s;
        readScanState<T, VARIES>(shape.variesB, m.b + n * STEPS + sub, VARIES || shape.variesB ? 0.f : scanSlot(m.constB, n), b);
        if (REVERSE) {
          decay = scanSlot(m.decay, n), back = scanSlot(m.back, n);
          readScanState<T, VARIES>(shape.variesC, m.c + n * STEPS + sub, VARIES || shape.variesC ? 0.f : scanSlot(m.constC, n), c);
        }
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) {
          const float e = exp2Approximate(step[i] * a);
          s = fmaf(e, s, du[i] * b[i]);
          if (REVERSE) {
            decay *= e;
            back = fmaf(decay, c[i] * dy[i], back);
          }
        }
        scanSlot(m.s, n) = s;
        if (REVERSE) scanSlot(m.decay, n) = decay, scanSlot(m.back, n) = back;
      }
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) sum += step[i];
    }
  }
  if (!active) return;
  if (v.sums) v.sums[place.at(shape, place.chunk, shape.chunks)] = sum;
  for (int n = 0; n < shape.count; n++) {
    const int64_t at = place.at(shape, int64_t(place.chunk) * shape.states + shape.first + n, int64_t(shape.chunks) * shape.states);
    if (v.ends) v.ends[at] = scanSlot(m.s, n);
    if (REVERSE) v.back[at] = scanSlot(m.back, n);
  }
}

// Chains the chunks, a thread a (batch, state, channel): `states` turns from the chunks' own last states to the states before
// them, `back` from the gradients before the chunks to those behind them. The last chunk's `states` and the first one's `back`
// are not read.
static __global__ void __launch_bounds__(128) selectiveScanChainKernel(const ScanShape shape, const ScanParameter a,
    const float* __restrict__ sums, float* __restrict__ states,
    float* __restrict__ back, const float* __restrict__ dLastState) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= shape.batch * shape.states * shape.channels) return;
  const int64_t row = i / shape.channels, d = i - row * shape.channels, b = row / shape.states, n = row - b * shape.states;
  const float rate = a.at(d * shape.states + n);
  const auto at = [&](int64_t chunk) { return ((b * shape.chunks + chunk) * shape.states + n) * shape.channels + d; };
  const auto decay = [&](int64_t chunk) { return exp2Approximate(rate * sums[(b * shape.chunks + chunk) * shape.channels + d]); };
  float s = 0.f;
  for (int chunk = 0; chunk < shape.chunks; chunk++) {
    const float next = chunk + 1 < shape.chunks ? fmaf(decay(chunk), s, states[at(chunk)]) : 0.f;
    states[at(chunk)] = s;
    s = next;
  }
  if (!back) return;
  float carry = dLastState ? dLastState[(b * shape.channels + d) * shape.states + n] : 0.f;
  for (int chunk = shape.chunks - 1; chunk >= 0; chunk--) {
    const float before = chunk ? fmaf(decay(chunk), carry, back[at(chunk)]) : 0.f;
    back[at(chunk)] = carry;
    carry = before;
  }
}

// ---- host: what forward and backward share; their first eight operands agree

// Channels of a block and states of a pass: the larger block, unless a smaller one keeps a third more threads resident.
// bytes(channels, count): shared memory of a block; `most`: threads a multiprocessor has registers for.
struct ScanBlocks {
  int channels = 128, count, resident;  // resident: blocks of a multiprocessor

  template <class F>
  ScanBlocks(const Device& device, int64_t perGroup, int states, int most, F&& bytes) : count(states) {
    const auto threads = [&](int c) {
      const int64_t fit = int64_t(device.sharedPerBlock) / bytes(c, states), blocks = fit < most / c ? fit : most / c;
      return int(blocks) * c;
    };
    while (channels > 32 && channels / 2 >= perGroup) channels /= 2;
    for (int smaller = channels / 2; smaller >= 32; smaller /= 2)
      if (threads(smaller) * 3 >= threads(channels) * 4) channels = smaller;
    if (!threads(channels)) {
      channels = 32;
      while (count > 1 && bytes(channels, count) > int64_t(device.sharedPerBlock)) count--;
    }
    resident = threads(channels) ? threads(channels) / channels : 1;
  }
};

inline ScanShape scanShape(const MMCall* c, int states, bool softplus) {
  using namespace ops::selective_scan;
  const auto &u = in(c, U), &b = in(c, B), &projection = in(c, C);
  ScanShape v = {};
  v.batch = u.shape[0], v.channels = u.shape[1], v.length = u.shape[2];
  v.states = v.count = states;
  v.variesB = b.ndim > 2, v.variesC = projection.ndim > 2;
  v.groups = int32_t(b.ndim == 4 ? b.shape[1] : projection.ndim == 4 ? projection.shape[1] : 1);
  v.perGroup = int32_t(v.channels / v.groups);
  v.softplus = softplus;
  return v;
}

// Cuts the length into about `wanted` chunks of whole tiles.
inline void cutScan(ScanShape& v, int64_t wanted) {
  const int64_t units = ceilDiv(v.length, 64), most = wanted < units ? wanted : units, each = ceilDiv(units, most > 0 ? most : 1);
  v.chunkSteps = 64 * (each > 0 ? each : 1);
  v.chunks = units ? int32_t(ceilDiv(units, each)) : 1;
}

template <class T>
ScanOperand scanOperand(const MMTensorView& v, int64_t perGroup) {
  constexpr int64_t E = 16 / int64_t(sizeof(T));
  const auto whole = [&](int axis) { return v.shape[axis] <= 1 || v.stride[axis] % E == 0; };
  ScanAccess access = ScanAccess::elements;
  if (whole(0) && aligned(16, data<T>(v))) {
    if (v.stride[2] == 1 && whole(1)) access = ScanAccess::steps;
    else if (v.stride[1] == 1 && whole(2) && perGroup % E == 0) access = ScanAccess::channels;
  }
  return {v.data, v.stride[0], v.stride[1], v.stride[2], access};
}

template <class T>
ScanInputs scanInputs(const MMCall* c, const ScanShape& shape) {
  using namespace ops::selective_scan;
  const auto parameter = [&](int slot) { return has(c, slot) ? ScanParameter{in(c, slot).data, in(c, slot).dtype} : ScanParameter{}; };
  ScanInputs v = {};
  v.shape = shape;
  v.u = scanOperand<T>(in(c, U), shape.perGroup), v.delta = scanOperand<T>(in(c, DELTA), shape.perGroup);
  if (has(c, Z)) v.z = scanOperand<T>(in(c, Z), shape.perGroup);
  v.a = parameter(A), v.b = parameter(B), v.c = parameter(C), v.d = parameter(D), v.bias = parameter(DELTA_BIAS);
  v.shape.wholeRows = shape.length * int64_t(sizeof(T)) % 16 == 0 && (!shape.variesB || aligned(16, data<T>(in(c, B)))) &&
      (!shape.variesC || aligned(16, data<T>(in(c, C))));
  return v;
}

// f(shape of the pass) for the ranges of states that fit at once.
template <class F>
int32_t forScanPasses(ScanShape v, int count, F&& f) {
  for (v.first = 0; v.first < v.states || v.first == 0; v.first += count) {
    v.count = v.states - v.first < count ? v.states - v.first : count;
    if (const int32_t status = f(v)) return status;
    if (!count) break;
  }
  return MM_OK;
}

inline dim3 scanGrid(const ScanShape& v, int64_t chunks) { return dim3(unsigned(chunks * v.batch * v.groups * v.blocks)); }

template <class T, bool REVERSE>
int32_t launchScanSweep(const MMCall* c, const ScanSweep& v, int channels, int64_t chunks) {
  const ScanShape& shape = v.in.shape;
  const uint32_t bytes = ScanSweepShared<T>(nullptr, shape, channels, REVERSE, v.in.z.data).bytes;
  return dispatchBool(shape.variesB && shape.variesC,
      [&](auto varies) { return launch(c, selectiveScanSweepKernel<T, decltype(varies)::value, REVERSE>, scanGrid(shape, chunks),
          dim3(channels), bytes, v); });
}

inline int32_t launchScanChain(const MMCall* c, const ScanShape& v, const ScanParameter& a, const float* sums, float* states, float* back,
    const float* dLastState) {
  return launch(c, selectiveScanChainKernel, dim3(unsigned(ceilDiv(v.batch * v.states * v.channels, 128))), dim3(128), 0, v, a, sums,
      states, back, dLastState);
}

}  // namespace mm::cuda
