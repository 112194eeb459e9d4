#include "cuda/selective_scan_backward.cuh"

namespace mm::cuda {
namespace {

using namespace ops::selective_scan_bwd;

template <class T>
struct Plan {
  ScanShape shape;
  ScanBlocks blocks;
  int32_t rows, rowB = -1, rowC = -1, rowD;
  float *ends, *back, *sums, *borders, *borderSums, *partialB, *partialC, *partial, *carried;
  uint64_t bytes;

  Plan(const MMCall* c, Scratch s)
      : shape(scanShape(c, int(in(c, A).shape[1]), attrs<Attrs>(c).deltaSoftplus)),
        blocks(deviceOf(c), shape.perGroup, shape.states, 256, [&](int channels, int count) {
          ScanShape v = shape;
          v.count = count;
          const int64_t walk = ScanBackwardShared<T>(nullptr, v, channels, has(c, Z)).bytes,
              sweep = ScanSweepShared<T>(nullptr, v, channels, true, has(c, Z)).bytes;
          return walk > sweep ? walk : sweep;
        }) {
    shape.blocks = int32_t(ceilDiv(shape.perGroup, blocks.channels));
    // The sweep is needed anyway: chunks as soon as there is room for them.
    const int64_t base = shape.batch * shape.groups * shape.blocks, room = int64_t(deviceOf(c).multiprocessors) * blocks.resident;
    cutScan(shape, base && room > base ? room / base : 1);
    rows = shape.states;
    if (!shape.variesB) rowB = rows, rows += shape.states;
    if (!shape.variesC) rowC = rows, rows += shape.states;
    rowD = rows, rows += 2;
    const int64_t perStep = shape.states * shape.channels, borderCount = shape.batch * ceilDiv(shape.length, kScanBorder),
        chunked = shape.chunks > 1 ? shape.batch * shape.chunks : 0;
    const int64_t projection = shape.batch * shape.groups * shape.blocks * shape.states * shape.length;
    ends = s.take<float>(chunked * perStep), back = s.take<float>(chunked * perStep), sums = s.take<float>(chunked * shape.channels);
    borders = s.take<float>(borderCount * perStep), borderSums = s.take<float>(chunked ? borderCount * shape.channels : 0);
    partialB = s.take<float>(shape.variesB && hasOut(c, DB) ? projection : 0);
    partialC = s.take<float>(shape.variesC && hasOut(c, DC) ? projection : 0);
    partial = s.take<float>(shape.batch * shape.chunks * rows * shape.channels);
    carried = s.take<float>(blocks.count < shape.states ? 3 * numel(in(c, U)) : 0);
    bytes = s.bytes();
  }
};

template <class T>
int32_t backward(const MMCall* c) {
  const Plan<T> plan(c, Scratch(c));
  const ScanInputs inputs = scanInputs<T>(c, plan.shape);
  const ScanShape& shape = inputs.shape;
  const int channels = plan.blocks.channels;
  const bool chunked = shape.chunks > 1;
  const auto optional = [&](int slot) { return hasOut(c, slot) ? scanOperand<T>(out(c, slot), shape.perGroup) : ScanOperand{}; };
  const ScanOperand dOut = scanOperand<T>(in(c, DOUT), shape.perGroup);
  const float* dLastState = has(c, DLAST_STATE) ? data<const float>(in(c, DLAST_STATE)) : nullptr;

  ScanSweep sweep = {};
  sweep.in = inputs;
  sweep.dOut = dOut;
  sweep.borders = plan.borders;
  if (chunked) sweep.ends = plan.ends, sweep.sums = plan.sums, sweep.back = plan.back, sweep.borderSums = plan.borderSums;
  int32_t status = forScanPasses(shape, plan.blocks.count, [&](const ScanShape& pass) {
    sweep.in.shape = pass;
    return chunked ? launchScanSweep<T, true>(c, sweep, channels, pass.chunks) : launchScanSweep<T, false>(c, sweep, channels, 1);
  });
  if (status != MM_OK) return status;
  if (chunked)
    if (const int32_t chained = launchScanChain(c, shape, inputs.a, plan.sums, plan.ends, plan.back, dLastState)) return chained;

  ScanBackward v = {};
  v.in = inputs;
  v.dOut = dOut;
  v.dU = optional(DU), v.dDelta = optional(DDELTA), v.dZ = optional(DZ);
  v.dLastState = dLastState;
  if (chunked) v.starts = plan.ends, v.carries = plan.back;
  v.borders = plan.borders, v.borderSums = plan.borderSums;
  v.partialB = shape.variesB && hasOut(c, DB) ? plan.partialB : nullptr;
  v.partialC = shape.variesC && hasOut(c, DC) ? plan.partialC : nullptr;
  v.partial = plan.partial;
  v.carried = plan.carried;
  v.rows = plan.rows, v.rowB = plan.rowB, v.rowC = plan.rowC, v.rowD = plan.rowD;
  status = forScanPasses(shape, plan.blocks.count, [&](const ScanShape& pass) {
    v.in.shape = pass;
    const uint32_t bytes = ScanBackwardShared<T>(nullptr, pass, channels, has(c, Z)).bytes;
    return dispatchBool(shape.variesB && shape.variesC,
        [&](auto varies) { return launch(c, selectiveScanBwdKernel<T, decltype(varies)::value>, scanGrid(pass, pass.chunks),
            dim3(channels), bytes, v); });
  });
  if (status != MM_OK) return status;

  ScanProjectionSums<T> projections = {};
  if (shape.variesB && hasOut(c, DB)) projections.partial[0] = plan.partialB, projections.out[0] = data<T>(out(c, DB));
  if (shape.variesC && hasOut(c, DC)) projections.partial[1] = plan.partialC, projections.out[1] = data<T>(out(c, DC));
  if (projections.out[0] || projections.out[1]) {
    const int64_t inner = shape.states * shape.length, groups = shape.batch * shape.groups;
    status = launch(c, selectiveScanProjectionKernel<T>, dim3(unsigned(ceilDiv(groups * inner, 256)), 2), dim3(256), 0, projections,
        groups, shape.blocks, inner);
    if (status != MM_OK) return status;
  }
  ScanParameterSums parameters = {};
  int k = 0;
  const auto add = [&](int slot, int first, int count) {
    if (hasOut(c, slot)) parameters.out[k] = data<float>(out(c, slot)), parameters.first[k] = first, parameters.count[k] = count, k++;
  };
  add(DA, 0, shape.states);
  if (!shape.variesB) add(DB, plan.rowB, shape.states);
  if (!shape.variesC) add(DC, plan.rowC, shape.states);
  add(DD, plan.rowD, 1);
  add(DDELTA_BIAS, plan.rowD + 1, 1);
  if (!k) return MM_OK;
  return launch(c, selectiveScanParameterKernel, dim3(unsigned(ceilDiv(plan.rows * shape.channels, 32))), dim3(256), 0, parameters,
      plan.partial, shape.batch * shape.chunks, plan.rows, shape.channels);
}

uint64_t workspace(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return Plan<decltype(t)>(c, Scratch()).bytes; });
}
int32_t selectiveScanBackward(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return backward<decltype(t)>(c); });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(selective_scan_backward, {"selectiveScanBackward", "channels", nullptr, workspace, selectiveScanBackward})
