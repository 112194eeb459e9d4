// The chunk engine behind ssd, linearAttention, simpleGla and gla: linear attention with a decaying state,
//
//   S_t = decay_t S_{t-1} + w_t k_t v_t^T                   S (N, P), for every sequence and head
//   y_t = (scale q_t S_t / den_t + D v_t) * silu(z_t)       w, den, D and z are optional
//
// with decay_t = 1, a number per head (exp(dt_t A) or exp(g_t)), or a vector over N (exp(gk_t)).
//
// The recurrence is never walked. A sequence is cut into chunks of 64 steps; with c_t the sum of the log-decays since
// the start of the chunk, state-space duality (arXiv 2405.21060) turns the work of a chunk into matrix products:
//
//   intra   y_t += sum_{s<=t} (q_t.k_s) exp(c_t - c_s) w_s v_s         a lower triangle of 64 x 64
//   inter   y_t += exp(c_t) q_t S_in
//   state   S_out = exp(c_T) S_in + sum_s exp(c_T - c_s) w_s k_s v_s^T
//
// Only differences of c with s <= t are exponentiated, so strong decays cannot overflow. Sums c are kept as two floats
// (c = hi + lo), so that differences keep their precision however far the sum has run. The mask saves work by blocks of rows.
//
// 64 steps: with N = P = 128 the operands of a chunk (0.3 MB) stay in the second-level cache, the triangle costs a
// quarter of the state products, and every product is a whole number of register tiles. Rows of scratch are padded to
// whole vectors (nv, pv), so no product has a tail. k comes in transposed, because the right operand needs dense rows.
//
// Two orders of the same arithmetic, to the bit: with enough (sequence, head) pairs for all workers each pair runs
// through its chunks with the state in cache; otherwise the chunks' states are computed in parallel, passed on in a
// short sequential scan, and the chunks' outputs are computed in parallel. A state is always
// `decay * state + increment` with the increment summed from zero, which is what makes both orders agree.
//
// Rejected: fetching the next chunk's rows between register tiles. With f32, L = 8192, H = 16, N = P = 128 the loads
// went from 7 to 2 us a chunk, but the products slowed down by more: 37.4 us a chunk without, 39 to 43 us with it
// (medians of 2048 chunks, one Zen 5 core).
//
// A decay per channel (gla) cannot be split off the products as a mask. Within sub-chunks of 16 steps the decay is
// multiplied up step by step on k (never divided); between sub-chunks i > j the products are
// (q_t prod_{start of i..t} e^g) . (k_s prod_{s+1..start of i} e^g): all factors are products of exp(g), at most 1.
//
// Gradients, with P_ts = (q_t.k_s) exp(c_t - c_s), R_ts = (dy_t.w_s v_s) exp(c_t - c_s), dS the gradient of a state:
//
//   w_s v_s:  sum_{t>=s} P_ts dy_t + exp(c_T - c_s) k_s dS_out        q_t:  sum_{s<=t} R_ts k_s + exp(c_t) dy_t S_in^T
//   k_s:      sum_{t>=s} R_ts q_t + exp(c_T - c_s) w_s v_s dS_out^T   dS_in = exp(c_T) dS_out + sum_t exp(c_t) q_t^T dy_t
//   g_t:      sum over all paths of the chunk that cross step t, the diagonal s = t left out
//
// The states at the chunks' starts are recomputed, transposed (P, N), as the products above need them.
#pragma once
#include "cpu/kernel.h"
#include "cpu/simd/lanes.h"
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

// ---- products and moves between padded buffers

// tileMatmul for n a multiple of VL, in the widest columns that fit
inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb,
                    float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + kTileVectors * VL <= n; j += kTileVectors * VL)
    tileColumns<kTileVectors, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
  if constexpr (kTileVectors > 3)
    if (j + 3 * VL <= n) tileColumns<3, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0), j += 3 * VL;
  if constexpr (kTileVectors > 2)
    if (j + 2 * VL <= n) tileColumns<2, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0), j += 2 * VL;
  if (j < n) tileColumns<1, false>(m, k, a, ars, acs, b + j, ldb, c + j, ldc, accumulate, 0);
}

// att[t][s] = a_t . b_s for the blocks that touch s <= t; bt is b transposed with rows of kChunk
inline void lowerGram(int64_t len, int64_t k, const float* a, int64_t lda, const float* bt, float* att) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, padded(end), k, a + i * lda, lda, 1, bt, kChunk, att + i * kChunk, kChunk, false);
  }
}
// c_t (+)= sum_{s<=t} m[t][s] b_s
inline void lowerApply(int64_t len, int64_t n, const float* m, const float* b, float* c, bool accumulate) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, n, end, m + i * kChunk, kChunk, 1, b, n, c + i * n, n, accumulate);
  }
}
// c_s (+)= sum_{t>=s} m[t][s] b_t
inline void upperApply(int64_t len, int64_t n, const float* m, const float* b, float* c, bool accumulate) {
  for (int64_t i = 0; i < len; i += kRowBlock) {
    const int64_t end = least(i + kRowBlock, len);
    product(end - i, n, len - i, m + i * kChunk + i, 1, kChunk, b + i * n, n, c + i * n, n, accumulate);
  }
}

// dst rows of ld (padded) floats = src rows * factor (* scale[row])
template <class T>
void loadRows(int64_t rows, int64_t cols, const T* src, int64_t stride, float* dst, int64_t ld, float factor,
              const float* scale) {
  for (int64_t t = 0; t < rows; t++) {
    const vf f = splat(scale ? factor * scale[t] : factor);
    for (int64_t j = 0; j < ld; j += VL) store(dst + t * ld + j, loadUpTo(src + t * stride + j, cols - j) * f);
  }
}
// D of a head as a row of pv
inline void loadSkip(const Scan& s, int64_t head, float* row) {
  if (!s.skip) return;
  const bool wide = s.skip->ndim == 2;
  for (int64_t j = 0; j < s.pv; j++) row[j] = j < s.p ? element(s.skip->data, s.skip->dtype, wide ? head * s.p + j : head) : 0.f;
}
template <class T>
void storeRows(int64_t rows, int64_t cols, const float* src, int64_t ld, T* dst, int64_t stride) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < cols; j += VL) storeUpTo(dst + t * stride + j, load(src + t * ld + j), cols - j);
}
// dst[j][i] = src[i][j]; dst has a multiple of VL columns at least padded(rows), whose surplus is zero; the padded rows
// of dst up to padded(cols) are written too
template <class T>
void loadTransposed(int64_t rows, int64_t cols, const T* src, int64_t stride, float* dst, int64_t ld) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < cols; j += VL) {
      vf x[VL];
      if (i + VL <= rows && j + VL <= cols) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) x[r] = load(src + (i + r) * stride + j);
      } else
        for (int r = 0; r < VL; r++) x[r] = i + r < rows ? loadUpTo(src + (i + r) * stride + j, cols - j) : vf{};
      transposeLanes<VL>(x);
#pragma GCC unroll 16
      for (int r = 0; r < VL; r++) store(dst + (j + r) * ld + i, x[r]);
    }
}
// dst (cols, rows) dense = src (rows, cols) with rows of ld
inline void storeTransposed(int64_t rows, int64_t cols, const float* src, int64_t ld, float* dst) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < cols; j += VL) {
      vf x[VL];
      for (int r = 0; r < VL; r++) x[r] = i + r < rows ? load(src + (i + r) * ld + j) : vf{};
      transposeLanes<VL>(x);
      for (int r = 0; r < VL && j + r < cols; r++) storeUpTo(dst + (j + r) * rows + i, x[r], rows - i);
    }
}
inline void scaleRows(int64_t rows, int64_t ld, float* x, const float* scale) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < ld; j += VL) store(x + t * ld + j, load(x + t * ld + j) * scale[t]);
}
inline void multiply(int64_t count, float* x, const float* by) {
  for (int64_t j = 0; j < count; j += VL) store(x + j, load(x + j) * load(by + j));
}
inline float dot(int64_t count, const float* a, const float* b) {
  vf acc{};
  for (int64_t j = 0; j < count; j += VL) acc = fma(load(a + j), load(b + j), acc);
  return sum(acc);
}

// State of a pair as it stands in memory <-> padded rows: (n, pv), or transposed (p, nv).
inline void loadState(const Scan& s, const float* src, bool transposed, float* dst) {
  const int64_t rows = s.statesByValue ? s.p : s.n, cols = s.statesByValue ? s.n : s.p, ld = transposed ? s.nv : s.pv;
  if (transposed == s.statesByValue) loadRows(rows, cols, src, cols, dst, ld, 1.f, nullptr);
  else loadTransposed(rows, cols, src, cols, dst, ld);
}
inline void storeState(const Scan& s, const float* src, bool transposed, float* dst) {
  const int64_t rows = transposed ? s.p : s.n, cols = transposed ? s.n : s.p, ld = transposed ? s.nv : s.pv;
  if (transposed == s.statesByValue) storeRows(rows, cols, src, ld, dst, cols);
  else storeTransposed(rows, cols, src, ld, dst);
}

// next = total * state + inc. The total is one number (Head), or runs over n: along the rows of a transposed state, by
// row otherwise.
template <Decay KIND>
MM_INLINE vf decayed(vf state, vf inc, const float* total, int64_t row, int64_t j, bool transposed) {
  if (KIND == Decay::None) return state + inc;
  if (KIND == Decay::Head) return fma(splat(total[0]), state, inc);
  return fma(transposed ? load(total + j) : splat(total[row]), state, inc);
}
template <Decay KIND>
void advance(int64_t rows, int64_t ld, const float* total, bool transposed, const float* state, const float* inc, float* next) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i * ld; j < (i + 1) * ld; j += VL)
      store(next + j, decayed<KIND>(load(state + j), load(inc + j), total, i, j - i * ld, transposed));
}

// ---- the parts of a chunk

MM_INLINE vi laneNumbers() {
  vi v;
  for (int i = 0; i < VL; i++) v[i] = i;
  return v;
}

// Decays of the chunk. Head: st; Channel: the factor matrices of w.
template <class T, Decay KIND>
void loadDecay(const Scan& s, const Place& at, Steps& st, Scratch& w) {
  const int64_t len = at.length, end = padded(len);
  if (KIND == Decay::Head) {
    const int64_t base = s.step.offset(at.batch, at.start, at.head);
    for (int64_t t = 0; t < end; t++) st.raw[t] = t < len ? element(s.step.data, s.step.dtype, base + t * s.step.time) : 0.f;
    const float* g = st.raw;
    if (s.rate) {
      st.rate = element(s.rate->data, s.rate->dtype, at.head);
      st.bias = s.bias ? element(s.bias->data, s.bias->dtype, at.head) : 0.f;
      for (int64_t t = 0; t < end; t += VL) {
        const vf d = load(st.raw + t) + st.bias;
        store(st.raw + t, d);
        const vf wt = s.softplus ? softplus(d) : d;
        store(st.w + t, wt);
        store(st.hi + t, wt * st.rate);
      }
      g = st.hi;
    }
    double c = 0;
    for (int64_t t = 0; t < end; t++) {
      if (t < len) c += double(g[t] < kLeastLogDecay ? kLeastLogDecay : g[t]);
      st.hi[t] = float(c);
      st.lo[t] = float(c - double(st.hi[t]));
    }
    const vf hi = splat(st.hi[len - 1]), lo = splat(st.lo[len - 1]);
    for (int64_t t = 0; t < end; t += VL) {
      store(st.up + t, exp(load(st.hi + t) + load(st.lo + t)));
      store(st.down + t, exp((hi - load(st.hi + t)) + (lo - load(st.lo + t))));
    }
    st.total = st.up[len - 1];
    w.total[0] = st.total;
  }
  if (KIND == Decay::Channel) {
    const int64_t nv = s.nv;
    const auto decays = [&](const auto* g) {
      for (int64_t t = 0; t < len; t++)
        for (int64_t j = 0; j < nv; j += VL) store(w.eg + t * nv + j, exp(loadUpTo(g + t * s.gate.time + j, s.n - j)));
    };
    if (s.gate.dtype == MM_F32) decays(s.gate.at<const float>(at.batch, at.start, at.head));
    else decays(s.gate.at<const T>(at.batch, at.start, at.head));
    for (int64_t j = 0; j < nv; j += VL) {
      vf up = splat(1.f), sub = up;
      for (int64_t t = 0; t < len; t++) {
        const vf e = load(w.eg + t * nv + j);
        sub = t % kSub ? sub * e : e;
        up = up * e;
        store(w.up + t * nv + j, up);
        store(w.subUp + t * nv + j, sub);
        if (t % kSub == kSub - 1 || t == len - 1) store(w.subTotal + t / kSub * nv + j, sub);
      }
      store(w.total + j, up);
      vf down = splat(1.f);
      sub = down;
      for (int64_t t = len - 1; t >= 0; t--) {
        if (t % kSub == kSub - 1) sub = splat(1.f);
        store(w.down + t * nv + j, down);
        store(w.subDown + t * nv + j, sub);
        const vf e = load(w.eg + t * nv + j);
        down = down * e;
        sub = sub * e;
      }
    }
  }
}

template <class T>
void loadQ(const Scan& s, const Place& at, Scratch& w) {
  loadRows(at.length, s.n, s.q.at<const T>(at.batch, at.start, s.group(at.head)), s.q.time, w.q, s.nv, s.scale, nullptr);
}
template <class T>
void loadK(const Scan& s, const Place& at, Scratch& w) {
  loadRows(at.length, s.n, s.k.at<const T>(at.batch, at.start, s.group(at.head)), s.k.time, w.k, s.nv, 1.f, nullptr);
}
template <class T, Decay KIND>
void loadV(const Scan& s, const Place& at, const Steps& st, Scratch& w) {
  loadRows(at.length, s.p, s.v.at<const T>(at.batch, at.start, at.head), s.v.time, w.v, s.pv, 1.f,
           KIND == Decay::Head && s.rate ? st.w : nullptr);
}
// x *= decay from the chunk's start to the step (up), or from the step to the chunk's end (down)
template <Decay KIND>
void decayRows(const Scan& s, int64_t len, const Steps& st, const Scratch& w, bool up, float* x) {
  if (KIND == Decay::Head) scaleRows(len, s.nv, x, up ? st.up : st.down);
  if (KIND == Decay::Channel) multiply(len * s.nv, x, up ? w.up : w.down);
}

// e[t][s] = exp(c_t - c_s) for s <= t, else 0; f(row offset, column, vector) takes every vector of the blocks in use
template <Decay KIND, class F>
MM_INLINE void forMask(int64_t len, const Steps& st, F&& f) {
  const vi lanes = laneNumbers();
  for (int64_t t = 0; t < len; t++) {
    const int64_t end = padded(least((t / kRowBlock + 1) * kRowBlock, len));
    for (int64_t j = 0; j < end; j += VL) {
      if (j > t) {
        f(t, j, vf{}, vi{});
        continue;
      }
      const vf e = KIND == Decay::Head ? exp((st.hi[t] - load(st.hi + j)) + (st.lo[t] - load(st.lo + j))) : splat(1.f);
      f(t, j, e, j + VL > t + 1 ? lanes <= int(t - j) : lanes >= 0);
    }
  }
}

// Channel: the triangle within one sub-chunk of m <= 16 steps; the decay between t and s is multiplied up on k.
inline void subTriangle(int64_t m, int64_t nv, const float* q, const float* k, const float* eg, float* walk, float* att) {
  for (int64_t t = 0; t < m; t++) {
    vf acc[kSub];
    for (int64_t s = 0; s < t; s++) {
      vf a{};
      for (int64_t j = 0; j < nv; j += VL) {
        const vf x = load(walk + s * nv + j) * load(eg + t * nv + j);
        store(walk + s * nv + j, x);
        a = fma(load(q + t * nv + j), x, a);
      }
      acc[s] = a;
    }
    vf a{};
    for (int64_t j = 0; j < nv; j += VL) {
      const vf x = load(k + t * nv + j);
      store(walk + t * nv + j, x);
      a = fma(load(q + t * nv + j), x, a);
    }
    acc[t] = a;
    for (int64_t s = t + 1; s < kSub; s++) acc[s] = vf{};
    for (int64_t s = 0; s < kSub; s += VL) store(att + t * kChunk + s, sumLanes(acc + s));
  }
}

// w.att = P: the decayed triangle of q and k, zeros above the diagonal up to the end of the row's block. The gradient
// keeps the decay itself in w.mask (Channel needs none).
template <Decay KIND, bool KEEP>
void triangle(const Scan& s, int64_t len, const Steps& st, Scratch& w) {
  const int64_t nv = s.nv;
  if (KIND != Decay::Channel) {
    loadTransposed(len, s.n, w.k, nv, w.kt, kChunk);
    lowerGram(len, s.n, w.q, nv, w.kt, w.att);
    forMask<KIND>(len, st, [&](int64_t t, int64_t j, vf e, vi keep) {
      float* p = w.att + t * kChunk + j;
      store(p, select(keep, load(p) * e, vf{}));
      if (KEEP) store(w.mask + t * kChunk + j, select(keep, e, vf{}));
    });
    return;
  }
  for (int64_t j = 0; j < len * nv; j += VL) {
    store(w.qs + j, load(w.q + j) * load(w.subUp + j));
    store(w.ks + j, load(w.k + j) * load(w.subDown + j));
  }
  for (int64_t i = 0; i < len; i += kSub) {
    const int64_t m = least(kSub, len - i);
    if (i) product(m, i, s.n, w.qs + i * nv, nv, 1, w.kt, kChunk, w.att + i * kChunk, kChunk, false);
    subTriangle(m, nv, w.q + i * nv, w.k + i * nv, w.eg + i * nv, w.walk, w.att + i * kChunk + i);
    for (int64_t t = i; t < i + m; t++)
      for (int64_t j = i + kSub; j < kChunk; j += VL) store(w.att + t * kChunk + j, vf{});
    if (i + kSub >= len) break;
    const float* passed = w.subTotal + i / kSub * nv;
    for (int64_t n = 0; n < s.n; n++)  // the keys so far, now seen from the end of this sub-chunk
      for (int64_t j = n * kChunk; j < n * kChunk + i; j += VL) store(w.kt + j, load(w.kt + j) * passed[n]);
    loadTransposed(m, s.n, w.ks + i * nv, nv, w.kt + i, kChunk);
  }
}

// w.o = sum of intra and inter, from q, v and the triangle; q is left decayed. state: (n, pv) or null.
template <Decay KIND>
void readOut(const Scan& s, int64_t len, const Steps& st, Scratch& w, const float* state) {
  if (state) {
    decayRows<KIND>(s, len, st, w, true, w.q);
    product(len, s.pv, s.n, w.q, s.nv, 1, state, s.pv, w.o, s.pv, false);
  }
  lowerApply(len, s.pv, w.att, w.v, w.o, state != nullptr);
}

template <class T, Decay KIND>
void chunkOutput(const Scan& s, const Place& at, const Steps& st, Scratch& w, const float* state) {
  triangle<KIND, false>(s, at.length, st, w);
  readOut<KIND>(s, at.length, st, w, state);
  loadSkip(s, at.head, w.skip);
  for (int64_t t = 0; t < at.length; t++) {
    T* y = s.y.at<T>(at.batch, at.start + t, at.head);
    const float inverse = s.den ? 1.f / s.den[(at.batch * s.length + at.start + t) * s.heads + at.head] : 1.f;
    const T* v = s.v.at<const T>(at.batch, at.start + t, at.head);
    const T* z = s.z.data ? s.z.at<const T>(at.batch, at.start + t, at.head) : nullptr;
    for (int64_t j = 0; j < s.p; j += VL) {
      vf o = load(w.o + t * s.pv + j) * inverse;
      if (s.skip) o = fma(load(w.skip + j), loadUpTo(v + j, s.p - j), o);
      if (z) o = o * silu(loadUpTo(z + j, s.p - j));
      storeUpTo(y + j, o, s.p - j);
    }
  }
}

// What the chunk adds to the state, (n, pv), or (p, nv) when transposed; w.k is left decayed.
template <Decay KIND>
void stateIncrement(const Scan& s, int64_t len, const Steps& st, Scratch& w, bool transposed, float* inc) {
  decayRows<KIND>(s, len, st, w, false, w.k);
  if (transposed) product(s.p, s.nv, len, w.v, 1, s.pv, w.k, s.nv, inc, s.nv, false);
  else product(s.n, s.pv, len, w.k, 1, s.nv, w.v, s.pv, inc, s.pv, false);
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

// ---- whole calls

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

struct Plan {
  Scratch* scratch;         // by worker
  float *states, *dstates;  // by chunk and head; by chunk for every worker when a pair's chunks run in order
  float *totals;            // by chunk and head
  float *passing;           // by pair: the state that is passed on
};

// Passes states on: inc[chunk] becomes the state before the chunk (forwards) or behind it (backwards). The rows of a
// state are independent, so blocks of rows run in parallel.
template <Decay KIND>
void passStates(const Scan& s, bool transposed, bool backwards, const float* first, float* last, float* inc, const Plan& plan) {
  constexpr int64_t kRows = 8;
  const int64_t rows = transposed ? s.p : s.n, ld = transposed ? s.nv : s.pv, size = rows * ld;
  const int64_t blocks = (rows + kRows - 1) / kRows, width = KIND == Decay::Channel ? s.nv : 1, room = s.nv * s.pv;
  if (first)
    parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) loadState(s, first + i * s.stateSize(), transposed, plan.passing + i * room);
    });
  parallelFor(s.pairs() * blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t pair = item / blocks, head = pair % s.heads, from = item % blocks * kRows, to = least(from + kRows, rows);
      const Sequence& sequence = s.sequence[pair / s.heads];
      const int64_t count = chunksOf(sequence.length);
      float* state = plan.passing + pair * room;
      for (int64_t i = 0; i < count; i++) {
        const int64_t index = (sequence.chunk + (backwards ? count - 1 - i : i)) * s.heads + head;
        float* x = inc + index * size;
        if (i == 0 && !first) {
          std::memcpy(state + from * ld, x + from * ld, size_t((to - from) * ld) * sizeof(float));
          continue;
        }
        for (int64_t r = from; r < to; r++)
          for (int64_t j = 0; j < ld; j += VL) {
            const vf old = load(state + r * ld + j), add = load(x + r * ld + j);
            store(x + r * ld + j, old);
            store(state + r * ld + j, decayed<KIND>(old, add, plan.totals + index * width, r, j, transposed));
          }
      }
    }
  });
  if (last)
    parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        if (first || s.sequence[i / s.heads].length) storeState(s, plan.passing + i * room, transposed, last + i * s.stateSize());
        else std::memset(last + i * s.stateSize(), 0, size_t(s.stateSize()) * sizeof(float));
    });
}

template <Decay KIND>
Plan forwardPlan(Carver& c, Scan& s) {
  Plan p{};
  s.sequence = c.take<Sequence>(s.sequences);
  s.sequenceOf = c.take<int32_t>(s.chunks);
  const int workers = workerCount();
  p.scratch = c.take<Scratch>(workers);
  for (int i = 0; i < workers; i++) {
    const Scratch w = scratch<KIND>(c, s, false);
    if (c.base) p.scratch[i] = w;
  }
  if (chunksInParallel(s)) {
    p.states = c.take<float>(s.chunks * s.heads * s.n * s.pv);
    p.totals = c.take<float>(s.chunks * s.heads * (KIND == Decay::Channel ? s.nv : 1));
    p.passing = c.take<float>(s.pairs() * s.nv * s.pv);
  }
  return p;
}

template <class T, Decay KIND>
void forward(const Scan& s, const Plan& plan) {
  if (!chunksInParallel(s)) {
    parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int worker) {
      Scratch w = plan.scratch[worker];
      Steps st;
      for (int64_t pair = begin; pair < end; pair++) {
        const int64_t sequence = pair / s.heads, head = pair % s.heads, count = chunksOf(s.sequence[sequence].length);
        bool hasState = s.initial != nullptr;
        if (hasState) loadState(s, s.initial + pair * s.stateSize(), false, w.state);
        for (int64_t i = 0; i < count; i++) {
          const Place at = placeOf(s, sequence, i, head);
          loadDecay<T, KIND>(s, at, st, w);
          loadQ<T>(s, at, w);
          loadK<T>(s, at, w);
          loadV<T, KIND>(s, at, st, w);
          chunkOutput<T, KIND>(s, at, st, w, hasState ? w.state : nullptr);
          if (i + 1 == count && !s.final) break;
          stateIncrement<KIND>(s, at.length, st, w, false, hasState ? w.inc : w.state);
          if (hasState) advance<KIND>(s.n, s.pv, w.total, false, w.state, w.inc, w.state);
          hasState = true;
        }
        if (!s.final) continue;
        if (hasState) storeState(s, w.state, false, s.final + pair * s.stateSize());
        else std::memset(s.final + pair * s.stateSize(), 0, size_t(s.stateSize()) * sizeof(float));
      }
    });
    return;
  }
  const int64_t size = s.n * s.pv, width = KIND == Decay::Channel ? s.nv : 1;
  parallelFor(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    Scratch w = plan.scratch[worker];
    Steps st;
    for (int64_t index = begin; index < end; index++) {
      const Place at = placeOf(s, index);
      loadDecay<T, KIND>(s, at, st, w);
      loadK<T>(s, at, w);
      loadV<T, KIND>(s, at, st, w);
      stateIncrement<KIND>(s, at.length, st, w, false, plan.states + index * size);
      if (KIND != Decay::None) std::memcpy(plan.totals + index * width, w.total, size_t(width) * sizeof(float));
    }
  });
  passStates<KIND>(s, false, false, s.initial, s.final, plan.states, plan);
  parallelFor(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    Scratch w = plan.scratch[worker];
    Steps st;
    for (int64_t index = begin; index < end; index++) {
      const Place at = placeOf(s, index);
      loadDecay<T, KIND>(s, at, st, w);
      loadQ<T>(s, at, w);
      loadK<T>(s, at, w);
      loadV<T, KIND>(s, at, st, w);
      const bool fresh = at.start == s.sequence[at.sequence].start && !s.initial;
      chunkOutput<T, KIND>(s, at, st, w, fresh ? nullptr : plan.states + index * size);
    }
  });
}

// ---- gradient

// w.dO = gradient of the sum of intra and inter: dy * silu(z) / den
template <class T>
void loadUpstream(const Scan& s, const Gradient& g, const Place& at, Scratch& w) {
  for (int64_t t = 0; t < at.length; t++) {
    const T* dy = g.dy.data ? g.dy.at<const T>(at.batch, at.start + t, at.head) : nullptr;
    const T* z = s.z.data ? s.z.at<const T>(at.batch, at.start + t, at.head) : nullptr;
    const float inverse = s.den ? 1.f / s.den[(at.batch * s.length + at.start + t) * s.heads + at.head] : 1.f;
    for (int64_t j = 0; j < s.pv; j += VL) {
      vf x = dy ? loadUpTo(dy + j, s.p - j) * inverse : vf{};
      if (z) x = x * silu(loadUpTo(z + j, s.p - j));
      store(w.dO + t * s.pv + j, x);
    }
  }
}

// What the chunk adds to the gradient of the state before it: (n, pv); w.q is left decayed.
template <Decay KIND>
void stateGradient(const Scan& s, int64_t len, const Steps& st, Scratch& w, float* inc) {
  decayRows<KIND>(s, len, st, w, true, w.q);
  product(s.n, s.pv, len, w.q, 1, s.nv, w.dO, s.pv, inc, s.pv, false);
}

// Channel: the parts of dq and dk that come from within the chunk, from R in w.r. dqi and dki get those that decay has
// a part in (s < t); w.r keeps the diagonal, which the caller adds.
inline void channelIntra(const Scan& s, int64_t len, Scratch& w) {
  const int64_t nv = s.nv;
  std::memset(w.dki, 0, size_t(len * nv) * sizeof(float));
  for (int64_t i = 0; i < len; i += kSub) {
    const int64_t m = least(kSub, len - i);
    if (i) {  // w.kr: the keys before, seen from the start of this sub-chunk
      product(m, nv, i, w.r + i * kChunk, kChunk, 1, w.kr, nv, w.dqi + i * nv, nv, false);
      multiply(m * nv, w.dqi + i * nv, w.subUp + i * nv);
      for (int64_t t = 0; t < i; t++) multiply(nv, w.kr + t * nv, w.subTotal + i / kSub * nv);
    } else std::memset(w.dqi, 0, size_t(m * nv) * sizeof(float));
    std::memcpy(w.kr + i * nv, w.ks + i * nv, size_t(m * nv) * sizeof(float));
    for (int64_t t = 0; t < m; t++) {
      for (int64_t j = 0; j < nv; j += VL) {
        vf acc = load(w.dqi + (i + t) * nv + j);
        const vf e = load(w.eg + (i + t) * nv + j);
        for (int64_t u = 0; u < t; u++) {
          const vf x = load(w.walk + u * nv + j) * e;
          store(w.walk + u * nv + j, x);
          acc = fma(splat(w.r[(i + t) * kChunk + i + u]), x, acc);
        }
        store(w.dqi + (i + t) * nv + j, acc);
        store(w.walk + t * nv + j, load(w.k + (i + t) * nv + j));
      }
    }
  }
  for (int64_t i = (len - 1) / kSub * kSub; i >= 0; i -= kSub) {
    const int64_t m = least(kSub, len - i);
    multiply(m * nv, w.dki + i * nv, w.subDown + i * nv);
    for (int64_t u = m - 1; u >= 0; u--)
      for (int64_t j = 0; j < nv; j += VL) {
        vf acc = load(w.dki + (i + u) * nv + j);
        for (int64_t t = u + 1; t < m; t++) {  // queries behind, decayed back to step u
          const vf x = load(w.walk + t * nv + j) * load(w.eg + (i + u + 1) * nv + j);
          store(w.walk + t * nv + j, x);
          acc = fma(splat(w.r[(i + t) * kChunk + i + u]), x, acc);
        }
        store(w.dki + (i + u) * nv + j, acc);
        store(w.walk + u * nv + j, load(w.q + (i + u) * nv + j));
      }
    if (!i) break;
    for (int64_t t = 0; t < i; t++) multiply(nv, w.dki + t * nv, w.subTotal + i / kSub * nv);
    product(i, nv, m, w.r + i * kChunk, 1, kChunk, w.qs + i * nv, nv, w.dki, nv, true);
  }
}

// The gradients of one chunk. stateT: the state before it (p, nv); dstate, dstateT: gradient of the state behind it,
// (n, pv) and (p, nv); null when zero. Leaves w.q and w.dO for stateGradient.
template <class T, Decay KIND>
void chunkGradient(const Scan& s, const Gradient& g, const Place& at, Steps& st, Scratch& w, const float* stateT,
                   const float* dstate, const float* dstateT) {
  const int64_t len = at.length, nv = s.nv, pv = s.pv, n = s.n, p = s.p;
  const bool decay = g.wantsDecay(), weighted = KIND == Decay::Head && s.rate;
  const int64_t row = at.batch * s.length + at.start;  // of a (B, L, ...) array
  alignas(64) float rows[kChunk] = {}, cols[kChunk] = {}, inter[kChunk] = {}, carried[kChunk] = {}, dw[kChunk] = {};

  triangle<KIND, true>(s, len, st, w);
  loadSkip(s, at.head, w.skip);

  if (g.dz.data) {  // y before the gate
    float* state = w.inc;
    if (stateT) loadTransposed(p, n, stateT, nv, state, pv);
    readOut<KIND>(s, len, st, w, stateT ? state : nullptr);
    loadQ<T>(s, at, w);
    for (int64_t t = 0; t < len; t++) {
      const T *v = s.v.at<const T>(at.batch, at.start + t, at.head), *z = s.z.at<const T>(at.batch, at.start + t, at.head);
      const T* dy = g.dy.data ? g.dy.at<const T>(at.batch, at.start + t, at.head) : nullptr;
      T* dz = g.dz.at<T>(at.batch, at.start + t, at.head);
      for (int64_t j = 0; j < p; j += VL) {
        vf o = load(w.o + t * pv + j);
        if (s.skip) o = fma(load(w.skip + j), loadUpTo(v + j, p - j), o);
        const vf d = dy ? loadUpTo(dy + j, p - j) : vf{};
        storeUpTo(dz + j, d * o * siluGrad(loadUpTo(z + j, p - j)), p - j);
      }
    }
  }

  // R, and the sums over rows and columns of what passes through the decay mask
  loadTransposed(len, p, w.v, pv, w.vt, kChunk);
  lowerGram(len, p, w.dO, pv, w.vt, w.r);
  {
    const vi lanes = laneNumbers();
    for (int64_t t = 0; t < len; t++) {
      const int64_t end = padded(least((t / kRowBlock + 1) * kRowBlock, len));
      const float dden = g.dden ? g.dden[(row + t) * s.heads + at.head] : 0.f;
      vf acc{};
      for (int64_t j = 0; j < end; j += VL) {
        float* r = w.r + t * kChunk + j;
        if (j > t) {
          store(r, vf{});
          continue;
        }
        const vf d = load(r) + dden;
        if (KIND == Decay::Channel) {
          store(r, select(lanes <= int(t - j), d, vf{}));
          continue;
        }
        store(r, select(lanes <= int(t - j), d * load(w.mask + t * kChunk + j), vf{}));
        if (KIND == Decay::None) continue;
        const vf e = select(lanes < int(t - j), d * load(w.att + t * kChunk + j), vf{});
        acc = acc + e;
        store(cols + j, load(cols + j) + e);
      }
      if (KIND == Decay::Head) rows[t] = sum(acc);
    }
  }

  // dv: gradient of w v first
  if (g.dv.data || weighted) {
    float* dv = w.o;
    if (dstate) {
      // k decayed to the chunk's end, in w.dk for now
      std::memcpy(w.dk, w.k, size_t(len * nv) * sizeof(float));
      decayRows<KIND>(s, len, st, w, false, w.dk);
      product(len, pv, n, w.dk, nv, 1, dstate, pv, dv, pv, false);
    }
    upperApply(len, pv, w.att, w.dO, dv, dstate != nullptr);
    for (int64_t t = 0; t < len; t++) {
      const T* v = s.v.at<const T>(at.batch, at.start + t, at.head);
      T* dx = g.dv.data ? g.dv.at<T>(at.batch, at.start + t, at.head) : nullptr;
      const float wt = weighted ? st.w[t] : 1.f;
      vf acc{};
      for (int64_t j = 0; j < p; j += VL) {
        const vf x = load(dv + t * pv + j);
        if (weighted) acc = fma(loadUpTo(v + j, p - j), x, acc);
        if (!dx) continue;
        vf r = x * wt;
        if (s.skip) r = fma(load(w.skip + j), load(w.dO + t * pv + j), r);
        storeUpTo(dx + j, r, p - j);
      }
      if (weighted) dw[t] = sum(acc);
    }
  }
  if (g.dSkip) {
    float* part = g.skipParts + at.index * (s.skip->ndim == 2 ? p : 1);
    vf all{};
    for (int64_t j = 0; j < p; j += VL) {
      vf acc{};
      for (int64_t t = 0; t < len; t++)
        acc = fma(load(w.dO + t * pv + j), loadUpTo(s.v.at<const T>(at.batch, at.start + t, at.head) + j, p - j), acc);
      if (s.skip->ndim == 2) storeUpTo(part + j, acc, p - j);
      else all = all + acc;
    }
    if (s.skip->ndim == 1) part[0] = sum(all);
  }

  // dq and dk: what goes through the states, decayed, then what stays in the chunk
  const bool wantQ = g.dq.data || decay, wantK = g.dk.data || decay;
  if (wantQ) {
    if (stateT) {
      product(len, nv, p, w.dO, pv, 1, stateT, nv, w.dq, nv, false);
      decayRows<KIND>(s, len, st, w, true, w.dq);
      if (KIND == Decay::Head && decay)
        for (int64_t t = 0; t < len; t++) inter[t] = dot(nv, w.q + t * nv, w.dq + t * nv);
    } else std::memset(w.dq, 0, size_t(len * nv) * sizeof(float));
    if (g.dden)
      for (int64_t t = 0; t < len; t++) {
        const float d = g.dden[(row + t) * s.heads + at.head];
        for (int64_t j = 0; j < nv; j += VL)
          store(w.dq + t * nv + j, fma(splat(d), load(g.before + at.index * nv + j), load(w.dq + t * nv + j)));
      }
  }
  if (wantK) {
    if (dstateT) {
      product(len, nv, p, w.v, pv, 1, dstateT, nv, w.dk, nv, false);
      decayRows<KIND>(s, len, st, w, false, w.dk);
      if (KIND == Decay::Head && decay)
        for (int64_t t = 0; t < len; t++) carried[t] = dot(nv, w.k + t * nv, w.dk + t * nv);
    } else std::memset(w.dk, 0, size_t(len * nv) * sizeof(float));
    if (g.behind)
      for (int64_t t = 0; t < len; t++)
        for (int64_t j = 0; j < nv; j += VL)
          store(w.dk + t * nv + j, load(w.dk + t * nv + j) + load(g.behind + at.index * nv + j));
  }
  if (KIND != Decay::Channel) {
    if (g.dq.data) lowerApply(len, nv, w.r, w.k, w.dq, true);
    if (g.dk.data) upperApply(len, nv, w.r, w.q, w.dk, true);
  } else if (wantQ || wantK) {
    channelIntra(s, len, w);
    if (g.dgate.data) {
      for (int64_t j = 0; j < nv; j += VL) {
        vf run{};
        for (int64_t t = len - 1; t >= 0; t--) {
          const int64_t i = t * nv + j;
          run = run + load(w.q + i) * (load(w.dqi + i) + load(w.dq + i)) - load(w.k + i) * load(w.dki + i);
          store(w.kr + i, run);
        }
        run = vf{};
        if (stateT && dstateT) {
          for (int64_t i = 0; i < p; i++) run = fma(load(stateT + i * nv + j), load(dstateT + i * nv + j), run);
          run = run * load(w.total + j);
        }
        for (int64_t t = 0; t < len; t++) {
          const int64_t i = t * nv + j;
          const vf carry = load(w.k + i) * load(w.dk + i);
          store(w.kr + i, load(w.kr + i) + run);
          run = run + carry;
        }
      }
      if (g.dgate.dtype == MM_F32) storeRows(len, n, w.kr, nv, g.dgate.at<float>(at.batch, at.start, at.head), g.dgate.time);
      else storeRows(len, n, w.kr, nv, g.dgate.at<T>(at.batch, at.start, at.head), g.dgate.time);
    }
    for (int64_t t = 0; t < len; t++) {
      const vf d = splat(w.r[t * kChunk + t]);
      for (int64_t i = t * nv; i < (t + 1) * nv; i += VL) {
        store(w.dq + i, load(w.dq + i) + load(w.dqi + i) + d * load(w.k + i));
        store(w.dk + i, load(w.dk + i) + load(w.dki + i) + d * load(w.q + i));
      }
    }
  }
  if (g.dq.data) {
    for (int64_t i = 0; i < len * nv; i += VL) store(w.dq + i, load(w.dq + i) * s.scale);
    if (g.dqHeads) storeRows(len, n, w.dq, nv, g.dqHeads + (row * s.heads + at.head) * n, s.heads * n);
    else storeRows(len, n, w.dq, nv, g.dq.at<T>(at.batch, at.start, at.head), g.dq.time);
  }
  if (g.dk.data) {
    if (g.dkHeads) storeRows(len, n, w.dk, nv, g.dkHeads + (row * s.heads + at.head) * n, s.heads * n);
    else storeRows(len, n, w.dk, nv, g.dk.at<T>(at.batch, at.start, at.head), g.dk.time);
  }

  if (KIND == Decay::Head && decay) {
    // g_t: paths from s < t to u >= t, from s < t through the state behind, from the state before to u >= t, and both
    double through = 0, rate = 0, bias = 0;
    if (stateT && dstateT) through = double(st.total) * double(dot(p * nv, stateT, dstateT));
    alignas(64) float slope[kChunk];  // of softplus
    for (int64_t t = 0; t < len; t += VL) store(slope + t, s.softplus ? sigmoid(load(st.raw + t)) : splat(1.f));
    double dg[kChunk], run = 0;
    for (int64_t t = len - 1; t >= 0; t--) {
      run += double(rows[t]) - double(cols[t]) + double(inter[t]);
      dg[t] = run;
    }
    const int64_t base = g.dstep.offset(at.batch, at.start, at.head);
    for (int64_t t = 0; t < len; t++) {
      dg[t] += through;
      through += double(carried[t]);
      double d = dg[t];
      if (s.rate) {
        rate += dg[t] * double(st.w[t]);
        d = (double(dw[t]) + dg[t] * double(st.rate)) * double(slope[t]);
        bias += d;
      }
      if (g.dstep.data) setElement(g.dstep.data, g.dstep.dtype, base + t * g.dstep.time, float(d));
    }
    if (g.dRate) g.rateParts[at.index] = float(rate);
    if (g.dBias) g.biasParts[at.index] = float(bias);
  }
}

template <Decay KIND>
Plan backwardPlan(Carver& c, Scan& s, Gradient& g, bool dSkip) {
  Plan p{};
  s.sequence = c.take<Sequence>(s.sequences);
  s.sequenceOf = c.take<int32_t>(s.chunks);
  const int workers = workerCount();
  const int64_t size = s.nv * s.pv;
  p.scratch = c.take<Scratch>(workers);
  for (int i = 0; i < workers; i++) {
    const Scratch w = scratch<KIND>(c, s, true);
    if (c.base) p.scratch[i] = w;
  }
  if (chunksInParallel(s)) {
    p.states = c.take<float>(s.chunks * s.heads * size);
    p.dstates = c.take<float>(s.chunks * s.heads * size);
    p.totals = c.take<float>(s.chunks * s.heads * (KIND == Decay::Channel ? s.nv : 1));
    p.passing = c.take<float>(s.pairs() * size);
  } else p.states = c.take<float>(workers * mostChunks(s) * size);
  if (s.rate) g.rateParts = c.take<float>(s.chunks * s.heads), g.biasParts = c.take<float>(s.chunks * s.heads);
  if (dSkip) g.skipParts = c.take<float>(s.chunks * s.heads * s.p);
  if (s.groups != s.heads) {
    g.dqHeads = c.take<float>(s.batch * s.length * s.heads * s.n);
    g.dkHeads = c.take<float>(s.batch * s.length * s.heads * s.n);
  }
  return p;
}

// out (B, L, groups, N) = sum over the heads of a group, in order
template <class T>
void sumHeads(const Scan& s, const float* heads, const Operand& result) {
  const int64_t share = s.heads / s.groups, rows = s.batch * s.length;
  parallelFor(rows, 1 + 65536 / (s.heads * s.n + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t group = 0; group < s.groups; group++) {
        const float* from = heads + (i * s.heads + group * share) * s.n;
        T* to = result.at<T>(i / s.length, i % s.length, group);
        for (int64_t j = 0; j < s.n; j += VL) {
          vf acc{};
          for (int64_t h = 0; h < share; h++) acc = acc + loadUpTo(from + h * s.n + j, s.n - j);
          storeUpTo(to + j, acc, s.n - j);
        }
      }
  });
}
// result[head * width + j] = sum over chunks, in order
inline void sumParts(const Scan& s, const float* parts, int64_t width, float* result) {
  constexpr int64_t kBlock = 16;
  const int64_t count = s.heads * width;
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t n = least(kBlock, count - i);
    double acc[kBlock] = {};
    for (int64_t c = 0; c < s.chunks; c++)
      for (int64_t j = 0; j < n; j++) acc[j] += double(parts[c * count + i + j]);
    for (int64_t j = 0; j < n; j++) result[i + j] = float(acc[j]);
  }
}

template <class T, Decay KIND>
void backward(const Scan& s, const Gradient& g, const Plan& plan) {
  const int64_t sizeT = s.p * s.nv, sizeD = s.n * s.pv, size = s.nv * s.pv, width = KIND == Decay::Channel ? s.nv : 1;
  if (!chunksInParallel(s)) {
    parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int worker) {
      Scratch w = plan.scratch[worker];
      Steps st;
      float* states = plan.states + worker * mostChunks(s) * size;
      for (int64_t pair = begin; pair < end; pair++) {
        const int64_t sequence = pair / s.heads, head = pair % s.heads, count = chunksOf(s.sequence[sequence].length);
        if (s.initial && count) loadState(s, s.initial + pair * s.stateSize(), true, states);
        for (int64_t i = 0; i + 1 < count; i++) {
          const Place at = placeOf(s, sequence, i, head);
          loadDecay<T, KIND>(s, at, st, w);
          loadK<T>(s, at, w);
          loadV<T, KIND>(s, at, st, w);
          float* next = states + (i + 1) * size;
          stateIncrement<KIND>(s, at.length, st, w, true, next);
          if (i || s.initial) advance<KIND>(s.p, s.nv, w.total, true, states + i * size, next, next);
        }
        bool hasGradient = g.dFinal != nullptr;
        if (hasGradient) loadState(s, g.dFinal + pair * s.stateSize(), false, w.state);
        for (int64_t i = count - 1; i >= 0; i--) {
          const Place at = placeOf(s, sequence, i, head);
          loadDecay<T, KIND>(s, at, st, w);
          loadQ<T>(s, at, w);
          loadK<T>(s, at, w);
          loadV<T, KIND>(s, at, st, w);
          loadUpstream<T>(s, g, at, w);
          if (hasGradient) loadTransposed(s.n, s.p, w.state, s.pv, w.dstateT, s.nv);
          chunkGradient<T, KIND>(s, g, at, st, w, i || s.initial ? states + i * size : nullptr, hasGradient ? w.state : nullptr,
                                 hasGradient ? w.dstateT : nullptr);
          if (!i && !g.dInitial) break;
          stateGradient<KIND>(s, at.length, st, w, hasGradient ? w.inc : w.state);
          if (hasGradient) advance<KIND>(s.n, s.pv, w.total, false, w.state, w.inc, w.state);
          hasGradient = true;
        }
        if (!g.dInitial) continue;
        if (hasGradient) storeState(s, w.state, false, g.dInitial + pair * s.stateSize());
        else std::memset(g.dInitial + pair * s.stateSize(), 0, size_t(s.stateSize()) * sizeof(float));
      }
    });
  } else {
    parallelFor(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end, int worker) {
      Scratch w = plan.scratch[worker];
      Steps st;
      for (int64_t index = begin; index < end; index++) {
        const Place at = placeOf(s, index);
        loadDecay<T, KIND>(s, at, st, w);
        loadQ<T>(s, at, w);
        loadK<T>(s, at, w);
        loadV<T, KIND>(s, at, st, w);
        loadUpstream<T>(s, g, at, w);
        stateIncrement<KIND>(s, at.length, st, w, true, plan.states + index * sizeT);
        stateGradient<KIND>(s, at.length, st, w, plan.dstates + index * sizeD);
        if (KIND != Decay::None) std::memcpy(plan.totals + index * width, w.total, size_t(width) * sizeof(float));
      }
    });
    passStates<KIND>(s, true, false, s.initial, nullptr, plan.states, plan);
    passStates<KIND>(s, false, true, g.dFinal, g.dInitial, plan.dstates, plan);
    parallelFor(s.chunks * s.heads, 1, [&](int64_t begin, int64_t end, int worker) {
      Scratch w = plan.scratch[worker];
      Steps st;
      for (int64_t index = begin; index < end; index++) {
        const Place at = placeOf(s, index);
        const Sequence& seq = s.sequence[at.sequence];
        const bool first = at.start == seq.start && !s.initial;
        const bool last = at.start + at.length == seq.start + seq.length && !g.dFinal;
        loadDecay<T, KIND>(s, at, st, w);
        loadQ<T>(s, at, w);
        loadK<T>(s, at, w);
        loadV<T, KIND>(s, at, st, w);
        loadUpstream<T>(s, g, at, w);
        const float* dstate = last ? nullptr : plan.dstates + index * sizeD;
        if (dstate) loadTransposed(s.n, s.p, dstate, s.pv, w.dstateT, s.nv);
        chunkGradient<T, KIND>(s, g, at, st, w, first ? nullptr : plan.states + index * sizeT, dstate,
                               dstate ? w.dstateT : nullptr);
      }
    });
  }
  if (g.dqHeads && g.dq.data) sumHeads<T>(s, g.dqHeads, g.dq);
  if (g.dkHeads && g.dk.data) sumHeads<T>(s, g.dkHeads, g.dk);
  if (g.dRate) sumParts(s, g.rateParts, 1, g.dRate);
  if (g.dBias) sumParts(s, g.biasParts, 1, g.dBias);
  if (g.dSkip) sumParts(s, g.skipParts, s.skip->ndim == 2 ? s.p : 1, g.dSkip);
}

}  // namespace mm::cpu::MM_ISA::chunk_scan
