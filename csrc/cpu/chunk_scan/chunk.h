// What the chunk engine does with one chunk: its decays, the triangle of intra, the output and what it adds to the state.
#pragma once
#include "cpu/chunk_scan/rows.h"

namespace mm::cpu::MM_ISA::chunk_scan {

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
template <class T, Decay KIND>
void loadChunk(const Scan& s, const Place& at, bool queries, Steps& st, Scratch& w) {
  loadDecay<T, KIND>(s, at, st, w);
  if (queries) loadQ<T>(s, at, w);
  loadK<T>(s, at, w);
  loadV<T, KIND>(s, at, st, w);
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

}  // namespace mm::cpu::MM_ISA::chunk_scan
