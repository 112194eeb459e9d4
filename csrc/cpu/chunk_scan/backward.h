// Whole calls of the chunk engine's gradient, and the sums over heads and chunks behind it. The states at the chunks' starts are
// recomputed, transposed (P, N), as the products of gradient.h need them.
#pragma once
#include "cpu/chunk_scan/forward.h"
#include "cpu/chunk_scan/gradient.h"

namespace mm::cpu::MM_ISA::chunk_scan {

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
          loadChunk<T, KIND>(s, at, false, st, w);
          float* next = states + (i + 1) * size;
          stateIncrement<KIND>(s, at.length, st, w, true, next);
          if (i || s.initial) advance<KIND>(s.p, s.nv, w.total, true, states + i * size, next, next);
        }
        bool hasGradient = g.dFinal != nullptr;
        if (hasGradient) loadState(s, g.dFinal + pair * s.stateSize(), false, w.state);
        for (int64_t i = count - 1; i >= 0; i--) {
          const Place at = placeOf(s, sequence, i, head);
          loadChunk<T, KIND>(s, at, true, st, w);
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
        loadChunk<T, KIND>(s, at, true, st, w);
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
        loadChunk<T, KIND>(s, at, true, st, w);
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
