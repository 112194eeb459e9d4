#include "cuda/selective_scan_halves.cuh"

namespace mm::cuda {
namespace {

using namespace ops::selective_scan_bwd;

// A sweep for the states, the main kernel, and the sums of what its blocks found.
template <class T>
struct Plan {
  ScanShape shape;
  ScanBackwardParts parts;
  uint64_t bytes;

  Plan(const MMCall* c, Scratch s) : shape(scanShape(c, kLanesStates, attrs<Attrs>(c).deltaSoftplus)) {
    shape.blocks = int32_t(ceilDiv(shape.perGroup, kHalvesChannels));
    const int64_t base = shape.batch * shape.groups * shape.blocks, room = int64_t(deviceOf(c).multiprocessors) * 2;
    cutScan(shape, base && room > base ? room / base : 1);
    parts = ScanBackwardParts(c, shape, kLanesBorder, s);
    bytes = s.bytes();
  }
};

template <class T>
int32_t backward(const MMCall* c) {
  const Plan<T> plan(c, Scratch(c));
  const ScanInputs inputs = scanInputs<T>(c, plan.shape);
  const ScanShape& shape = inputs.shape;
  const ScanBackwardParts& parts = plan.parts;
  const ScanBackward v = scanBackward<T>(c, inputs, parts);

  ScanLanes sweep = {};
  sweep.in = inputs;
  sweep.dOut = v.dOut;
  sweep.borders = parts.borders;
  constexpr int LANES = 2;
  sweep.in.shape.blocks = int32_t(ceilDiv(shape.perGroup, ScanLanesBlock<T, LANES, ScanWalk::sweep>::kChannels));
  int32_t status;
  if (shape.chunks > 1) {
    sweep.ends = parts.ends, sweep.sums = parts.sums, sweep.back = parts.back, sweep.borderSums = parts.borderSums;
    status = launchScanLanes<T, LANES, ScanWalk::reverse>(c, sweep, shape.chunks);
    if (status != MM_OK) return status;
    status = launchScanChain(c, shape, inputs.a, parts.sums, parts.ends, parts.back, v.dLastState);
  } else {
    status = launchScanLanes<T, LANES, ScanWalk::sweep>(c, sweep, 1);
  }
  if (status != MM_OK) return status;
  status = launch(c, selectiveScanBwdHalvesKernel<T>, scanGrid(shape, shape.chunks), dim3(256), ScanHalvesBlock<T>(nullptr).bytes, v);
  if (status != MM_OK) return status;
  return launchScanSums<T>(c, shape, parts);
}

}  // namespace

int32_t scanInHalves(const MMCall* c) {
  return scanInLanes(c) && deviceOf(c).sharedPerBlock >= ScanHalvesBlock<bf16>(nullptr).bytes;
}
uint64_t scanHalvesWorkspace(const MMCall* c) {
  return in(c, U).dtype == MM_BF16 ? Plan<bf16>(c, Scratch()).bytes : Plan<f16>(c, Scratch()).bytes;
}
int32_t selectiveScanBackwardHalves(const MMCall* c) { return in(c, U).dtype == MM_BF16 ? backward<bf16>(c) : backward<f16>(c); }

}  // namespace mm::cuda
