// ssd and its gradient on the chunk engine: keys B, queries C, values x, weights and decays from dt and A. The engine
// (chunk_scan.h) describes the chunks, the layouts and the order of work.
#include "ops/ssd.h"

#include "cpu/chunk_scan.h"

namespace mm::cpu::MM_ISA {
namespace {

using namespace chunk_scan;

// The operands that ssd and ssdBackward share stand in the same slots.
Scan describe(const MMCall* c, bool softplus) {
  using namespace ops::ssd;
  const auto &x = in(c, X), &b = in(c, B);
  Scan s;
  s.batch = x.shape[0], s.length = x.shape[1], s.heads = x.shape[2], s.p = x.shape[3];
  s.groups = b.shape[2], s.n = b.shape[3];
  setSizes(s, has(c, CUSEQLENS) ? in(c, CUSEQLENS).shape[0] - 1 : -1);
  s.q = operand(in(c, C)), s.k = operand(b), s.v = operand(x), s.z = optionalOperand(c, Z);
  s.step = operand(in(c, DT)), s.rate = &in(c, A), s.bias = has(c, DTBIAS) ? &in(c, DTBIAS) : nullptr;
  s.softplus = softplus;
  s.skip = has(c, D) ? &in(c, D) : nullptr;
  s.statesByValue = true;
  if (has(c, INITIALSTATES)) s.initial = data<float>(in(c, INITIALSTATES));
  if (s.packed) s.cu = data<int32_t>(in(c, CUSEQLENS));
  return s;
}

uint64_t ssdWorkspace(const MMCall* c) {
  Scan s = describe(c, false);
  Carver carver{nullptr};
  forwardPlan<Decay::Head>(carver, s);
  return carver.used;
}

int32_t ssd(const MMCall* c) {
  using namespace ops::ssd;
  Scan s = describe(c, attrs<Attrs>(c).dtSoftplus);
  s.y = operand(out(c, Y)), s.final = data<float>(out(c, FINALSTATES));
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = forwardPlan<Decay::Head>(carver, s);
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  dispatchFloat(in(c, X).dtype, [&](auto t) { forward<decltype(t), Decay::Head>(s, plan); });
  return MM_OK;
}

uint64_t ssdBackwardWorkspace(const MMCall* c) {
  Scan s = describe(c, false);
  Gradient g;
  Carver carver{nullptr};
  backwardPlan<Decay::Head>(carver, s, g, hasOut(c, ops::ssd_bwd::DD));
  return carver.used;
}

int32_t ssdBackward(const MMCall* c) {
  using namespace ops::ssd_bwd;
  Scan s = describe(c, attrs<Attrs>(c).dtSoftplus);
  Gradient g;
  g.dy = optionalOperand(c, DY);
  if (has(c, DFINALSTATES)) g.dFinal = data<float>(in(c, DFINALSTATES));
  g.dv = optionalResult(c, DX), g.dk = optionalResult(c, DB), g.dq = optionalResult(c, DC), g.dz = optionalResult(c, DZ);
  g.dstep = optionalResult(c, DDT);
  g.dRate = floatResult(c, DA), g.dBias = floatResult(c, DDTBIAS), g.dSkip = floatResult(c, DD);
  g.dInitial = floatResult(c, DINITIALSTATES);
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = backwardPlan<Decay::Head>(carver, s, g, g.dSkip);
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  dispatchFloat(in(c, X).dtype, [&](auto t) { backward<decltype(t), Decay::Head>(s, g, plan); });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(ssd, {"ssd", "chunked", nullptr, ssdWorkspace, ssd},
               {"ssdBackward", "chunked", nullptr, ssdBackwardWorkspace, ssdBackward})
