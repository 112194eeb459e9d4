// linearAttention and its gradient on the chunk engine, without decay.
#include "cuda/linear_attention.cuh"

#include <cmath>

#include "ops/linear_attention.h"

namespace mm::cuda {
namespace {

using namespace chunk_scan;

// 1 / den, and for the gradients that of den and what chunks need of each other.
int32_t normalize(const MMCall* c, Problem& p, int64_t steps, Scratch& scratch, bool run) {
  Scan& s = p.scan;
  Gradient& g = p.gradient;
  NormTask task;
  task.steps = steps, task.gradient = p.backward, task.rounds = p.roundsUpstream;
  const int64_t slots = slotCount(s, steps), rows = int64_t(s.batch) * s.length * s.heads, sums = slots * s.heads * s.n;
  const bool several = mostSlots(s, steps) > 1;
  task.inverse = scratch.take<float>(rows);
  if (several) task.before = scratch.take<float>(sums);
  if (p.backward) {
    task.dden = scratch.take<float>(rows);
    if (several) task.behind = scratch.take<float>(sums);
    task.o = optionalOperand(c, ops::linear_attention_bwd::O);
  }
  s.inverse = task.inverse, g.dden = task.dden, g.before = task.before, g.behind = task.behind;
  if (!run) return MM_OK;

  const dim3 chunks(unsigned(slots * s.heads)), threads(kNormThreads);
  const dim3 pairs(unsigned(ceilDiv(int64_t(s.sequences) * s.heads * s.n, kNormThreads)));
  return dispatchFloat(s.v.dtype, [&](auto t) {
    using T = decltype(t);
    int32_t status = MM_OK;
    if (several) {
      status = launch(c, normKeysKernel<T>, chunks, threads, 0, s, steps, task.before);
      if (status == MM_OK) status = launch(c, normPassKernel, pairs, threads, 0, s, steps, task.before, false);
    }
    if (status == MM_OK) status = launch(c, normDenominatorKernel<T>, chunks, threads, normShared(steps), s, g, task);
    if (status == MM_OK && task.behind) status = launch(c, normPassKernel, pairs, threads, 0, s, steps, task.behind, true);
    return status;
  });
}

Problem describeProblem(const MMCall* c, double scale, bool normalized) {
  using namespace ops::linear_attention;
  Problem p;
  Scan& s = p.scan;
  s = chunk_scan::describe(c, Q, K, V, INITIALSTATE, CUSEQLENS);
  s.scale = scale != 0 ? float(scale) : 1.f / std::sqrt(float(s.n));
  s.normalized = normalized;
  if (normalized) p.prologue = normalize;
  return p;
}

Problem describeForward(const MMCall* c) {
  using namespace ops::linear_attention;
  Problem p = describeProblem(c, attrs<Attrs>(c).scale, attrs<Attrs>(c).normalize);
  p.scan.y = operand(out(c, O)), p.scan.final = data<float>(out(c, FINALSTATE));
  return p;
}

Problem describeBackward(const MMCall* c) {
  using namespace ops::linear_attention_bwd;
  Problem p = describeProblem(c, attrs<Attrs>(c).scale, attrs<Attrs>(c).normalize);
  p.backward = true;
  Gradient& g = p.gradient;
  g.dy = optionalOperand(c, DO);
  g.hasFinal = has(c, DFINALSTATE);
  if (g.hasFinal) g.dFinal = data<float>(in(c, DFINALSTATE));
  g.dq = optionalResult(c, DQ), g.dk = optionalResult(c, DK), g.dv = optionalResult(c, DV);
  g.wantsInitial = hasOut(c, DINITIALSTATE), g.dInitial = optionalFloats(c, DINITIALSTATE);
  return p;
}

using Forward = Entries<describeForward>;
using Backward = Entries<describeBackward>;

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(linear_attention, {"linearAttention", "mma", Forward::fits, Forward::mmaWorkspace, Forward::runMma},
                {"linearAttention", "general", nullptr, Forward::workspace, Forward::run},
                {"linearAttentionBackward", "wgmma", Backward::fitsHopper, Backward::hopperWorkspace, Backward::runHopper},
                {"linearAttentionBackward", "mma", Backward::fits, Backward::mmaWorkspace, Backward::runMma},
                {"linearAttentionBackward", "general", nullptr, Backward::workspace, Backward::run})
