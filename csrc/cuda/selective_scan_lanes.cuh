// The selective scan of 16 states in 2-byte operands that are dense along their steps, B and C varying: a channel's states lie in LANES
// lanes of a warp, 16 / LANES each, in registers. So a batch of one fills the device without cutting the length (two kernels less, and
// no second walk), and larger ones have warps enough to hide what they wait for.
//
// A warp owns 32 / LANES channels; each lane prepares, and in the end has the outputs of, eight steps of a channel, 16 bytes of every
// operand, of a span of 8 LANES steps. Steps and d u go through shared memory (f32) to the channel's other lanes, and y comes back
// there: 16 steps at a time it is summed over the states of a lane in registers, over the lanes by a transposing reduction. B and C lie
// in shared memory as f32 for the whole block, converted once. What is left of a state and step: two products, the exponential (eight
// cycles of a scheduler, which bounds it), two fused products.
//
// The next tile is asked into the cache as this one is copied; the backward's walks ask behind the barrier, by addresses of their own.
//
// On an H100, bf16, gated, D 4096: 0.286 ms for B 1, L 8192 (cut into chunks: 0.479), 6.7 for B 8, L 32768 (a thread a channel: 8.4).
// With the eight steps loaded straight into registers at 2 lanes too, 7.9: 32 bytes of 16 rows an access. The forward asking as the
// backward does 7.1, as it spills; the backward asking as the forward does 1 to 2 % slower where it is short.
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

template <int LANES, ScanWalk WALK>
struct ScanLanesBlock {
  static constexpr int kWarps = 4, kRows = 32 / LANES, kChannels = kWarps * kRows;
  static constexpr int kHeld = kLanesStates / LANES;  // states of a lane: held * LANES + part
  static constexpr int kSteps = WALK == ScanWalk::reverse ? 32 : 64;            // of a tile
  static constexpr int kSpan = 8 * LANES;                                       // steps, of which a lane has eight
  static constexpr bool kStaged = LANES < 8;                                    // u, delta, z, dOut come through shared memory
  static constexpr int kOperands = WALK == ScanWalk::reverse ? 4 : WALK == ScanWalk::forward ? 3 : 2;
  static constexpr int kProjections = WALK == ScanWalk::sweep ? 1 : 2;          // of B and C
  static constexpr int kTake = kProjections * kLanesStates * kSteps / 8 / 128;  // pieces of them that a thread converts
  static constexpr int kShared = WALK == ScanWalk::reverse ? 3 : 2;             // step; d u, then y; dy
  static constexpr int kStride = kSteps + 4, kSpanStride = kSpan + 4;           // of rows in floats: no two start in one bank

  uint4 staged[kStaged ? kOperands : 1][kStaged ? kChannels * kSteps / 8 : 1];  // rows of the tile, swizzled
  float projections[2][kProjections][kLanesStates][kStride];
  float shared[kWarps][kShared][kRows][kSpanStride];
};

// N 2-byte values by one load
template <class T, int N>
__device__ __forceinline__ void readPacked(const char* p, float (&out)[N]) {
  using Word = std::conditional_t<N == 8, uint4, std::conditional_t<N == 4, uint2, uint32_t>>;
  const Word word = *reinterpret_cast<const Word*>(p);
  unpack(*reinterpret_cast<const Pack<T, N>*>(&word), out);
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

// Eight steps of one state of B or C from t on, zeros where there are none; as words, so that nothing waits for the load before the
// values are needed.
template <class T>
__device__ __forceinline__ uint4 loadScanPiece(const ScanParameter& v, const ScanShape& shape, const ScanPlace& place, int n, int64_t t,
    bool there) {
  const T* p = static_cast<const T*>(v.data) + ((place.b * shape.groups + place.group) * shape.states + n) * shape.length + t;
  uint4 piece = make_uint4(0, 0, 0, 0);
  if (there) piece = *reinterpret_cast<const uint4*>(p);
  return piece;
}
template <class T>
__device__ __forceinline__ void unpackPiece(const uint4& piece, float (&out)[8]) {
  unpack(*reinterpret_cast<const Pack<T, 8>*>(&piece), out);
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
  using Block = ScanLanesBlock<LANES, WALK>;
  constexpr int STEPS = Block::kSteps, SPAN = Block::kSpan, ROWS = Block::kRows, HELD = Block::kHeld, TURNS = SPAN / kScanSteps,
      OWN = 8 / TURNS;  // steps of 16 that a lane has the sums of
  constexpr bool FORWARD = WALK == ScanWalk::forward, REVERSE = WALK == ScanWalk::reverse;
  const ScanShape& shape = v.in.shape;
  Block& m = *reinterpret_cast<Block*>(scanShared);
  const ScanPlace place(shape, Block::kChannels);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane / ROWS, row = warp * ROWS + lane % ROWS;
  const bool active = row < place.valid, gated = v.in.z.data && WALK != ScanWalk::sweep;
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

  // Operands come through registers, this lane's eight steps of a span, one span ahead; or, where a span is short, through tiles of
  // the warp's rows: short pieces of many rows take too many accesses.
  constexpr bool STAGED = Block::kStaged;
  constexpr int PIECES = STEPS / 8;
  const int from = STAGED ? 0 : part * 8;
  const auto rowOf = [&](const ScanOperand& o, int64_t channel) {
    return static_cast<const T*>(o.data) + place.b * o.batch + channel * o.channel + from;
  };
  const T *const us = rowOf(v.in.u, d), *const deltas = rowOf(v.in.delta, d);
  const T *const zs = gated ? rowOf(v.in.z, d) : nullptr, *const ups = REVERSE ? rowOf(v.dOut, d) : nullptr;
  uint4 nextU, nextDelta, nextZ, nextUp;
  const auto staged = [&](int k, int r, int piece) {
    return reinterpret_cast<uint4*>(reinterpret_cast<char*>(m.staged[k]) + swizzled<PIECES>(r, piece));
  };
  const auto stage = [&](int k, const ScanOperand& o, int64_t t) {
#pragma unroll
    for (int i = 0; i < ROWS * PIECES / 32; i++) {
      const int r = warp * ROWS + i * (32 / PIECES) + lane / PIECES, piece = lane % PIECES;
      const bool there = r < place.valid && t + piece * 8 < place.end;
      const T* p = rowOf(o, place.channel) + (there ? r * o.channel + t + piece * 8 : 0);
      copyAsync16(sharedAddress(staged(k, r, piece)), p, there);
      if (FORWARD && piece == 0 && there && t + STEPS < place.end) prefetchLine(p + STEPS);
    }
  };
  const auto load = [&](int64_t t) {
    const bool there = active && t + part * 8 < place.end;
    nextU = nextDelta = nextZ = nextUp = make_uint4(0, 0, 0, 0);
    if (there) nextU = *reinterpret_cast<const uint4*>(us + t);
    if (there) nextDelta = *reinterpret_cast<const uint4*>(deltas + t);
    if (there && gated) nextZ = *reinterpret_cast<const uint4*>(zs + t);
    if (there && REVERSE) nextUp = *reinterpret_cast<const uint4*>(ups + t);
  };
  uint4 pieces[Block::kTake];  // of the next tile of B and C
  constexpr int PER_ROW = STEPS / 8, PER_PROJECTION = kLanesStates * PER_ROW;
  const auto loadProjections = [&](int64_t t) {
#pragma unroll
    for (int k = 0; k < Block::kTake; k++) {
      const int i = k * 128 + int(threadIdx.x), from = i % PER_ROW * 8;
      pieces[k] = loadScanPiece<T>(i < PER_PROJECTION ? v.in.b : v.in.c, shape, place, i % PER_PROJECTION / PER_ROW, t + from,
          t + from < place.end);
    }
  };

  loadProjections(place.begin);
  if (!STAGED) load(place.begin);
  int turn = 0;
  for (int64_t tile = place.begin; tile < place.end; tile += STEPS, turn ^= 1) {
    if constexpr (STAGED) {
      stage(0, v.in.u, tile), stage(1, v.in.delta, tile);
      if (gated) stage(2, v.in.z, tile);
      if (REVERSE) stage(Block::kOperands - 1, v.dOut, tile);
      commitAsync();
    }
    auto& projections = m.projections[turn];
#pragma unroll
    for (int k = 0; k < Block::kTake; k++) {
      const int i = k * 128 + int(threadIdx.x);
      float values[8];
      unpackPiece<T>(pieces[k], values);
      writeFloats(projections[i / PER_PROJECTION][i % PER_PROJECTION / PER_ROW] + i % PER_ROW * 8, values);
    }
    if (STAGED) waitAsync<0>();
    __syncthreads();  // the other half of the projections is free again once all are here
    if (tile + STEPS < place.end) {
      loadProjections(tile + STEPS);
      if (STAGED && !FORWARD && active) {
        prefetchLine((part % 2 ? deltas : us) + tile + STEPS);
        if (gated && part == 0) prefetchLine(zs + tile + STEPS);
        if (REVERSE && part == 1) prefetchLine(ups + tile + STEPS);
      }
    }
#pragma unroll 1
    for (int span = 0; span < STEPS && tile + span < place.end; span += SPAN) {
      const int64_t t = tile + span;
      float(&shared)[Block::kShared][ROWS][Block::kSpanStride] = m.shared[warp];
      float own[8], du[8];
      if constexpr (STAGED) {
        const int piece = span / 8 + part;
        nextU = *staged(0, row, piece), nextDelta = *staged(1, row, piece);
        if (gated) nextZ = *staged(2, row, piece);
        if (REVERSE) nextUp = *staged(Block::kOperands - 1, row, piece);
      }
      const uint4 u = nextU, z = nextZ;
      unpackPiece<T>(nextDelta, own);
      unpackPiece<T>(u, du);
      scanStepsOf<T>(own, bias, shape.softplus, part * 8, scanLeft(t, place.end, SPAN));
#pragma unroll
      for (int i = 0; i < 8; i++) du[i] *= own[i] * kLn2;
      __syncwarp();  // all have read the last span
      writeFloats(shared[0][lane % ROWS] + part * 8, own);
      writeFloats(shared[1][lane % ROWS] + part * 8, du);
      if (REVERSE) {
        unpackPiece<T>(nextUp, own);
        if (gated) {
          float gate[8];
          unpackPiece<T>(z, gate);
#pragma unroll
          for (int i = 0; i < 8; i++) own[i] *= gate[i] * sigmoidFor<T>(gate[i]);
        }
        writeFloats(shared[Block::kShared - 1][lane % ROWS] + part * 8, own);
      }
      if (!STAGED) load(t + SPAN);
      __syncwarp();
#pragma unroll
      for (int sub = 0; sub < TURNS; sub++) {
        float step[kScanSteps], du[kScanSteps], y[kScanSteps];
        readFloats(shared[0][lane % ROWS] + sub * kScanSteps, step);
        readFloats(shared[1][lane % ROWS] + sub * kScanSteps, du);
        if (REVERSE) readFloats(shared[Block::kShared - 1][lane % ROWS] + sub * kScanSteps, y);  // dy
        if (FORWARD)
#pragma unroll
          for (int i = 0; i < kScanSteps; i++) y[i] = 0.f;
        const int64_t border = t / kLanesBorder + sub;
        const bool keeps = !FORWARD && v.borders && active && border < borders;
        if (keeps && v.borderSums && part == 0) v.borderSums[place.at(shape, border, borders, row)] = sum;
#pragma unroll
        for (int j = 0; j < HELD; j++) {
          const int n = j * LANES + part;
          if (keeps) v.borders[place.at(shape, border * kLanesStates + n, borders * kLanesStates, row)] = s[j];
          float b[kScanSteps], c[kScanSteps], decay[kScanSteps];
          readFloats(projections[0][n] + span + sub * kScanSteps, b);
          if (WALK != ScanWalk::sweep) readFloats(projections[Block::kProjections - 1][n] + span + sub * kScanSteps, c);
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
          float sums[OWN];
          foldSteps<16, ROWS>(y, lane, sums);
#pragma unroll
          for (int i = 0; i < OWN; i++) own[sub * OWN + i] = sums[i];
        }
      }
      if (FORWARD) {
        __syncwarp();  // all have read d u
#pragma unroll
        for (int sub = 0; sub < TURNS; sub++) {
          float sums[OWN];
#pragma unroll
          for (int i = 0; i < OWN; i++) sums[i] = own[sub * OWN + i];
          writeFloats(shared[1][lane % ROWS] + sub * kScanSteps + part * OWN, sums);
        }
        __syncwarp();
        readFloats(shared[1][lane % ROWS] + part * 8, own);
        unpackPiece<T>(STAGED ? *staged(0, row, span / 8 + part) : u, du);
#pragma unroll
        for (int i = 0; i < 8; i++) own[i] = fmaf(skip, du[i], own[i]);
        if (gated) {
          unpackPiece<T>(STAGED ? *staged(2, row, span / 8 + part) : z, du);
#pragma unroll
          for (int i = 0; i < 8; i++) own[i] *= du[i] * sigmoidFor<T>(du[i]);
        }
        const auto result = packed<T>(own);
        const uint4 words = *reinterpret_cast<const uint4*>(&result);
        T* to = static_cast<T*>(v.out.data) + place.b * v.out.batch + d * v.out.channel + t + part * 8;
        if constexpr (STAGED) *staged(0, row, span / 8 + part) = words;
        else if (active && t + part * 8 < place.end) *reinterpret_cast<uint4*>(to) = words;
      }
    }
    if constexpr (STAGED) {
      __syncwarp();
      if (FORWARD)
#pragma unroll
        for (int i = 0; i < ROWS * PIECES / 32; i++) {
          const int r = warp * ROWS + i * (32 / PIECES) + lane / PIECES, piece = lane % PIECES;
          T* to = static_cast<T*>(v.out.data) + place.b * v.out.batch + (place.channel + r) * v.out.channel + tile + piece * 8;
          if (r < place.valid && tile + piece * 8 < place.end) *reinterpret_cast<uint4*>(to) = *staged(0, r, piece);
        }
      __syncwarp();  // the next tile comes into their place
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
  return launch(c, selectiveScanLanesKernel<T, LANES, WALK>, scanGrid(v.in.shape, chunks), dim3(128),
      sizeof(ScanLanesBlock<LANES, WALK>), v);
}

// Whether these kernels take the call, but for the addresses.
inline bool scanInLanes(const MMCall* c) {
  using namespace ops::selective_scan;
  const auto fits = [](const MMTensorView& t) {
    return (t.shape[2] <= 1 || t.stride[2] == 1) && (t.shape[1] <= 1 || t.stride[1] % 8 == 0) && (t.shape[0] <= 1 || t.stride[0] % 8 == 0);
  };
  return in(c, U).dtype != MM_F32 && in(c, A).shape[1] == kLanesStates && in(c, B).ndim > 2 && in(c, C).ndim > 2 &&
      in(c, U).shape[2] % 8 == 0 && fits(in(c, U)) && fits(in(c, DELTA)) && (!has(c, Z) || fits(in(c, Z)));
}

}  // namespace mm::cuda
