// ssd and its gradient on the chunk engine: keys B, queries C, values x, weights and decays from dt and A.
#include "ops/ssd.h"

#include "cuda/chunk_scan.cuh"

namespace mm::cuda {
namespace {

using namespace chunk_scan;

// The operands that ssd and ssdBackward share stand in the same slots.
Scan describeScan(const MMCall* c, bool softplus) {
  using namespace ops::ssd;
  Scan s = chunk_scan::describe(c, C, B, X, INITIALSTATES, CUSEQLENS);
  s.z = optionalOperand(c, Z);
  s.step = operand(in(c, DT)), s.rate = parameter(c, A), s.bias = parameter(c, DTBIAS), s.skip = parameter(c, D);
  s.softplus = softplus;
  s.byValue = true;
  return s;
}

Problem describeForward(const MMCall* c) {
  using namespace ops::ssd;
  Problem p;
  p.scan = describeScan(c, attrs<Attrs>(c).dtSoftplus);
  p.scan.y = operand(out(c, Y)), p.scan.final = data<float>(out(c, FINALSTATES));
  return p;
}

Problem describeBackward(const MMCall* c) {
  using namespace ops::ssd_bwd;
  Problem p;
  p.backward = true;
  p.scan = describeScan(c, attrs<Attrs>(c).dtSoftplus);
  Gradient& g = p.gradient;
  g.dy = optionalOperand(c, DY);
  g.hasFinal = has(c, DFINALSTATES);
  if (g.hasFinal) g.dFinal = data<float>(in(c, DFINALSTATES));
  g.dv = optionalResult(c, DX), g.dk = optionalResult(c, DB), g.dq = optionalResult(c, DC), g.dz = optionalResult(c, DZ);
  g.dstep = optionalResult(c, DDT);
  g.wantsRate = hasOut(c, DA), g.wantsBias = hasOut(c, DDTBIAS), g.wantsSkip = hasOut(c, DD), g.wantsInitial = hasOut(c, DINITIALSTATES);
  g.dRate = optionalFloats(c, DA), g.dBias = optionalFloats(c, DDTBIAS), g.dSkip = optionalFloats(c, DD);
  g.dInitial = optionalFloats(c, DINITIALSTATES);
  return p;
}

using Forward = Entries<describeForward>;
using Backward = Entries<describeBackward>;

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(ssd, {"ssd", "mma", Forward::fits, Forward::mmaWorkspace, Forward::runMma},
                {"ssd", "general", nullptr, Forward::workspace, Forward::run},
                {"ssdBackward", "wgmma", Backward::fitsHopper, Backward::hopperWorkspace, Backward::runHopper},
                {"ssdBackward", "mma", Backward::fits, Backward::mmaWorkspace, Backward::runMma},
                {"ssdBackward", "general", nullptr, Backward::workspace, Backward::run})
