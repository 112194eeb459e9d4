// The selective scan of 16 states in 2-byte operands, B and C varying: a channel's states lie in LANES lanes of a warp, 16 / LANES
// each, in registers. So a batch of one fills the device without cutting the length, and larger ones have warps enough to hide
// what they wait for.
//
// A warp owns 32 / LANES channels and takes 16 steps at a time. Its lanes share the preparation: each turns 16 / LANES steps of its
// channel into step and d u, which go through shared memory (f32) to the channel's other lanes. B and C lie there as f32 for the
// whole block, converted once. y is summed over the states of a lane in registers, over the lanes by a transposing reduction, which
// leaves each lane the same steps of the channel that it prepared. What is left of a state and step: two products, the exponential,
// two fused products. The exponentials bound it.
#pragma once
#include "cuda/selective_scan.cuh"

namespace mm::cuda {

constexpr int kLanesStates = 16;
constexpr int kLanesBorder = kScanSteps;  // steps between the states that sweeps keep

// outputs; or states before every kLanesBorder steps and a chunk's last ones; or these and the gradients before the chunk.
enum class ScanWalk { forward, sweep, reverse };

struct ScanLanes {
  ScanInputs in;
  ScanOperand out, dOut;
  float* lastState;      // (B, D, N)
  const float* starts;   // (B, chunks, N, D) states before the chunks; null: zeros
  float *ends, *sums, *back, *borders, *borderSums;  // as in ScanSweep
};

template <class T, int LANES, ScanWalk WALK>
struct ScanLanesBlock {
  static constexpr int kWarps = 4, kRows = 32 / LANES, kChannels = kWarps * kRows;
  static constexpr int kHeld = kLanesStates / LANES;  // states of a lane: held * LANES + part
  static constexpr int kOwn = kScanSteps / LANES;     // steps of 16 that a lane prepares
  static constexpr int kSteps = WALK == ScanWalk::reverse ? 32 : 64, kStages = LANES > 2 ? 2 : 1;
  static constexpr int kProjections = WALK == ScanWalk::sweep ? 1 : 2;                    // of B and C
  static constexpr int kStride = kSteps + 4;                                              // of their rows
  static constexpr int kShared = WALK == ScanWalk::reverse ? 3 : 2, kShareStride = 20;    // step, d u, dy for 16 steps
  static constexpr int kTile = kChannels * kSteps * int(sizeof(T));
  static constexpr int kTake = kProjections * kLanesStates * kSteps / 8 / 128;            // pieces of B and C a thread converts

  char *u, *delta, *z, *dOut;
  float *projections, *shared;
  uint32_t bytes;

  __host__ __device__ __forceinline__ ScanLanesBlock(char* base, bool gated) {
    ScanShared s{base, 0};
    u = s.take<char>(true, kStages * kTile), delta = s.take<char>(true, kStages * kTile);
    z = s.take<char>(gated && WALK != ScanWalk::sweep, kStages * kTile), dOut = s.take<char>(WALK == ScanWalk::reverse, kStages * kTile);
    projections = s.take<float>(true, 2 * kProjections * kLanesStates * kStride);
    shared = s.take<float>(true, kWarps * kShared * kRows * kShareStride);
    bytes = s.used;
  }
};

// N 2-byte values by one load
template <class T, int N>
__device__ __forceinline__ void readPacked(const char* p, float (&out)[N]) {
  using Word = std::conditional_t<N == 8, uint4, std::conditional_t<N == 4, uint2, uint32_t>>;
  const Word word = *reinterpret_cast<const Word*>(p);
  unpack(*reinterpret_cast<const Pack<T, N>*>(&word), out);
}
template <class T, int STEPS, int N>
__device__ __forceinline__ void readScanPart(const char* tile, int row, int t, float (&out)[N]) {
  readPacked<T>(tile + ScanTile<T, STEPS>::at(row, t), out);
}
template <class T, int STEPS, int N>
__device__ __forceinline__ void writeScanPart(char* tile, int row, int t, const float (&in)[N]) {
  storePacked<N>(reinterpret_cast<T*>(tile + ScanTile<T, STEPS>::at(row, t)), in);
}

// In place: raw delta to the step times log2(e), zero from `left` on; `t`: number of the first.
template <class T, int N>
__device__ __forceinline__ void scanStepsOf(float (&step)[N], float bias, bool softplus, int t, int left) {
#pragma unroll
  for (int i = 0; i < N; i++) step[i] += bias;
  if (softplus)
#pragma unroll
    for (int i = 0; i < N; i++) step[i] = softplusFor<T>(step[i]);
#pragma unroll
  for (int i = 0; i < N; i++) step[i] *= kLog2e;
  if (left < t + N)
#pragma unroll
    for (int i = 0; i < N; i++)
      if (t + i >= left) step[i] = 0.f;
}

// Floats to and from shared memory, N at an address aligned to them (up to 16 bytes).
template <int N>
__device__ __forceinline__ void readFloats(const float* p, float (&out)[N]) {
  constexpr int E = N < 4 ? N : 4;
#pragma unroll
  for (int k = 0; k < N / E; k++) {
    const Pack<float, E> part = *reinterpret_cast<const Pack<float, E>*>(p + k * E);
#pragma unroll
    for (int i = 0; i < E; i++) out[k * E + i] = part.v[i];
  }
}
template <int N>
__device__ __forceinline__ void writeFloats(float* p, const float (&in)[N]) {
  constexpr int E = N < 4 ? N : 4;
#pragma unroll
  for (int k = 0; k < N / E; k++) {
    Pack<float, E> part;
#pragma unroll
    for (int i = 0; i < E; i++) part.v[i] = in[k * E + i];
    *reinterpret_cast<Pack<float, E>*>(p + k * E) = part;
  }
}

// Eight steps of one state of B or C
template <class T>
__device__ __forceinline__ Pack<T, 8> loadScanPiece(const ScanParameter& v, const ScanShape& shape, const ScanPlace& place, int n,
    int64_t t, int left) {
  const T* p = static_cast<const T*>(v.data) + ((place.b * shape.groups + place.group) * shape.states + n) * shape.length + t;
  if (shape.wholeRows && left >= 8) return *reinterpret_cast<const Pack<T, 8>*>(p);
  Pack<T, 8> pack;
#pragma unroll
  for (int i = 0; i < 8; i++) pack.v[i] = i < left ? p[i] : fromFloat<T>(0.f);
  return pack;
}

// v over the lanes that differ in the bits from BIT down to LAST: the upper lane of a pair keeps the upper half.
template <int BIT, int LAST, int N>
__device__ __forceinline__ void foldSteps(const float (&v)[N], int lane, float (&out)[N * LAST / (2 * BIT)]) {
  float half[N / 2];
  foldLanes(v, lane, BIT, half);
  if constexpr (BIT == LAST) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) out[i] = half[i];
  } else {
    foldSteps<BIT / 2, LAST>(half, lane, out);
  }
}

template <class T, int LANES, ScanWalk WALK>
__global__ void __launch_bounds__(128, LANES > 4 ? 3 : 4) selectiveScanLanesKernel(const ScanLanes v) {
  extern __shared__ __align__(128) char scanShared[];
  using Block = ScanLanesBlock<T, LANES, WALK>;
  constexpr int STEPS = Block::kSteps, ROWS = Block::kRows, HELD = Block::kHeld, OWN = Block::kOwn, STRIDE = Block::kStride;
  constexpr bool FORWARD = WALK == ScanWalk::forward, REVERSE = WALK == ScanWalk::reverse;
  const ScanShape& shape = v.in.shape;
  const Block m(scanShared, v.in.z.data);
  const ScanPlace place(shape, Block::kChannels);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane / ROWS, row = warp * ROWS + lane % ROWS;
  const bool active = row < place.valid;
  const int64_t d = place.channel + row;
  float a[HELD], s[HELD], back[HELD], sum = 0.f;
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    const int n = j * LANES + part;
    a[j] = active ? v.in.a.at(d * kLanesStates + n) : 0.f;
    s[j] = v.starts && active ? v.starts[place.at(shape, int64_t(place.chunk) * kLanesStates + n, int64_t(shape.chunks) * kLanesStates,
        row)] : 0.f;
    back[j] = 0.f;
  }
  const float bias = v.in.bias.data && active ? v.in.bias.at(d) : 0.f, skip = v.in.d.data && active ? v.in.d.at(d) : 0.f;
  const int64_t borders = (shape.length + kLanesBorder - 1) / kLanesBorder;

  const auto load = [&](int64_t t, int stage) {
    const int left = scanLeft(t, place.end, STEPS), at = stage * Block::kTile;
    loadScanRows<T, STEPS, ROWS>(m.u + at, v.in.u, place, t, left, warp * ROWS);
    loadScanRows<T, STEPS, ROWS>(m.delta + at, v.in.delta, place, t, left, warp * ROWS);
    if (REVERSE) loadScanRows<T, STEPS, ROWS>(m.dOut + at, v.dOut, place, t, left, warp * ROWS);
    if (m.z && WALK != ScanWalk::sweep) loadScanRows<T, STEPS, ROWS>(m.z + at, v.in.z, place, t, left, warp * ROWS);
    commitAsync();
  };
  Pack<T, 8> pieces[Block::kTake];  // of the next tile of B and C
  constexpr int PER_ROW = STEPS / 8, PER_PROJECTION = kLanesStates * PER_ROW;
  const auto loadProjections = [&](int64_t t) {
#pragma unroll
    for (int k = 0; k < Block::kTake; k++) {
      const int i = k * 128 + int(threadIdx.x), from = i % PER_ROW * 8;
      pieces[k] = loadScanPiece<T>(i < PER_PROJECTION ? v.in.b : v.in.c, shape, place, i % PER_PROJECTION / PER_ROW, t + from,
          scanLeft(t + from, place.end, 8));
    }
  };

  loadProjections(place.begin);
  if (Block::kStages > 1) load(place.begin, 0);
  int turn = 0;
  for (int64_t t = place.begin; t < place.end; t += STEPS, turn ^= 1) {
    const int left = scanLeft(t, place.end, STEPS), at = Block::kStages > 1 ? turn * Block::kTile : 0;
    if (Block::kStages == 1) load(t, 0);
    float* projections = m.projections + turn * Block::kProjections * kLanesStates * STRIDE;
#pragma unroll
    for (int k = 0; k < Block::kTake; k++) {
      const int i = k * 128 + int(threadIdx.x);
      float values[8];
      unpack(pieces[k], values);
      writeFloats(projections + i / PER_ROW * STRIDE + i % PER_ROW * 8, values);
    }
    waitAsync<0>();
    __syncthreads();  // the other half of the projections is free again once all are here
    if (t + STEPS < place.end) {
      loadProjections(t + STEPS);
      if (Block::kStages > 1) load(t + STEPS, turn ^ 1);
      else {
        prefetchScanRow(part % 2 ? v.in.delta : v.in.u, place, t + STEPS, sizeof(T), row);
        if (FORWARD && m.z && part == 0) prefetchScanRow(v.in.z, place, t + STEPS, sizeof(T), row);
        if (REVERSE) prefetchScanRow(part % 2 && m.z ? v.in.z : v.dOut, place, t + STEPS, sizeof(T), row);
      }
    }
#pragma unroll 1
    for (int sub = 0; sub < left; sub += kScanSteps) {
      float u[OWN], own[OWN], gate[OWN];
      float* shared = m.shared + (warp * Block::kShared * ROWS + lane % ROWS) * Block::kShareStride;
      constexpr int NEXT = ROWS * Block::kShareStride;  // from step to d u to dy
      const int first = sub + part * OWN;
      readScanPart<T, STEPS>(m.delta + at, row, first, own);
      readScanPart<T, STEPS>(m.u + at, row, first, u);
      scanStepsOf<T>(own, bias, shape.softplus, first, left);
      __syncwarp();  // all have read the last 16 steps
      writeFloats(shared + part * OWN, own);
#pragma unroll
      for (int i = 0; i < OWN; i++) own[i] *= u[i] * kLn2;
      writeFloats(shared + NEXT + part * OWN, own);
      if (REVERSE) {
        readScanPart<T, STEPS>(m.dOut + at, row, first, own);
        if (m.z) {
          readScanPart<T, STEPS>(m.z + at, row, first, gate);
#pragma unroll
          for (int i = 0; i < OWN; i++) own[i] *= gate[i] * sigmoidFor<T>(gate[i]);
        }
        writeFloats(shared + 2 * NEXT + part * OWN, own);
      }
      __syncwarp();
      float step[kScanSteps], du[kScanSteps], y[kScanSteps];
      readFloats(shared, step);
      readFloats(shared + NEXT, du);
      if (REVERSE) readFloats(shared + 2 * NEXT, y);  // dy
      if (FORWARD)
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) y[i] = 0.f;
      const int64_t border = (t + sub) / kLanesBorder;
      if (!FORWARD && v.borderSums && active && part == 0) v.borderSums[place.at(shape, border, borders, row)] = sum;
#pragma unroll
      for (int j = 0; j < HELD; j++) {
        const int n = j * LANES + part;
        if (!FORWARD && v.borders && active)
          v.borders[place.at(shape, border * kLanesStates + n, borders * kLanesStates, row)] = s[j];
        float b[kScanSteps], c[kScanSteps], decay[kScanSteps];
        readFloats(projections + n * STRIDE + sub, b);
        if (WALK != ScanWalk::sweep) readFloats(projections + (kLanesStates + n) * STRIDE + sub, c);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) {
          decay[i] = exp2Approximate(step[i] * a[j]);
          s[j] = fmaf(decay[i], s[j], du[i] * b[i]);
          if (FORWARD) y[i] = fmaf(c[i], s[j], y[i]);
        }
        if (REVERSE) {
          float gradient = 0.f;
#pragma unroll
          for (int i = kScanSteps - 1; i >= 0; i--) gradient = fmaf(c[i], y[i], gradient) * decay[i];
          back[j] = fmaf(exp2Approximate(sum * a[j]), gradient, back[j]);
        }
      }
      if (!FORWARD)
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) sum += step[i];
      if (FORWARD) {
        foldSteps<16, ROWS>(y, lane, own);
#pragma unroll
        for (int i = 0; i < OWN; i++) own[i] = fmaf(skip, u[i], own[i]);
        if (m.z) {
          readScanPart<T, STEPS>(m.z + at, row, first, gate);
#pragma unroll
          for (int i = 0; i < OWN; i++) own[i] *= gate[i] * sigmoidFor<T>(gate[i]);
        }
        writeScanPart<T, STEPS>(m.u + at, row, first, own);
      }
    }
    __syncwarp();  // rows are read whole, and the next tile comes into their place
    if (FORWARD) {
      storeScanRows<T, STEPS, ROWS>(m.u + at, v.out, place, t, left, warp * ROWS);
      __syncwarp();
    }
  }
  if (!active) return;
  if (!FORWARD && v.sums && part == 0) v.sums[place.at(shape, place.chunk, shape.chunks, row)] = sum;
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    const int n = j * LANES + part;
    const int64_t to = place.at(shape, int64_t(place.chunk) * kLanesStates + n, int64_t(shape.chunks) * kLanesStates, row);
    if (FORWARD && place.end == shape.length) v.lastState[(place.b * shape.channels + d) * kLanesStates + n] = s[j];
    if (!FORWARD && v.ends) v.ends[to] = s[j];
    if (REVERSE) v.back[to] = back[j];
  }
}

// ---- host

template <class T, int LANES, ScanWalk WALK>
int32_t launchScanLanes(const MMCall* c, const ScanLanes& v, int64_t chunks) {
  const uint32_t bytes = ScanLanesBlock<T, LANES, WALK>(nullptr, v.in.z.data).bytes;
  return launch(c, selectiveScanLanesKernel<T, LANES, WALK>, scanGrid(v.in.shape, chunks), dim3(128), bytes, v);
}

// Whether these kernels take the call.
inline bool scanInLanes(const MMCall* c) {
  using namespace ops::selective_scan;
  return in(c, U).dtype != MM_F32 && in(c, A).shape[1] == kLanesStates && in(c, B).ndim > 2 && in(c, C).ndim > 2;
}

}  // namespace mm::cuda
