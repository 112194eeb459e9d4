// The tensor-core chunk engine: the plan of a call, and the small kernels around the big ones.
#include "cuda/chunk_scan_mma.cuh"

#include "cuda/chunk_scan_mma_gradient.cuh"
#include "cuda/chunk_scan_mma_output.cuh"
#include "cuda/chunk_scan_mma_states.cuh"

namespace mm::cuda::chunk_scan {
namespace {

constexpr int kThreads = 256;

// ---- scalars of the steps, a warp a (chunk, head)

__global__ void chunkStepsKernel(const __grid_constant__ Scan s, float* steps, int64_t slots) {
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= slots * s.heads) return;
  const Place at = locate(s, index / s.heads, kChunk);
  if (!at.valid) return;
  const LaneSteps<2> lane = scanSteps<2>(s, at, int(index % s.heads));
  float* to = steps + index * kStepFloats + threadIdx.x % 32 * 2;
  float2 hi, lo;
  hi = {float(lane.c[0]), float(lane.c[1])};
  lo = {float(lane.c[0] - double(hi.x)), float(lane.c[1] - double(hi.y))};
  *reinterpret_cast<float2*>(to + HI * kChunk) = hi;
  *reinterpret_cast<float2*>(to + LO * kChunk) = lo;
  *reinterpret_cast<float2*>(to + W * kChunk) = {lane.w[0], lane.w[1]};
  *reinterpret_cast<float2*>(to + UP * kChunk) = {expf(hi.x), expf(hi.y)};
  *reinterpret_cast<float2*>(to + DOWN * kChunk) = {expf(float(lane.total - lane.c[0])), expf(float(lane.total - lane.c[1]))};
}

// What a (chunk, head) adds to the gradients of its decays, from the sums over its slices.
__global__ void chunkDecayGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g,
                                         const __grid_constant__ MmaTask task, int64_t slots) {
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= slots * s.heads) return;
  const int head = int(index % s.heads), lane = threadIdx.x % 32;
  const Place at = locate(s, index / s.heads, kChunk);
  if (!at.valid || !at.length) {
    if (lane == 0 && g.wantsRate) g.rateParts[index] = 0.f;
    if (lane == 0 && g.wantsBias) g.biasParts[index] = 0.f;
    return;
  }
  float crossing[2] = {}, carried[2] = {}, direct[2] = {}, through = 0.f;
  for (int64_t i = index * task.slices; i < (index + 1) * task.slices; i++) {
    const float* sums = task.sums + i * kGradientKinds * kChunk + lane * 2;
#pragma unroll
    for (int e = 0; e < 2; e++)
      crossing[e] += sums[CROSSING * kChunk + e], carried[e] += sums[CARRIED * kChunk + e], direct[e] += sums[DIRECT * kChunk + e];
    through += task.through[i];
  }
  decayGradient<2>(s, g, at, head, index, scanSteps<2>(s, at, head), crossing, carried, direct, through);
}

// dO = dy silu(z) / den, where there is a gate or a normalisation; 8 value channels a thread
template <class T>
__global__ void chunkUpstreamKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, T* result) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (i >= s.batch * s.length * s.heads * s.p) return;
  const int64_t p = i % s.p, step = i / s.p, head = step % s.heads, row = step / s.heads, b = row / s.length, t = row % s.length;
  float x[8];
  loadFloats<8>(g.dy.at<const T>(b, t, head) + p, x);
  if (s.z.given) {
    float z[8];
    loadFloats<8>(s.z.at<const T>(b, t, head) + p, z);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= silu(z[j]);
  }
  if (s.normalized)
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= s.inverse[step];
  storeFloats<8>(result + i, x);
}

// ---- the plan

struct Plan {
  Decay kind = Decay::Head;
  MmaSizes sizes;
  MmaTask task;
  ChannelTask channel;
  int64_t chunkSlots = 0, segmentSlots = 0;
  bool segmented = false;
  float* steps = nullptr;
  void* upstream = nullptr;                      // dO, where it is not dy
  bool hasStates = false, hasGradients = false;  // whether the states of any chunk are not zero, or must be walked
  int parts = 1;

  StateLayout layout() const { return {task.slices, sizes.pt, sizes.nt, true}; }
  int64_t segmentSteps() const { return task.segment * kChunk; }
};

size_t sharedFor(const MmaSizes& sizes, Decay kind, bool backward) {
  size_t bytes = 0;
  dispatchMma(MM_BF16, sizes, [&](auto, auto nt, auto pt) {
    constexpr int NT = decltype(nt)::value, PT = decltype(pt)::value;
    const size_t states = StateTiles<NT, PT>::bytes;
    const size_t output = kind == Decay::Channel ? OutputTiles<NT, PT, Decay::Channel>::bytes : OutputTiles<NT, PT, Decay::Head>::bytes;
    const size_t gradient = !backward ? 0 : kind == Decay::Channel ? channelGradientShared(sizes) : GradientTiles<NT, PT>::bytes;
    bytes = states > output ? states : output;
    if (gradient > bytes) bytes = gradient;
    return MM_OK;
  });
  return bytes;
}

// The tiles for a call: N whole, P in slices, as wide as shared memory allows. nt 0: none.
MmaSizes chooseSizes(const MMCall* c, const Problem& problem) {
  const Scan& s = problem.scan;
  MmaSizes sizes;
  sizes.nt = s.n <= 32 && s.p <= 32 ? 32 : s.n <= 64 ? 64 : 128;
  const int least = sizes.nt == 64 ? 64 : 32;
  const bool mostlyPadding = s.p > 128 && (s.p - 1) % 128 < 64;  // of the last slice, were it 128 wide
  sizes.pt = sizes.nt == 32 || (s.p <= 32 && least == 32) ? 32 : s.p <= 64 || mostlyPadding ? 64 : 128;
  for (; sizes.pt >= least; sizes.pt /= 2)
    if (sharedFor(sizes, problem.kind, problem.backward) <= deviceOf(c).sharedPerBlock) return sizes;
  return {};
}

// Chunks of a segment: at least four where there is work for the device, up to four waves of blocks, and whole sequences where
// those fill it.
int64_t chooseSegment(const MMCall* c, const Scan& s, const Plan& p) {
  const int64_t multiprocessors = deviceOf(c).multiprocessors, heads = int64_t(s.heads) * p.task.slices, items = p.chunkSlots * heads;
  int64_t waves = items / (4 * multiprocessors);
  waves = waves < 1 ? 1 : waves > 4 ? 4 : waves;
  const int64_t blocks = waves * multiprocessors, most = mostSlots(s, kChunk);
  if (s.packed) {
    const int64_t chunks = ceilDiv(items, blocks);
    return chunks < most ? chunks : most;
  }
  const int64_t segments = blocks / (s.batch * heads);
  return ceilDiv(most, segments < 1 ? 1 : segments);
}

Plan plan(const MMCall* c, Problem& problem, Scratch& scratch) {
  const Scan& s = problem.scan;
  const bool byChannel = problem.kind == Decay::Channel;
  Plan p;
  p.kind = problem.kind;
  p.sizes = chooseSizes(c, problem);
  p.task.slices = int(ceilDiv(s.p, p.sizes.pt));
  p.chunkSlots = slotCount(s, kChunk);
  p.task.segment = chooseSegment(c, s, p);
  p.segmentSlots = slotCount(s, p.segmentSteps());
  p.segmented = mostSlots(s, p.segmentSteps()) > 1;
  const int64_t heads = int64_t(s.heads) * p.task.slices, size = int64_t(p.sizes.nt) * p.sizes.pt;
  const int64_t rows = int64_t(s.batch) * s.length, blocks = p.chunkSlots * s.heads;
  if (byChannel) {
    p.channel.queries = scratch.take<bf16>(rows * s.heads * s.n), p.channel.keys = scratch.take<bf16>(rows * s.heads * s.n);
    p.task.attention = p.channel.attention = scratch.take<bf16>(blocks * kChunk * kChunk);
    p.task.totals = p.channel.totals = scratch.take<float>(blocks * s.n);
  } else p.task.steps = p.steps = scratch.take<float>(blocks * kStepFloats);
  if (p.segmented) {
    p.task.segmentStates = scratch.take<float>(p.segmentSlots * heads * size);
    p.task.segmentTotals = scratch.take<float>(p.segmentSlots * s.heads * (byChannel ? s.n : 1));
  }
  if (!problem.backward) return p;

  Gradient& g = problem.gradient;
  const bool several = mostSlots(s, kChunk) > 1;
  if (p.segmented) p.task.segmentGradients = scratch.take<float>(p.segmentSlots * heads * size);
  p.hasStates = several || s.hasInitial, p.hasGradients = several || g.hasFinal || g.wantsInitial;
  if (p.hasStates) p.task.states = scratch.take<bf16>(p.chunkSlots * heads * size);
  if (p.hasGradients) p.task.gradients = scratch.take<bf16>(p.chunkSlots * heads * size);
  if (byChannel) return p;
  if (s.z.given || s.normalized) p.upstream = scratch.take<bf16>(rows * s.heads * s.p);
  if (g.wantsDecay()) {
    p.task.sums = scratch.take<float>(p.chunkSlots * heads * kGradientKinds * kChunk);
    p.task.through = scratch.take<float>(p.chunkSlots * heads);
  }
  if (g.wantsRate) g.rateParts = scratch.take<float>(blocks);
  if (g.wantsBias) g.biasParts = scratch.take<float>(blocks);
  if (g.wantsSkip) g.skipParts = scratch.take<float>(blocks * (s.skip.wide ? s.p : p.task.slices));
  // as few parts of a group as fill the device twice
  const int share = s.share() * p.task.slices;
  while (p.parts < share && (share % p.parts || p.chunkSlots * s.groups * p.parts < 2 * deviceOf(c).multiprocessors)) p.parts++;
  p.task.headsPerPart = share / p.parts;
  g.sharers = p.parts;
  if (p.parts > 1) {
    if (g.dq.given) g.dqHeads = scratch.take<float>(rows * s.groups * p.parts * s.n);
    if (g.dk.given) g.dkHeads = scratch.take<float>(rows * s.groups * p.parts * s.n);
  }
  return p;
}

// A dense (B, L, heads, width) operand of the workspace.
Operand denseOperand(void* data, const Scan& s, int width) {
  Operand o;
  o.data = data, o.dtype = s.v.dtype, o.given = true;
  o.head = width, o.time = int64_t(s.heads) * width, o.batch = s.length * o.time;
  return o;
}

int64_t warpBlocks(const Scan& s, const Plan& p) { return ceilDiv(p.chunkSlots * s.heads, kThreads / 32); }

// What the walks need of the decays; by channel the queries and keys of `walked` become decayed ones.
int32_t prepare(const MMCall* c, const Scan& s, const Plan& p, Scan& walked) {
  if (p.kind == Decay::Head)
    return launch(c, chunkStepsKernel, dim3(unsigned(warpBlocks(s, p))), dim3(kThreads), 0, s, p.steps, p.chunkSlots);
  walked.q = denseOperand(p.channel.queries, s, s.n), walked.k = denseOperand(p.channel.keys, s, s.n);
  return launchChannelOperands(c, s, p.channel, p.sizes, p.chunkSlots * s.heads);
}

// The states before the segments, and with a gradient those behind them.
int32_t passSegments(const MMCall* c, const Scan& walked, const Gradient& g, const Plan& p, bool backward) {
  if (!p.segmented) return MM_OK;
  const int32_t status = launchMmaStates(c, walked, g, p.task, p.sizes, p.kind, p.segmentSlots, false, 0, backward ? 2 : 1);
  if (status != MM_OK) return status;
  const Pass forwards = {p.task.segmentStates, walked.initial, nullptr}, backwards = {p.task.segmentGradients, g.dFinal, nullptr};
  return passStates(c, walked, p.segmentSteps(), p.layout(), p.task.segmentTotals, p.kind == Decay::Channel, forwards, backwards);
}

int32_t forward(const MMCall* c, const Scan& s, const Plan& p) {
  Scan walked = s;
  int32_t status = prepare(c, s, p, walked);
  if (status == MM_OK) status = passSegments(c, walked, {}, p, false);
  if (status == MM_OK) status = launchMmaOutput(c, walked, {}, p.task, p.sizes, p.kind, p.segmentSlots, false);
  return status;
}

int32_t backward(const MMCall* c, const Scan& s, const Gradient& wanted, const Plan& p) {
  Gradient g = wanted;
  Scan walked = s;
  int32_t status = prepare(c, s, p, walked);
  if (p.upstream) {
    const dim3 grid(unsigned(ceilDiv(int64_t(s.batch) * s.length * s.heads * s.p / 8, kThreads)));
    if (status == MM_OK)
      status = dispatchFloat(s.v.dtype, [&](auto t) {
        using T = decltype(t);
        return launch(c, chunkUpstreamKernel<T>, grid, dim3(kThreads), 0, s, wanted, static_cast<T*>(p.upstream));
      });
    g.dy = denseOperand(p.upstream, s, s.p);
  }
  if (status == MM_OK) status = passSegments(c, walked, g, p, true);
  if (status == MM_OK && (p.hasStates || p.hasGradients))
    status = launchMmaStates(c, walked, g, p.task, p.sizes, p.kind, p.segmentSlots, true, p.hasStates ? 0 : 1,
                             p.hasStates && p.hasGradients ? 2 : 1);
  if (p.kind == Decay::Channel)
    return status == MM_OK ? launchChannelGradient(c, s, g, p.task, p.channel, p.sizes, p.chunkSlots * s.heads) : status;

  if (status == MM_OK) status = launchMmaGradient(c, s, g, p.task, p.sizes, p.chunkSlots * s.groups * p.parts);
  if (status == MM_OK && g.dz.given) status = launchMmaOutput(c, s, wanted, p.task, p.sizes, p.kind, p.segmentSlots, true);
  if (status == MM_OK && g.wantsDecay())
    status = launch(c, chunkDecayGradientKernel, dim3(unsigned(warpBlocks(s, p))), dim3(kThreads), 0, s, g, p.task, p.chunkSlots);
  if (status == MM_OK) status = sumHeads(c, s, g);
  if (status == MM_OK) status = sumParts(c, s, g, p.chunkSlots, s.skip.wide ? p.chunkSlots : p.chunkSlots * p.task.slices);
  return status;
}

// Whether pieces of 8 elements start at multiples of 8 in every row.
bool inPieces(const Scan& s, const Operand& o, int heads) {
  return !o.given || ((s.batch == 1 || o.batch % 8 == 0) && (s.length == 1 || o.time % 8 == 0) && (heads == 1 || o.head % 8 == 0));
}

}  // namespace

bool fitsMma(const MMCall* c, const Problem& problem) {
  const Scan& s = problem.scan;
  const Gradient& g = problem.gradient;
  if (s.v.dtype == MM_F32 || deviceOf(c).major < 8) return false;
  if (!s.batch || !s.length || !s.heads || s.n % 8 || s.p % 8 || s.n > 128 || (problem.backward && !g.dy.given)) return false;
  if (!inPieces(s, s.q, s.groups) || !inPieces(s, s.k, s.groups) || !inPieces(s, s.v, s.heads) || !inPieces(s, s.z, s.heads)) return false;
  return inPieces(s, s.gate, s.heads) && inPieces(s, g.dy, s.heads) && chooseSizes(c, problem).nt;
}

bool alignedForMma(const Problem& problem) {
  const Scan& s = problem.scan;
  const Gradient& g = problem.gradient;
  for (const Operand* o : {&s.q, &s.k, &s.v, &s.z, &s.gate, &s.y, &g.dy, &g.dq, &g.dk, &g.dv, &g.dz, &g.dgate})
    if (o->given && !aligned(16, o->data)) return false;
  return true;
}

int32_t solveMma(const MMCall* c, Problem& problem, Scratch& scratch, bool run) {
  problem.roundsUpstream = true;
  if (problem.prologue) {
    const int32_t status = problem.prologue(c, problem, kChunk, scratch, run);
    if (status != MM_OK) return status;
  }
  const Plan p = plan(c, problem, scratch);
  int32_t status = MM_OK;
  if (!problem.backward && problem.kind == Decay::Head && solveHopperForward(c, problem.scan, scratch, run, status)) return status;
  if (!run) return MM_OK;
  return problem.backward ? backward(c, problem.scan, problem.gradient, p) : forward(c, problem.scan, p);
}

}  // namespace mm::cuda::chunk_scan
