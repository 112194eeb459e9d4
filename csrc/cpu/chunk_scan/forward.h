// Whole calls of the chunk engine: chunks in order, or in parallel with the states passed on between them.
#pragma once
#include "cpu/chunk_scan/chunk.h"

namespace mm::cpu::MM_ISA::chunk_scan {

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
          loadChunk<T, KIND>(s, at, true, st, w);
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
      loadChunk<T, KIND>(s, at, false, st, w);
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
      loadChunk<T, KIND>(s, at, true, st, w);
      const bool fresh = at.start == s.sequence[at.sequence].start && !s.initial;
      chunkOutput<T, KIND>(s, at, st, w, fresh ? nullptr : plan.states + index * size);
    }
  });
}

}  // namespace mm::cpu::MM_ISA::chunk_scan
