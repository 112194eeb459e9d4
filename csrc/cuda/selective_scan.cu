#include "cuda/selective_scan_lanes.cuh"

namespace mm::cuda {
namespace {

using namespace ops::selective_scan;

template <class T>
struct Plan {
  ScanShape shape;
  ScanBlocks blocks;
  float *ends, *sums, *carried;
  uint64_t bytes;

  Plan(const MMCall* c, Scratch s)
      : shape(scanShape(c, int(in(c, A).shape[1]), attrs<Attrs>(c).deltaSoftplus)),
        blocks(deviceOf(c), shape.perGroup, shape.states, 384, [&](int channels, int count) {
          ScanShape v = shape;
          v.count = count;
          return int64_t(ScanForwardShared<T>(nullptr, v, channels, has(c, Z)).bytes);
        }) {
    shape.blocks = int32_t(ceilDiv(shape.perGroup, blocks.channels));
    const int64_t base = shape.batch * shape.groups * shape.blocks, processors = deviceOf(c).multiprocessors;
    // Chunks cost a second walk: only where one walk leaves a good part of the device without a warp a scheduler.
    const bool alone = base * blocks.channels * 4 >= processors * 128 * 3;
    cutScan(shape, alone || !base ? 1 : processors * blocks.resident / base);
    const bool chunked = shape.chunks > 1;
    ends = s.take<float>(chunked ? shape.batch * shape.chunks * shape.states * shape.channels : 0);
    sums = s.take<float>(chunked ? shape.batch * shape.chunks * shape.channels : 0);
    carried = s.take<float>(blocks.count < shape.states ? numel(in(c, U)) : 0);
    bytes = s.bytes();
  }
};

template <class T>
int32_t forward(const MMCall* c) {
  const Plan<T> plan(c, Scratch(c));
  const ScanInputs inputs = scanInputs<T>(c, plan.shape);
  if (plan.shape.chunks > 1) {
    ScanSweep sweep = {};
    sweep.in = inputs;
    sweep.ends = plan.ends, sweep.sums = plan.sums;
    const int32_t status = forScanPasses(inputs.shape, plan.blocks.count, [&](const ScanShape& shape) {
      sweep.in.shape = shape;
      return launchScanSweep<T, false>(c, sweep, plan.blocks.channels, shape.chunks - 1);
    });
    if (status != MM_OK) return status;
    if (const int32_t chained = launchScanChain(c, inputs.shape, inputs.a, plan.sums, plan.ends, nullptr, nullptr)) return chained;
  }
  ScanForward v = {};
  v.in = inputs;
  v.out = scanOperand<T>(out(c, OUT), plan.shape.perGroup);
  v.lastState = data<float>(out(c, LAST_STATE));
  v.starts = plan.shape.chunks > 1 ? plan.ends : nullptr;
  v.carried = plan.carried;
  return forScanPasses(inputs.shape, plan.blocks.count, [&](const ScanShape& shape) {
    v.in.shape = shape;
    const uint32_t bytes = ScanForwardShared<T>(nullptr, shape, plan.blocks.channels, has(c, Z)).bytes;
    return dispatchBool(shape.variesB && shape.variesC, [&](auto varies) {
      return launch(c, selectiveScanFwdKernel<T, decltype(varies)::value>, scanGrid(shape, shape.chunks), dim3(plan.blocks.channels),
          bytes, v);
    });
  });
}

uint64_t workspace(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return Plan<decltype(t)>(c, Scratch()).bytes; });
}
int32_t selectiveScan(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return forward<decltype(t)>(c); });
}

template <class T, int LANES>
int32_t forwardInLanes(const MMCall* c) {
  ScanShape shape = scanShape(c, kLanesStates, attrs<Attrs>(c).deltaSoftplus);
  shape.blocks = int32_t(ceilDiv(shape.perGroup, ScanLanesBlock<LANES, ScanWalk::forward>::kChannels));
  cutScan(shape, 1);
  ScanLanes v = {};
  v.in = scanInputs<T>(c, shape);
  v.out = scanOperand<T>(out(c, OUT), shape.perGroup);
  v.lastState = data<float>(out(c, LAST_STATE));
  bool whole = v.in.shape.wholeRows;
  for (const ScanOperand* o : {&v.in.u, &v.in.delta, &v.in.z, &v.out}) whole = whole && (!o->data || o->access == ScanAccess::steps);
  if (!whole) return forward<T>(c);  // an address that is no multiple of 16
  return launchScanLanes<T, LANES, ScanWalk::forward>(c, v, 1);
}
// Warps of a multiprocessor if a channel takes one lane.
double scanWarps(const MMCall* c) {
  return double(in(c, U).shape[0]) * double(in(c, U).shape[1]) / 32 / deviceOf(c).multiprocessors;
}
// With fewer than three warps a multiprocessor, cutting the length is faster, but for short ones.
int32_t fillsLanes(const MMCall* c) {
  const double warps = scanWarps(c) * 8;
  return scanInLanes(c) && (warps >= 3 || (warps >= 1.5 && in(c, U).shape[2] <= 2048));
}
int32_t selectiveScanLanes(const MMCall* c) {
  const double warps = scanWarps(c);
  const auto run = [&](auto t) {
    using T = decltype(t);
    return warps * 2 >= 12 ? forwardInLanes<T, 2>(c) : warps * 4 >= 12 ? forwardInLanes<T, 4>(c) : forwardInLanes<T, 8>(c);
  };
  return in(c, U).dtype == MM_BF16 ? run(bf16{}) : run(f16{});
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(selective_scan, {"selectiveScan", "lanes", fillsLanes, workspace, selectiveScanLanes},
    {"selectiveScan", "channels", nullptr, workspace, selectiveScan})
