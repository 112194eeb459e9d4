// The general chunk engine: the plan of a call.
#include "cuda/chunk_scan_general_launch.cuh"

namespace mm::cuda::chunk_scan {
namespace {

int tileOf(const Scan& s) { return s.n <= 32 && s.p <= 32 ? 2 : 4; }

GeneralPlan plan(const MMCall* c, const Scan& s, Gradient* g, Decay kind, Scratch& scratch) {
  GeneralPlan p;
  p.r = tileOf(s);
  p.slots = slotCount(s, p.chunk());
  p.task.single = mostSlots(s, p.chunk()) == 1;
  const int64_t blocks = p.slots * s.heads;
  // one block makes the triangle for all values where chunks and heads fill the device twice
  if (blocks >= 2 * deviceOf(c).multiprocessors) p.task.valueTiles = int(ceilDiv(s.p, p.chunk()));
  if (!p.task.single) {
    p.task.states = scratch.take<float>(blocks * s.stateSize());
    if (g) p.task.dstates = scratch.take<float>(blocks * s.stateSize());
    p.task.totals = scratch.take<float>(kind == Decay::Channel ? blocks * s.n : blocks);
  }
  if (!g) return p;
  if (g->wantsRate) g->rateParts = scratch.take<float>(blocks);
  if (g->wantsBias) g->biasParts = scratch.take<float>(blocks);
  if (g->wantsSkip) g->skipParts = scratch.take<float>(blocks * (s.skip.wide ? s.p : 1));
  g->sharers = s.share();
  if (g->sharers != 1) {
    const int64_t keys = int64_t(s.batch) * s.length * s.heads * s.n;
    if (g->dq.given) g->dqHeads = scratch.take<float>(keys);
    if (g->dk.given) g->dkHeads = scratch.take<float>(keys);
  }
  return p;
}

}  // namespace

int32_t solveGeneral(const MMCall* c, Problem& problem, Scratch& scratch, bool run) {
  const Scan& s = problem.scan;
  Gradient& g = problem.gradient;
  if (problem.prologue) {
    const int32_t status = problem.prologue(c, problem, 16 * tileOf(s), scratch, run);
    if (status != MM_OK) return status;
  }
  const bool byChannel = problem.kind == Decay::Channel;
  const GeneralPlan p = plan(c, s, problem.backward ? &g : nullptr, problem.kind, scratch);
  if (!run) return MM_OK;
  if (problem.backward) return byChannel ? backwardGeneral<Decay::Channel>(c, s, g, p) : backwardGeneral<Decay::Head>(c, s, g, p);
  return byChannel ? forwardGeneral<Decay::Channel>(c, s, p) : forwardGeneral<Decay::Head>(c, s, p);
}

}  // namespace mm::cuda::chunk_scan
