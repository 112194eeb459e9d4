// The chunk engine behind ssd, linearAttention, simpleGla and gla: linear attention with a decaying state,
//
//   S_t = decay_t S_{t-1} + w_t k_t v_t^T                   S (N, P), for every sequence and head
//   y_t = (scale q_t S_t / den_t + D v_t) * silu(z_t)       w, den, D and z are optional
//
// with decay_t = 1, a number per head (exp(dt_t A) or exp(g_t)), or a vector over N (exp(gk_t)). The mathematics, the
// names and the treatment of extreme decays are those of cpu/chunk_scan.h. With c_t the sum of the log-decays since the
// chunk's start, a chunk is a few matrix products:
//
//   intra   y_t += sum_{s<=t} (q_t.k_s) exp(c_t - c_s) w_s v_s
//   inter   y_t += exp(c_t) q_t S_in
//   state   S_out = exp(c_T) S_in + sum_s exp(c_T - c_s) w_s k_s v_s^T
//
// and with R_ts = (dO_t.v_s) exp(c_t - c_s), att_ts = (q_t.k_s) exp(c_t - c_s), dO = dy silu(z) / den and dS the gradient
// of a state, the gradients of w v, q, k and of the log-decay g_t are
//
//   w_s v_s:  sum_{t>=s} att_ts dO_t + exp(c_T - c_s) k_s dS_out          q_t:  sum_{s<=t} R_ts w_s k_s + exp(c_t) dO_t S_in^T
//   k_s:      sum_{t>=s} R_ts w_s q_t + exp(c_T - c_s) w_s v_s dS_out^T   dS_in = exp(c_T) dS_out + sum_t exp(c_t) q_t^T dO_t
//   g_t:      sum over all paths of the chunk that cross step t, the diagonal s = t left out
//
// Two implementations of it share this file: chunk_scan_general.cuh (any shape and dtype, f32 products on the CUDA cores) and
// chunk_scan_mma.cuh (bf16 and f16 products on the tensor cores).
//
// Chunks are numbered by slots. Sequence i of a packed call starts at slot cu[i] / T + i, T steps a slot, so a kernel finds
// its sequence by bisection and needs no table; some slots stay unused. Every sequence has a slot, an empty one too.
// Cumulative lengths that make no sense are clamped to the operands: nothing out of bounds is touched, steps of no
// sequence are left unwritten.
#pragma once
#include "cuda/kernel.cuh"

namespace mm::cuda::chunk_scan {

constexpr float kLeastLogDecay = -1000.f;  // exp is 0 long before; keeps sums finite when the decay is -inf
constexpr uint32_t kAllLanes = 0xffffffffu;

enum class Decay { Head, Channel };  // no decay at all is Head without steps

// A (B, L, heads, ...) operand whose last axis is dense. `given` and not the pointer says whether it is there: pointers are
// unset while a call is planned.
struct Operand {
  void* data = nullptr;
  int64_t batch = 0, time = 0, head = 0;
  int32_t dtype = MM_F32;
  bool given = false;
  template <class T>
  __device__ T* at(int64_t b, int64_t t, int64_t h) const {
    return static_cast<T*>(data) + b * batch + t * time + h * head;
  }
};
// A dense parameter by head, (H) or (H, P).
struct Parameter {
  const void* data = nullptr;
  int32_t dtype = MM_F32;
  bool given = false, wide = false;
};

// What to compute.
struct Scan {
  int64_t length = 0;
  int batch = 0, heads = 0, groups = 0, n = 0, p = 0, sequences = 0;
  const int32_t* cu = nullptr;
  bool packed = false;

  Operand q, k, v, z, y;  // q and k have `groups` heads
  float scale = 1.f;
  // Decay::Head: with a rate the steps are dt (w = dt after bias and softplus, log-decay = w * rate), else log-decays
  Operand step;
  Parameter rate, bias, skip;  // skip: D
  bool softplus = false;
  Operand gate;  // Decay::Channel: log-decays (B, L, heads, N)

  bool normalized = false;
  const float* inverse = nullptr;  // 1 / den (B, L, heads), when normalized

  bool hasInitial = false, byValue = false;  // states of the call are (N, P), or (P, N) when byValue
  const float* initial = nullptr;
  float* final = nullptr;

  __host__ __device__ int share() const { return groups ? heads / groups : 1; }
  __host__ __device__ int64_t stateSize() const { return int64_t(n) * p; }
};

// Gradients wanted and what flows in.
struct Gradient {
  Operand dy;  // absent: zero
  bool hasFinal = false, wantsInitial = false, wantsRate = false, wantsBias = false, wantsSkip = false;
  const float* dFinal = nullptr;
  float* dInitial = nullptr;
  Operand dq, dk, dv, dz, dstep, dgate;
  float *dRate = nullptr, *dBias = nullptr, *dSkip = nullptr;
  float *rateParts = nullptr, *biasParts = nullptr, *skipParts = nullptr;  // by chunk, added in order
  float *dqHeads = nullptr, *dkHeads = nullptr;  // (B, L, groups * sharers, N): one part for all heads of a sharer
  int sharers = 1;                               // parts of a group whose sum is its gradient
  // normalized: gradient of den (B, L, heads), and by chunk and head the sums of k before and of scale dden q behind it, (N);
  // null: no chunk has one before or behind
  const float *dden = nullptr, *before = nullptr, *behind = nullptr;

  __host__ __device__ bool wantsDecay() const { return dstep.given || wantsRate || wantsBias || dgate.given; }
};

// ---- slots

struct Place {
  int sequence, batch, length;  // length: steps in the slot
  int64_t start, local;         // its first step; its number within the sequence
  bool valid, first, last;      // of its sequence
};
struct Slots {
  int64_t first, count;
};

inline int64_t slotCount(const Scan& s, int64_t steps) {
  if (s.packed) return s.sequences ? s.length / steps + s.sequences : 0;
  return s.batch * (s.length ? ceilDiv(s.length, steps) : 1);
}
// The most slots that one sequence can have.
inline int64_t mostSlots(const Scan& s, int64_t steps) { return s.length ? ceilDiv(s.length, steps) : 1; }

__device__ __forceinline__ int64_t startOf(const Scan& s, int i) {
  const int64_t t = s.cu[i];
  return t < 0 ? 0 : t > s.length ? s.length : t;
}
__device__ __forceinline__ int64_t slotsFor(int64_t length, int64_t steps) { return length > 0 ? (length + steps - 1) / steps : 1; }

__device__ inline Slots slotsOf(const Scan& s, int sequence, int64_t steps) {
  if (!s.packed) {
    const int64_t count = slotsFor(s.length, steps);
    return {sequence * count, count};
  }
  const int64_t start = startOf(s, sequence);
  return {start / steps + sequence, slotsFor(startOf(s, sequence + 1) - start, steps)};
}

__device__ inline Place locate(const Scan& s, int64_t slot, int64_t steps) {
  Place at;
  int64_t begin = 0, length = s.length;
  if (s.packed) {
    int low = 0, high = s.sequences - 1;  // the last sequence that starts at or before the slot
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (startOf(s, middle) / steps + middle <= slot) low = middle;
      else high = middle - 1;
    }
    begin = startOf(s, low);
    length = startOf(s, low + 1) - begin;
    at.local = slot - (begin / steps + low);
    at.sequence = low, at.batch = 0;
  } else {
    const int64_t count = slotsFor(length, steps);
    at.sequence = at.batch = int(slot / count);
    at.local = slot % count;
  }
  const int64_t left = length - at.local * steps;
  at.valid = at.local == 0 || (at.local > 0 && left > 0);
  at.start = begin + at.local * steps;
  at.length = int(left < 0 ? 0 : left < steps ? left : steps);
  at.first = at.local == 0;
  at.last = left <= steps;
  return at;
}

// ---- scalars

__device__ __forceinline__ float element(const void* data, int32_t dtype, int64_t i) {
  switch (dtype) {
    case MM_BF16: return toFloat(static_cast<const bf16*>(data)[i]);
    case MM_F16: return toFloat(static_cast<const f16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}
__device__ __forceinline__ void setElement(void* data, int32_t dtype, int64_t i, float x) {
  switch (dtype) {
    case MM_BF16: static_cast<bf16*>(data)[i] = fromFloat<bf16>(x); break;
    case MM_F16: static_cast<f16*>(data)[i] = fromFloat<f16>(x); break;
    default: static_cast<float*>(data)[i] = x;
  }
}
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
__device__ __forceinline__ float siluSlope(float x) {
  const float s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// Bytes of dynamic shared memory of every kernel of the family.
extern __shared__ __align__(128) unsigned char chunkScanShared[];

// ---- the decay per head of a chunk of 32 E steps, by one warp: lane i holds the steps from i * E

template <int E>
struct LaneSteps {
  float raw[E], w[E];  // dt before and after bias and softplus
  double c[E], total;  // sums of log-decays; in double, so that differences keep their precision however far the sum has run
};

// x becomes the sum over the lanes before this one (up) or behind it; returns the sum over all.
template <class T>
__device__ __forceinline__ T exclusiveUp(T& x) {
  const int lane = threadIdx.x % 32;
  T sum = x;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const T other = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += other;
  }
  const T before = __shfl_up_sync(kAllLanes, sum, 1);
  x = lane ? before : T(0);
  return __shfl_sync(kAllLanes, sum, 31);
}
__device__ __forceinline__ void exclusiveDown(double& x) {
  const int lane = threadIdx.x % 32;
  double sum = x;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double other = __shfl_down_sync(kAllLanes, sum, d);
    if (lane + d < 32) sum += other;
  }
  const double behind = __shfl_down_sync(kAllLanes, sum, 1);
  x = lane < 31 ? behind : 0.0;
}

template <int E>
__device__ LaneSteps<E> scanSteps(const Scan& s, const Place& at, int head) {
  LaneSteps<E> r;
  const int lane = threadIdx.x % 32;
  const float rate = s.rate.given ? element(s.rate.data, s.rate.dtype, head) : 0.f;
  const float bias = s.bias.given ? element(s.bias.data, s.bias.dtype, head) : 0.f;
  const int64_t base = at.batch * s.step.batch + at.start * s.step.time + head * s.step.head;
  double sum = 0;
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int t = lane * E + e;
    const bool inside = t < at.length;
    float raw = inside && s.step.given ? element(s.step.data, s.step.dtype, base + t * s.step.time) : 0.f;
    float w = 1.f, g = raw;
    if (s.rate.given) {
      raw += bias;
      w = s.softplus ? softplus(raw) : raw;
      g = w * rate;
    }
    if (!inside) w = g = 0.f;
    sum += double(g < kLeastLogDecay ? kLeastLogDecay : g);
    r.raw[e] = raw, r.w[e] = w, r.c[e] = sum;
  }
  r.total = exclusiveUp(sum);
#pragma unroll
  for (int e = 0; e < E; e++) r.c[e] += sum;
  return r;
}

// The gradient of the steps of a chunk. By step t of this lane:
//   crossing: what its row of R att gives less what its column gives, and inter_t = scale q_t.(exp(c_t) dO_t S_in^T)
//   carried:  v_t.(exp(c_T - c_t) k_t dS_out)
//   direct:   gradient of w_t
// through = exp(c_T) <S_in, dS_out>. A log-decay is crossed by all paths from before it to it or behind it.
template <int E>
__device__ void decayGradient(const Scan& s, const Gradient& g, const Place& at, int head, int64_t index, const LaneSteps<E>& st,
                              const float (&crossing)[E], const float (&carried)[E], const float (&direct)[E], float through) {
  const int lane = threadIdx.x % 32;
  double behind = 0, before = 0;
#pragma unroll
  for (int e = 0; e < E; e++) behind += double(crossing[e]), before += double(st.w[e]) * double(carried[e]);
  exclusiveDown(behind);
  exclusiveUp(before);
  double dg[E];
#pragma unroll
  for (int e = E - 1; e >= 0; e--) behind += double(crossing[e]), dg[e] = behind + double(through);
  const double rate = s.rate.given ? double(element(s.rate.data, s.rate.dtype, head)) : 0.0;
  const int64_t base = at.batch * g.dstep.batch + at.start * g.dstep.time + head * g.dstep.head;
  double dRate = 0, dBias = 0;
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int t = lane * E + e;
    double d = dg[e] + before;
    before += double(st.w[e]) * double(carried[e]);
    if (t >= at.length) continue;
    if (s.rate.given) {
      dRate += d * double(st.w[e]);
      d = (double(direct[e]) + d * rate) * (s.softplus ? double(sigmoid(st.raw[e])) : 1.0);
      dBias += d;
    }
    if (g.dstep.given) setElement(g.dstep.data, g.dstep.dtype, base + t * g.dstep.time, float(d));
  }
  dRate = exclusiveUp(dRate);
  dBias = exclusiveUp(dBias);
  if (lane) return;
  if (g.wantsRate) g.rateParts[index] = float(dRate);
  if (g.wantsBias) g.biasParts[index] = float(dBias);
}

// ---- steps between the kernels, chunk_scan.cu

// How the states of a virtual head lie in the workspace: `slices` virtual heads share a head's values. Tiled: (pt, nt) each,
// padded with zeros; otherwise as the states of the call.
struct StateLayout {
  int slices = 1, pt = 0, nt = 0;
  bool tiled = false;
};
struct Pass {
  float* states = nullptr;       // (slots, heads * slices, size): increments, which become the states before (behind) each slot
  const float* first = nullptr;  // null: zero
  float* last = nullptr;         // null: not wanted
};
// Passes the states on from slot to slot, forwards and backwards (either may have no states). totals (slots, heads), or
// (slots, heads, N) by channel: the decay of a slot. Where `last` is null, what the last slot adds is not read.
int32_t passStates(const MMCall* c, const Scan& s, int64_t steps, const StateLayout& layout, const float* totals, bool byChannel,
                   const Pass& forwards, const Pass& backwards);

// dq and dk as the sums of their parts, where heads share a group.
int32_t sumHeads(const MMCall* c, const Scan& s, const Gradient& g);

// The gradients of rate, bias and skip as the sums of their parts: `rows` by head, `skipRows` by head (and value channel).
int32_t sumParts(const MMCall* c, const Scan& s, const Gradient& g, int64_t rows, int64_t skipRows);

// ---- whole calls

// One call of an op of the family, as its front end describes it.
struct Problem {
  Scan scan;
  Gradient gradient;
  Decay kind = Decay::Head;
  bool backward = false, roundsUpstream = false;  // roundsUpstream: dO is rounded to the operands' dtype
  // Work of the op's own that goes before, with the steps of a chunk; with `run` false it only takes its scratch.
  int32_t (*prologue)(const MMCall* c, Problem& p, int64_t steps, Scratch& scratch, bool run) = nullptr;
};

Operand operand(const MMTensorView& v);
Operand optionalOperand(const MMCall* c, int slot);
Operand optionalResult(const MMCall* c, int slot);
Parameter parameter(const MMCall* c, int slot);
inline float* optionalFloats(const MMCall* c, int slot) { return hasOut(c, slot) ? data<float>(out(c, slot)) : nullptr; }
// Sizes, q, k and v, initial states and cumulative lengths; the slots of the two optional operands differ from op to op.
Scan describe(const MMCall* c, int q, int k, int v, int initial, int cu);

// With `run` false they only take their scratch.
int32_t solveGeneral(const MMCall* c, Problem& p, Scratch& scratch, bool run);
int32_t solveMma(const MMCall* c, Problem& p, Scratch& scratch, bool run);
// The outputs and final states by chunk_scan_hopper.cuh; false where it does not serve the call. With a normalisation 1 / den is there.
bool solveHopperForward(const MMCall* c, const Scan& s, Scratch& scratch, bool run, int32_t& status);
// What the tensor-core kernels ask of sizes and strides, and of addresses.
bool fitsMma(const MMCall* c, const Problem& p);
bool alignedForMma(const Problem& p);
// chunk_scan_hopper_backward.cu
int32_t solveHopperBackward(const MMCall* c, Problem& p, Scratch& scratch, bool run);
bool fitsHopperBackward(const MMCall* c, const Problem& p);

// Table entries of an op that DESCRIBE describes.
template <Problem (*DESCRIBE)(const MMCall*)>
struct Entries {
  using Solver = int32_t (*)(const MMCall*, Problem&, Scratch&, bool);

  template <Solver SOLVE>
  static uint64_t bytes(const MMCall* c) {
    Problem p = DESCRIBE(c);
    Scratch scratch;
    SOLVE(c, p, scratch, false);
    return scratch.bytes();
  }
  static uint64_t workspace(const MMCall* c) { return bytes<solveGeneral>(c); }
  static int32_t run(const MMCall* c) {
    Problem p = DESCRIBE(c);
    Scratch scratch(c);
    return solveGeneral(c, p, scratch, true);
  }
  static int32_t fits(const MMCall* c) { return fitsMma(c, DESCRIBE(c)); }
  static uint64_t mmaWorkspace(const MMCall* c) {
    const uint64_t mma = bytes<solveMma>(c), general = workspace(c);
    return mma > general ? mma : general;
  }
  // Addresses are known only now: where they do not suit 16-byte pieces, the general kernels take over.
  template <Solver SOLVE>
  static int32_t runAligned(const MMCall* c) {
    Problem p = DESCRIBE(c);
    if (!alignedForMma(p)) return run(c);
    Scratch scratch(c);
    return SOLVE(c, p, scratch, true);
  }
  static int32_t runMma(const MMCall* c) { return runAligned<solveMma>(c); }

  static int32_t fitsHopper(const MMCall* c) { return fitsHopperBackward(c, DESCRIBE(c)); }
  static uint64_t hopperWorkspace(const MMCall* c) {
    const uint64_t hopper = bytes<solveHopperBackward>(c), others = mmaWorkspace(c);
    return hopper > others ? hopper : others;
  }
  static int32_t runHopper(const MMCall* c) { return runAligned<solveHopperBackward>(c); }
};

}  // namespace mm::cuda::chunk_scan
