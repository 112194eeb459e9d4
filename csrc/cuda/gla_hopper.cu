// gla on Hopper: the plan of a call.
#include "cuda/gla_hopper.h"

#include "cuda/gla_hopper_gradient.cuh"
#include "cuda/gla_hopper_output.cuh"
#include "cuda/gla_hopper_states.cuh"

namespace mm::cuda::gla {
namespace {

using chunk_scan::Problem;

struct Plan {
  Walk walk;
  StatesTask states;
  int64_t slots = 0, segments = 0;  // chunks and segments of all sequences
};

// Over so many segments a block adds up the state that it starts from; over more a scan goes before (chunk_scan.cu). That scan takes
// 12 us, adding up 7 segments 8.
constexpr int kOwnSegments = 8;

// One wave of blocks, each with a segment of a head; at least four chunks a segment.
Plan plan(const MMCall* c, const Problem& problem, Scratch& scratch) {
  const Scan& s = problem.scan;
  Plan p;
  Walk& walk = p.walk;
  const int64_t pairs = int64_t(s.batch) * s.heads, wanted = deviceOf(c).multiprocessors / pairs;
  walk.chunks = int(ceilDiv(s.length, kSteps));
  const int least = walk.chunks < 4 ? walk.chunks : 4;
  walk.segment = int(ceilDiv(walk.chunks, wanted < 1 ? 1 : wanted));
  if (walk.segment < least) walk.segment = least;
  walk.segments = int(ceilDiv(walk.chunks, walk.segment));
  p.slots = int64_t(s.batch) * walk.chunks, p.segments = int64_t(s.batch) * walk.segments;
  constexpr int64_t size = kWidth * kWidth;
  if (walk.segments > 1) {
    walk.states = scratch.take<float>(p.segments * s.heads * size);
    if (problem.backward) walk.gradients = scratch.take<float>(p.segments * s.heads * size);
    walk.totals = scratch.take<float>(p.segments * s.heads * s.n);
    walk.passed = walk.segments > kOwnSegments;
  }
  if (!problem.backward) return p;
  const int64_t keys = int64_t(s.batch) * s.length * s.heads * s.n;
  p.states.keys = scratch.take<bf16>(keys);
  p.states.decays = scratch.take<float>(p.slots * s.heads * kWidth);
  p.states.states = scratch.take<bf16>(p.slots * s.heads * size);
  return p;
}

bool encodeRows(CUtensorMap& map, const Operand& o, const Scan& s, int width) {
  return encodeHeads(map, viewOf(o, s, s.heads, width), kSteps);
}
// Dense keys of the workspace.
bool encodeKeys(CUtensorMap& map, bf16* data, const Scan& s) {
  Operand o;
  o.data = data, o.dtype = MM_BF16, o.head = s.n, o.time = int64_t(s.heads) * s.n, o.batch = s.length * o.time;
  return encodeRows(map, o, s, s.n);
}
bool encodeStates(CUtensorMap& map, bf16* data, int64_t count) {
  MMTensorView v{};
  v.data = data, v.dtype = MM_BF16, v.ndim = 4;
  v.shape[0] = 1, v.shape[1] = count * kWidth, v.shape[2] = 1, v.shape[3] = kWidth;
  v.stride[0] = v.stride[2] = 0, v.stride[1] = kWidth, v.stride[3] = 1;
  return encodeHeads(map, v, kWidth);
}

// A block a segment of a head.
template <class... P, class... A>
int32_t launchSegments(const MMCall* c, void (*kernel)(P...), const Problem& problem, const Plan& p, size_t shared, const A&... args) {
  return launch(c, kernel, dim3(unsigned(p.segments * problem.scan.heads)), dim3(kThreads), shared, problem.scan, args...);
}

template <class G, bool GRADIENTS>
int32_t passSegments(const MMCall* c, const Problem& problem, const Plan& p, const StatesMaps& maps) {
  const Scan& s = problem.scan;
  if (!GRADIENTS && p.walk.segments == 1) return MM_OK;
  const auto kernel = glaSegmentsKernel<G, GRADIENTS>;
  const int32_t status = launchSegments(c, kernel, problem, p, SegmentsLayout<GRADIENTS>::shared, p.walk, p.states, maps);
  if (status != MM_OK || !p.walk.passed) return status;
  const chunk_scan::Pass forwards = {p.walk.states, s.initial, nullptr}, backwards = {p.walk.gradients, problem.gradient.dFinal, nullptr};
  return passStates(c, s, int64_t(p.walk.segment) * kSteps, {1, kWidth, kWidth, true}, p.walk.totals, true, forwards, backwards);
}

template <class G>
int32_t forward(const MMCall* c, const Problem& problem, const Plan& p, const StatesMaps& states, const OutputMaps& maps) {
  const int32_t status = passSegments<G, false>(c, problem, p, states);
  return status == MM_OK ? launchSegments(c, glaOutputKernel<G>, problem, p, OutputLayout::shared, p.walk, maps) : status;
}

template <class G>
int32_t backward(const MMCall* c, const Problem& problem, const Plan& p, const StatesMaps& segments, const StatesMaps& chunks,
                 const GradientMaps& maps) {
  int32_t status = passSegments<G, true>(c, problem, p, segments);
  if (status == MM_OK) status = launchSegments(c, glaChunksKernel, problem, p, ChunksLayout::shared, p.walk, p.states, chunks);
  if (status != MM_OK) return status;
  return launchSegments(c, glaGradientKernel<G>, problem, p, GradientLayout::shared, problem.gradient, p.walk, maps);
}

}  // namespace

bool fitsHopper(const MMCall* c, const Problem& problem) {
  const Scan& s = problem.scan;
  static const bool built = builtForHopper(glaOutputKernel<float>);
  if (!built || deviceOf(c).capability() != 90 || s.v.dtype != MM_BF16 || s.packed || !chunk_scan::fitsMma(c, problem)) return false;
  const int64_t rows = ceilDiv(s.length, kSteps) * s.batch * s.heads * kWidth;  // of the states
  return s.n > 32 && s.p > 32 && s.p <= kWidth && s.length <= INT32_MAX - kSteps && rows <= INT32_MAX;
}

uint64_t hopperWorkspace(const MMCall* c, const Problem& problem) {
  Scratch scratch;
  plan(c, problem, scratch);
  return scratch.bytes();
}

bool runHopper(const MMCall* c, const Problem& problem, int32_t& status) {
  const Scan& s = problem.scan;
  const Gradient& g = problem.gradient;
  if (!chunk_scan::alignedForMma(problem)) return false;
  Scratch scratch(c);
  const Plan p = plan(c, problem, scratch);
  StatesMaps segments{};
  if (!encodeRows(segments.q, s.q, s, s.n) || !encodeRows(segments.k, s.k, s, s.n) || !encodeRows(segments.v, s.v, s, s.p)) return false;
  const auto byGate = [&](auto&& f) { return s.gate.dtype == MM_F32 ? f(float{}) : f(bf16{}); };
  if (!problem.backward) {
    const OutputMaps maps = {segments.q, segments.k, segments.v};
    status = byGate([&](auto gate) { return forward<decltype(gate)>(c, problem, p, segments, maps); });
    return true;
  }
  if (!encodeRows(segments.dO, g.dy, s, s.p)) return false;
  StatesMaps chunks = segments;
  GradientMaps maps = {segments.q, segments.k, segments.v, segments.dO, {}};
  if (!encodeKeys(chunks.k, p.states.keys, s) || !encodeStates(maps.states, p.states.states, p.slots * s.heads)) return false;
  status = byGate([&](auto gate) { return backward<decltype(gate)>(c, problem, p, segments, chunks, maps); });
  return true;
}

}  // namespace mm::cuda::gla
