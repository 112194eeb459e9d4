// The chunk engine's gradients of one chunk, with P_ts = (q_t.k_s) exp(c_t - c_s), R_ts = (dy_t.w_s v_s) exp(c_t - c_s)
// and dS the gradient of a state:
//
//   w_s v_s:  sum_{t>=s} P_ts dy_t + exp(c_T - c_s) k_s dS_out        q_t:  sum_{s<=t} R_ts k_s + exp(c_t) dy_t S_in^T
//   k_s:      sum_{t>=s} R_ts q_t + exp(c_T - c_s) w_s v_s dS_out^T   dS_in = exp(c_T) dS_out + sum_t exp(c_t) q_t^T dy_t
//   g_t:      sum over all paths of the chunk that cross step t, the diagonal s = t left out
#pragma once
#include "cpu/chunk_scan/chunk.h"

namespace mm::cpu::MM_ISA::chunk_scan {

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

}  // namespace mm::cpu::MM_ISA::chunk_scan
