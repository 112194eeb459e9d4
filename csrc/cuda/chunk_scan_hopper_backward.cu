// The gradients of the chunk engine on Hopper: the plan of a call, and the small kernels around the big ones.
#include "cuda/chunk_scan_hopper_backward.cuh"

#include <cmath>

#include "cuda/common/strided.cuh"

namespace mm::cuda::chunk_scan {
namespace hopper {
namespace {

constexpr int kThreads = 256, kEach = kSteps / 32;  // steps of a lane
constexpr int kLeastPaced = 32;                       // chunks
constexpr double kLog2e = 1.4426950408889634, kLeastStep = -128;  // exp2 of it is 0; keeps sums of a chunk within what f32 resolves

// ---- scalars of the steps, a warp a (chunk, head); and D

__global__ void __launch_bounds__(kThreads) chunkScalarsKernel(const __grid_constant__ Scan s, float* scalars, float* skip, int64_t slots) {
  const int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (index >= slots * s.heads) return;
  const Place at = locate(s, index / s.heads, kSteps);
  const int lane = threadIdx.x % 32;
  if (skip && index < s.heads)
    for (int64_t p = lane; p < s.p; p += 32)
      skip[index * s.p + p] = element(s.skip.data, s.skip.dtype, s.skip.wide ? index * s.p + p : index);
  const LaneSteps<kEach> steps = scanSteps<kEach>(s, at, int(index % s.heads));
  double last = __shfl_up_sync(kAllLanes, steps.c[kEach - 1], 1), log2[kEach], sum = 0;
  if (lane == 0) last = 0;
#pragma unroll
  for (int e = 0; e < kEach; e++) {
    const double g = (steps.c[e] - last) * kLog2e;
    last = steps.c[e];
    log2[e] = sum += g < kLeastStep ? kLeastStep : g;
  }
  exclusiveUp(sum);
#pragma unroll
  for (int e = 0; e < kEach; e++) log2[e] += sum;
  const double middle = __shfl_sync(kAllLanes, steps.c[kEach - 1], 15);
  float x[kScalars][kEach];
#pragma unroll
  for (int e = 0; e < kEach; e++) {
    x[LOG2][e] = float(log2[e]), x[WEIGHT][e] = steps.w[e];
    x[BEFORE][e] = expf(float(steps.c[e])), x[BEHIND][e] = expf(float(steps.total - steps.c[e]));
    x[MIDDLE][e] = expf(float(lane < 16 ? middle - steps.c[e] : steps.c[e] - middle));
  }
#pragma unroll
  for (int kind = 0; kind < kScalars; kind++)
    storeFloats<kEach>(scalars + index * kScalarFloats + kind * kSteps + lane * kEach, x[kind]);
}

// ---- what the kernels leave in parts

// What a (chunk, head) adds to the gradients of its decays, from the sums over its slices; a warp each. Those of the steps go through
// shared memory: neighbours in a tensor are the heads.
__global__ void __launch_bounds__(kThreads)
chunkDecaySumsKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task, int64_t slots) {
  constexpr int WARPS = kThreads / 32, PITCH = WARPS + 1;
  __shared__ float steps[kSteps * PITCH];
  const int64_t first = int64_t(blockIdx.x) * WARPS, index = first + threadIdx.x / 32;
  if (index < slots * s.heads) {
    const int head = int(index % s.heads), lane = threadIdx.x % 32;
    const Place at = locate(s, index / s.heads, kSteps);
    float crossing[kEach] = {}, carried[kEach] = {}, direct[kEach] = {}, through = 0.f;
    for (int64_t i = index * task.slices; i < (index + 1) * task.slices; i++) {
      const auto add = [&](float(&to)[kEach], int kind) {
        float x[kEach];
        loadFloats<kEach>(task.sums + (i * kGradientKinds + kind) * kSteps + lane * kEach, x);
#pragma unroll
        for (int e = 0; e < kEach; e++) to[e] += x[e];
      };
      add(crossing, CROSSING), add(carried, CARRIED), add(direct, DIRECT);
#pragma unroll
      for (int j = 0; j < kThroughParts; j++) through += task.through[i * kThroughParts + j];
    }
    Gradient staged = g;
    staged.dstep.data = steps + threadIdx.x / 32, staged.dstep.dtype = MM_F32;
    staged.dstep.batch = staged.dstep.head = 0, staged.dstep.time = PITCH;
    Place local = at;
    local.start = 0;
    decayGradient<kEach>(s, staged, local, head, index, scanSteps<kEach>(s, at, head), crossing, carried, direct, through);
  }
  if (!g.dstep.given) return;
  __syncthreads();
  const int64_t mine = first + threadIdx.x % WARPS;
  if (mine >= slots * s.heads) return;
  const Place at = locate(s, mine / s.heads, kSteps);
  const int64_t base = at.batch * g.dstep.batch + at.start * g.dstep.time + mine % s.heads * g.dstep.head;
  for (int t = threadIdx.x / WARPS; t < at.length; t += kThreads / WARPS)
    setElement(g.dstep.data, g.dstep.dtype, base + t * g.dstep.time, steps[t * PITCH + threadIdx.x % WARPS]);
}

// dq and dk of the groups that several blocks share; a block for each block of the gradient kernel that starts such a group and 16 rows
template <class T>
__global__ void __launch_bounds__(kThreads)
chunkSharedGroupsKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  const int64_t first = blockIdx.x * task.perBlock, end = first + task.perBlock, share = task.share(s), group = (end - 1) / share;
  if (end >= task.stages || group * share < first || (group + 1) * share == end) return;
  const int64_t blocks = ((group + 1) * share - 1) / task.perBlock - blockIdx.x, slot = group / s.groups;
  const int batch = int(slot / task.chunks), row = blockIdx.y * 16 + threadIdx.x / 16, col = threadIdx.x % 16 * 8;
  const int64_t t = (slot - int64_t(batch) * task.chunks) * kSteps + row;
  if (t >= s.length) return;
  for (int which = 0; which < 2; which++) {
    const Operand& result = which ? g.dk : g.dq;
    if (!result.given) continue;
    const float* from = task.parts + (int64_t(blockIdx.x) * 4 + 2 + which) * (kSteps * kKeys) + row * kKeys + col;
    float sum[8];
#pragma unroll
    for (int h = 0; h < 8; h += 4) loadFloats<4>(from + h, reinterpret_cast<float(&)[4]>(sum[h]));
    from += 2 * (kSteps * kKeys);  // the following blocks end with it, or are within it
    for (int64_t i = 0; i < blocks; i++, from += 4 * (kSteps * kKeys))
#pragma unroll
      for (int h = 0; h < 8; h += 4) {
        float x[4];
        loadFloats<4>(from + h, x);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[h + j] += x[j];
      }
    storeFloats<8>(result.at<T>(batch, t, group % s.groups) + col, sum);
  }
}

// dO = dy silu(z), and dz = dy y silu'(z) with the outputs y before the gate, where they are given; 8 value channels a thread
template <class T>
__global__ void __launch_bounds__(kThreads)
chunkGateGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const T* outputs, T* upstream) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= s.batch * s.length * s.heads * s.p) return;
  const int64_t p = i % s.p, step = i / s.p, head = step % s.heads, row = step / s.heads, b = row / s.length, t = row % s.length;
  float dy[8], z[8], y[8];
  loadFloats<8>(g.dy.at<const T>(b, t, head) + p, dy);
  loadFloats<8>(s.z.at<const T>(b, t, head) + p, z);
  if (outputs) {
    loadFloats<8>(outputs + i, y);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] *= dy[j] * siluSlope(z[j]);
    storeFloats<8>(g.dz.at<T>(b, t, head) + p, y);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) dy[j] *= silu(z[j]);
  storeFloats<8>(upstream + i, dy);
}

// ---- the plan

struct Plan {
  Task task;
  int64_t slots = 0;
};

int64_t pacedChunks(const Scan& s, const Task& task) { return int64_t(s.batch) * s.groups * 2 * task.chunks; }

Plan plan(const MMCall* c, Problem& problem, Scratch& scratch) {
  const Scan& s = problem.scan;
  Gradient& g = problem.gradient;
  Plan p;
  Task& task = p.task;
  task.chunks = int(ceilDiv(s.length, kSteps)), task.slices = s.p / kValues, task.log2Scale = std::log2(s.scale);
  p.slots = int64_t(s.batch) * task.chunks;
  const int64_t virtualHeads = p.slots * task.virtualHeads(s), share = task.share(s), multiprocessors = deviceOf(c).multiprocessors;
  if (s.step.given) task.scalars = scratch.take<float>(p.slots * s.heads * kScalarFloats);
  if (s.skip.given) task.skip = scratch.take<float>(int64_t(s.heads) * s.p);  // an op with D has steps
  task.states = scratch.take<bf16>(virtualHeads * kStateElements), task.gradients = scratch.take<bf16>(virtualHeads * kStateElements);
  // where all walks run at once, and long enough for them to drift apart
  if (task.walks(s) <= 3 * multiprocessors && task.sharedWalks(s) > 2 && task.chunks >= kLeastPaced)
    task.begun = scratch.take<int32_t>(pacedChunks(s, task));
  if (g.wantsDecay()) {
    task.sums = scratch.take<float>(virtualHeads * kGradientKinds * kSteps);
    task.through = scratch.take<float>(virtualHeads * kThroughParts);
  }
  if (g.wantsRate) g.rateParts = scratch.take<float>(p.slots * s.heads);
  if (g.wantsBias) g.biasParts = scratch.take<float>(p.slots * s.heads);
  if (g.wantsSkip) g.skipParts = scratch.take<float>(p.slots * s.heads * (s.skip.wide ? kSkipParts * s.p : task.slices));
  // even shares for the blocks, of whole groups where that makes them little longer
  task.stages = virtualHeads, task.perBlock = ceilDiv(virtualHeads, multiprocessors);
  const int64_t whole = ceilDiv(task.perBlock, share) * share;
  if (whole * 32 <= task.perBlock * 33) task.perBlock = whole;
  if (task.perBlock % share) task.parts = scratch.take<float>(ceilDiv(virtualHeads, task.perBlock) * 4 * kSteps * kKeys);
  return p;
}

// dO instead of dy, and dz, for which the outputs before the gate are made anew.
int32_t solveGate(const MMCall* c, const Problem& problem, Scratch& scratch, bool run, Operand& upstream) {
  const Scan& s = problem.scan;
  const Gradient& g = problem.gradient;
  const auto dense = [&] {
    Operand o;
    o.data = scratch.take<bf16>(int64_t(s.batch) * s.length * s.heads * s.p), o.dtype = s.v.dtype, o.given = true;
    o.head = s.p, o.time = int64_t(s.heads) * s.p, o.batch = s.length * o.time;
    return o;
  };
  upstream = dense();
  Problem outputs = problem;
  outputs.backward = false, outputs.gradient = {}, outputs.scan.z = {}, outputs.scan.y = {};
  if (g.dz.given) {
    outputs.scan.y = dense();
    const int32_t status = solveMma(c, outputs, scratch, run);
    if (status != MM_OK) return status;
  }
  if (!run) return MM_OK;
  const dim3 grid(unsigned(ceilDiv(int64_t(s.batch) * s.length * s.heads * s.p / 8, kThreads)));
  return dispatchBool(s.v.dtype == MM_BF16, [&](auto isBf16) {
    using T = std::conditional_t<decltype(isBf16)::value, bf16, f16>;
    return launch(c, chunkGateGradientKernel<T>, grid, dim3(kThreads), 0, s, g, static_cast<const T*>(outputs.scan.y.data),
                  static_cast<T*>(upstream.data));
  });
}

MMTensorView viewOf(const Scan& s, const Operand& o, int heads, int width) {
  MMTensorView v = {};
  v.data = o.data, v.ndim = 4, v.dtype = o.dtype;
  v.shape[0] = s.batch, v.shape[1] = s.length, v.shape[2] = heads, v.shape[3] = width;
  v.stride[0] = o.batch, v.stride[1] = o.time, v.stride[2] = o.head, v.stride[3] = 1;
  return v;
}

bool encodeMaps(const Scan& s, const Gradient& g, int steps, Maps& maps) {
  return encodeHeads(maps.q, viewOf(s, s.q, s.groups, s.n), steps) && encodeHeads(maps.k, viewOf(s, s.k, s.groups, s.n), steps) &&
         encodeHeads(maps.v, viewOf(s, s.v, s.heads, s.p), steps) && encodeHeads(maps.dO, viewOf(s, g.dy, s.heads, s.p), steps);
}

int32_t solve(const MMCall* c, const Scan& s, const Gradient& g, const Plan& p, const Maps& halves, const Maps& chunks) {
  const Task& task = p.task;
  const dim3 warps(unsigned(ceilDiv(p.slots * s.heads, kThreads / 32))), threads(kThreads);
  int32_t status = MM_OK;
  if (task.scalars)
    status = launch(c, chunkScalarsKernel, warps, threads, 0, s, const_cast<float*>(task.scalars), const_cast<float*>(task.skip), p.slots);
  if (status == MM_OK && task.begun) status = setBytes(c, task.begun, 0, pacedChunks(s, task) * 4);
  if (status == MM_OK) status = launchStates(c, s, g, task, halves);
  if (status == MM_OK) status = launchGradients(c, s, g, task, chunks);
  if (status == MM_OK && task.parts && (g.dq.given || g.dk.given)) {
    const dim3 grid(unsigned(ceilDiv(task.stages, task.perBlock)), kSteps / 16);
    status = s.v.dtype == MM_BF16 ? launch(c, chunkSharedGroupsKernel<bf16>, grid, threads, 0, s, g, task)
                                  : launch(c, chunkSharedGroupsKernel<f16>, grid, threads, 0, s, g, task);
  }
  if (status == MM_OK && task.sums) status = launch(c, chunkDecaySumsKernel, warps, threads, 0, s, g, task, p.slots);
  if (status == MM_OK) status = sumParts(c, s, g, p.slots, p.slots * (s.skip.wide ? kSkipParts : task.slices));
  return status;
}

}  // namespace
}  // namespace hopper

bool fitsHopperBackward(const MMCall* c, const Problem& problem) {
  const Scan& s = problem.scan;
  if (deviceOf(c).capability() != 90 || problem.kind != Decay::Head || s.packed || s.normalized || !(s.scale > 0)) return false;
  return s.n == hopper::kKeys && s.p % hopper::kValues == 0 && fitsMma(c, problem) && hopper::kernelsBuilt();
}

int32_t solveHopperBackward(const MMCall* c, Problem& problem, Scratch& scratch, bool run) {
  const hopper::Plan p = hopper::plan(c, problem, scratch);
  const Scan& s = problem.scan;
  Gradient g = problem.gradient;
  if (s.z.given) {
    const int32_t status = hopper::solveGate(c, problem, scratch, run, g.dy);
    if (status != MM_OK) return status;
  }
  if (!run) return MM_OK;
  hopper::Maps halves, chunks;
  if (hopper::encodeMaps(s, g, hopper::kSteps / 2, halves) && hopper::encodeMaps(s, g, hopper::kSteps, chunks))
    return hopper::solve(c, s, g, p, halves, chunks);
  Scratch again(c);
  return solveMma(c, problem, again, true);
}

}  // namespace mm::cuda::chunk_scan
