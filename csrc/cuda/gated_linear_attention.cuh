// simpleGla and gla describe their calls alike: their operands stand in the same slots, the log-decays are by head or by channel.
#pragma once
#include <cmath>

#include "cuda/chunk_scan.cuh"
#include "ops/simple_gla.h"

namespace mm::cuda::chunk_scan {

template <Decay KIND>
Problem describeGated(const MMCall* c, double scale) {
  using namespace ops::simple_gla;
  Problem p;
  p.kind = KIND;
  Scan& s = p.scan;
  s = describe(c, ops::linear_attention::Q, ops::linear_attention::K, ops::linear_attention::V, INITIALSTATE, CUSEQLENS);
  s.scale = scale != 0 ? float(scale) : 1.f / std::sqrt(float(s.n));
  (KIND == Decay::Head ? s.step : s.gate) = operand(in(c, G));
  return p;
}

template <Decay KIND>
Problem describeGatedForward(const MMCall* c) {
  using namespace ops::simple_gla;
  Problem p = describeGated<KIND>(c, attrs<Attrs>(c).scale);
  p.scan.y = operand(out(c, O)), p.scan.final = data<float>(out(c, FINALSTATE));
  return p;
}

template <Decay KIND>
Problem describeGatedBackward(const MMCall* c) {
  using namespace ops::simple_gla_bwd;
  Problem p = describeGated<KIND>(c, attrs<Attrs>(c).scale);
  p.backward = true;
  Gradient& g = p.gradient;
  g.dy = optionalOperand(c, DO);
  g.hasFinal = has(c, DFINALSTATE);
  if (g.hasFinal) g.dFinal = data<float>(in(c, DFINALSTATE));
  g.dq = optionalResult(c, DQ), g.dk = optionalResult(c, DK), g.dv = optionalResult(c, DV);
  (KIND == Decay::Head ? g.dstep : g.dgate) = optionalResult(c, DG);
  g.wantsInitial = hasOut(c, DINITIALSTATE), g.dInitial = optionalFloats(c, DINITIALSTATE);
  return p;
}

}  // namespace mm::cuda::chunk_scan
