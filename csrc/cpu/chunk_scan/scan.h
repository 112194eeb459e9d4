// The chunk engine's terms: what a call computes, its sequences and chunks, and the scratch of a worker.
#pragma once
#include "cpu/kernel.h"
#include "cpu/simd/tile.h"

namespace mm::cpu::MM_ISA::chunk_scan {

constexpr int64_t kChunk = 64;
constexpr int64_t kSub = 16;                   // steps of a sub-chunk with a decay per channel
constexpr int64_t kRowBlock = 2 * kTileRows;   // rows that share one bound of the triangle
constexpr float kLeastLogDecay = -1000.f;      // exp is 0 long before; keeps sums finite when the decay is -inf

constexpr const char* kBadLengths = "cuSeqlens must rise from 0 to the length of the packed sequences";

enum class Decay { None, Head, Channel };

MM_INLINE int64_t padded(int64_t n) { return (n + VL - 1) / VL * VL; }
MM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MM_INLINE int64_t chunksOf(int64_t length) { return (length + kChunk - 1) / kChunk; }

// A (B, L, heads, ...) operand whose last axis is dense; data is null when it is absent.
struct Operand {
  void* data = nullptr;
  int32_t dtype = MM_F32;
  int64_t batch = 0, time = 0, head = 0;
  template <class T>
  T* at(int64_t b, int64_t t, int64_t h) const { return static_cast<T*>(data) + b * batch + t * time + h * head; }
  int64_t offset(int64_t b, int64_t t, int64_t h) const { return b * batch + t * time + h * head; }
};
inline Operand operand(const MMTensorView& v) { return {v.data, v.dtype, v.stride[0], v.stride[1], v.stride[2]}; }
inline Operand optionalOperand(const MMCall* c, int slot) { return has(c, slot) ? operand(in(c, slot)) : Operand{}; }
inline Operand optionalResult(const MMCall* c, int slot) { return hasOut(c, slot) ? operand(out(c, slot)) : Operand{}; }
inline float* floatResult(const MMCall* c, int slot) { return hasOut(c, slot) ? data<float>(out(c, slot)) : nullptr; }

inline float element(const void* data, int32_t dtype, int64_t i) {
  switch (dtype) {
    case MM_BF16: return toF32(static_cast<const bf16*>(data)[i]);
    case MM_F16: return toF32(static_cast<const f16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}
inline void setElement(void* data, int32_t dtype, int64_t i, float x) {
  switch (dtype) {
    case MM_BF16: static_cast<bf16*>(data)[i] = fromF32<bf16>(x); break;
    case MM_F16: static_cast<f16*>(data)[i] = fromF32<f16>(x); break;
    default: static_cast<float*>(data)[i] = x;
  }
}

struct Sequence {
  int64_t batch, start, length, chunk;  // chunk: number of its first chunk among those of all sequences
};
// One chunk of one head.
struct Place {
  int64_t sequence, batch, start, length, head;
  int64_t index;  // chunk * heads + head: where its state lies
};

// What to compute.
struct Scan {
  int64_t batch = 0, length = 0, heads = 0, groups = 0, n = 0, p = 0;
  int64_t sequences = 0, chunks = 0;
  int64_t nv = 0, pv = 0;  // n and p padded to whole vectors
  const int32_t* cu = nullptr;
  bool packed = false;
  Sequence* sequence = nullptr;
  int32_t* sequenceOf = nullptr;  // of a chunk

  Operand q, k, v, z, y;  // q and k have `groups` heads
  float scale = 1.f;
  const float* den = nullptr;  // (B, L, heads)
  // Decay::Head: with a rate the steps are dt (w = dt after bias and softplus, log-decay = w * rate), else log-decays
  Operand step;
  const MMTensorView *rate = nullptr, *bias = nullptr;
  bool softplus = false;
  Operand gate;  // Decay::Channel: log-decays (B, L, heads, N)
  const MMTensorView* skip = nullptr;  // D: (heads) or (heads, P)

  const float* initial = nullptr;  // (sequences, heads, N, P), or (.., P, N) when statesByValue
  float* final = nullptr;
  bool statesByValue = false;

  int64_t pairs() const { return sequences * heads; }
  int64_t stateSize() const { return n * p; }
  int64_t group(int64_t h) const { return h / (heads / groups); }
};

// Gradients wanted (absent ones have no data) and what flows in.
struct Gradient {
  Operand dy;                                // null: zero
  const float* dFinal = nullptr;             // null: zero
  Operand dq, dk, dv, dz, dstep, dgate;
  float *dRate = nullptr, *dBias = nullptr, *dSkip = nullptr, *dInitial = nullptr;
  float *rateParts = nullptr, *biasParts = nullptr, *skipParts = nullptr;  // by chunk and head, added in order
  float *dqHeads = nullptr, *dkHeads = nullptr;  // (B, L, heads, N): by head, where heads share a group
  // Decay::None with den: gradient of den (B, L, heads); sums of k before and of dden q behind every chunk
  const float *dden = nullptr, *before = nullptr, *behind = nullptr;

  bool wantsDecay() const { return dstep.data || dRate || dBias || dgate.data; }
};

// ---- scratch: one plan both counts the bytes (base null) and hands out the pieces
struct Carver {
  char* base;
  uint64_t used = 0;
  template <class E>
  E* take(int64_t count) {
    E* p = base ? reinterpret_cast<E*>(base + used) : nullptr;
    used += (uint64_t(count) * sizeof(E) + 63) / 64 * 64;
    return p;
  }
};

// The scalars of a chunk.
struct Steps {
  alignas(64) float raw[kChunk], w[kChunk];    // dt before and after bias and softplus
  alignas(64) float hi[kChunk], lo[kChunk];    // c_t
  alignas(64) float up[kChunk], down[kChunk];  // exp(c_t), exp(c_T - c_t)
  float total;                                 // exp(c_T)
  float rate, bias;
};

struct Scratch {
  float *q, *k, *kt, *v, *att, *o;                  // (T,nv) (T,nv) (nv,64) (T,pv) (64,64) (T,pv)
  float *state, *inc;                               // (n,pv), room for (nv,pv)
  float *eg, *up, *down, *subUp, *subDown, *qs, *ks, *kr;  // (T,nv), decay per channel
  float *subTotal, *walk, *total, *skip;            // (4,nv) (16,nv) (nv) (pv)
  float *vt, *mask, *r, *dO, *dq, *dk, *dqi, *dki;  // gradient
  float* dstateT;                                   // (p,nv)
};

template <Decay KIND>
Scratch scratch(Carver& c, const Scan& s, bool gradient) {
  Scratch w{};
  const int64_t rn = kChunk * s.nv, rp = kChunk * s.pv, state = s.nv * s.pv;
  w.q = c.take<float>(rn), w.k = c.take<float>(rn), w.kt = c.take<float>(s.nv * kChunk);
  w.v = c.take<float>(rp), w.att = c.take<float>(kChunk * kChunk), w.o = c.take<float>(rp);
  w.state = c.take<float>(state), w.inc = c.take<float>(state);
  if (KIND == Decay::Channel) {
    w.eg = c.take<float>(rn), w.up = c.take<float>(rn), w.down = c.take<float>(rn);
    w.subUp = c.take<float>(rn), w.subDown = c.take<float>(rn), w.qs = c.take<float>(rn), w.ks = c.take<float>(rn);
    w.subTotal = c.take<float>(kChunk / kSub * s.nv), w.walk = c.take<float>(kSub * s.nv);
    if (gradient) w.kr = c.take<float>(rn), w.dqi = c.take<float>(rn), w.dki = c.take<float>(rn);
  }
  w.total = c.take<float>(s.nv), w.skip = c.take<float>(s.pv);
  if (gradient) {
    w.vt = c.take<float>(s.pv * kChunk), w.mask = c.take<float>(kChunk * kChunk), w.r = c.take<float>(kChunk * kChunk);
    w.dO = c.take<float>(rp), w.dq = c.take<float>(rn), w.dk = c.take<float>(rn);
    w.dstateT = c.take<float>(state);
  }
  return w;
}

inline Place placeOf(const Scan& s, int64_t sequence, int64_t chunk, int64_t head) {
  const Sequence& q = s.sequence[sequence];
  const int64_t from = chunk * kChunk;
  return {sequence, q.batch, q.start + from, least(kChunk, q.length - from), head, (q.chunk + chunk) * s.heads + head};
}
inline Place placeOf(const Scan& s, int64_t index) {
  const int64_t chunk = index / s.heads, sequence = s.sequenceOf[chunk];
  return placeOf(s, sequence, chunk - s.sequence[sequence].chunk, index % s.heads);
}

// Sizes that follow from the others; `batch`, `length`, `n`, `p`, `heads` and `groups` are set.
inline void setSizes(Scan& s, int64_t packedSequences) {
  s.packed = packedSequences >= 0;
  s.sequences = s.packed ? packedSequences : s.batch;
  s.chunks = s.packed ? s.length / kChunk + s.sequences : s.batch * chunksOf(s.length);  // packed: at most
  s.nv = padded(s.n), s.pv = padded(s.p);
}
// The longest a sequence may be: decides the order of work and the scratch before the lengths are known.
inline int64_t mostChunks(const Scan& s) { return chunksOf(s.length); }
inline bool chunksInParallel(const Scan& s) {
  const int64_t workers = workerCount();
  return mostChunks(s) > 1 && s.pairs() < 4 * workers && s.pairs() % workers;
}

// Fills the tables of sequences and chunks; false when the cumulative lengths make no sense.
inline bool layOut(Scan& s) {
  if (s.packed) {
    bool fits = s.cu[0] == 0 && s.cu[s.sequences] == s.length;
    for (int64_t i = 0; i < s.sequences; i++) fits = fits && s.cu[i] <= s.cu[i + 1];
    if (!fits) return false;
  }
  int64_t chunk = 0;
  for (int64_t i = 0; i < s.sequences; i++) {
    s.sequence[i] = s.packed ? Sequence{0, s.cu[i], int64_t(s.cu[i + 1]) - s.cu[i], chunk} : Sequence{i, 0, s.length, chunk};
    for (int64_t c = chunksOf(s.sequence[i].length); c > 0; c--) s.sequenceOf[chunk++] = int32_t(i);
  }
  s.chunks = chunk;
  return true;
}

}  // namespace mm::cpu::MM_ISA::chunk_scan
