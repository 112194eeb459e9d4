#include "cuda/selective_scan_halves.cuh"

#include "cuda/common/initcheck.cuh"

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

// Map of a (B, D, L) operand for boxes of a block's tile. False where copies cannot serve it.
bool encodeSteps(CUtensorMap& map, const MMTensorView& v, const ScanShape& shape) {
  const int64_t channel = v.stride[1] * 2, batch = v.shape[0] > 1 ? v.stride[0] * 2 : 16;
  if (v.shape[2] > 1 && v.stride[2] != 1) return false;
  if (v.shape[1] > 1 ? channel <= 0 || channel % 16 : false) return false;
  if (batch <= 0 || batch % 16) return false;
  const uint64_t row = v.shape[1] > 1 ? uint64_t(channel) : 16;
  return encodeBoxes(map, v.data, v.dtype == MM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      {uint64_t(v.shape[2]), uint64_t(shape.perGroup), uint64_t(shape.groups), uint64_t(v.shape[0])},
      {row, row * uint64_t(shape.perGroup), uint64_t(batch)}, {kHalvesSteps, kHalvesChannels, 1, 1}, CU_TENSOR_MAP_SWIZZLE_32B);
}
bool encodeMaps(ScanHalvesMaps& maps, const MMCall* c, const ScanShape& shape, const float* borders) {
  const auto optionalOut = [&](CUtensorMap& map, int slot) { return !hasOut(c, slot) || encodeSteps(map, out(c, slot), shape); };
  const uint64_t group = uint64_t(shape.perGroup) * 4, channels = uint64_t(shape.channels) * 4,
      rows = uint64_t(ceilDiv(shape.length, kLanesBorder) * kLanesStates);
  return encodeSteps(maps.u, in(c, U), shape) && encodeSteps(maps.delta, in(c, DELTA), shape) &&
      encodeSteps(maps.dOut, in(c, DOUT), shape) && (!has(c, Z) || encodeSteps(maps.z, in(c, Z), shape)) && optionalOut(maps.dU, DU) &&
      optionalOut(maps.dDelta, DDELTA) && optionalOut(maps.dZ, DZ) &&
      encodeBoxes(maps.borders, borders, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, {group / 4, uint64_t(shape.groups), rows, uint64_t(shape.batch)},
          {group, channels, channels * rows}, {kHalvesChannels, 1, kLanesStates, 1}, CU_TENSOR_MAP_SWIZZLE_NONE);
}

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
  sweep.in.shape.blocks = int32_t(ceilDiv(shape.perGroup, ScanLanesBlock<LANES, ScanWalk::sweep>::kChannels));
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
  ScanHalvesMaps maps = {};
  if (!encodeMaps(maps, c, shape, parts.borders)) return fail(c, "selectiveScanBackward: the driver refused a tensor map");
  for (int slot : {DU, DDELTA, DZ})
    if (hasOut(c, slot) && status == MM_OK) status = zeroForInitcheck(c, out(c, slot));
  if (status == MM_OK)
    status = launch(c, selectiveScanBwdHalvesKernel<T>, scanGrid(shape, shape.chunks), dim3(256), ScanHalvesBlock<T>(nullptr).bytes, v, maps);
  if (status != MM_OK) return status;
  return launchScanSums<T>(c, shape, parts);
}

}  // namespace

int32_t scanInHalves(const MMCall* c) {
  const Device& device = deviceOf(c);
  const auto& u = in(c, U);
  const auto fits = [](const MMTensorView& t) {
    const auto whole = [&](int axis) { return t.shape[axis] <= 1 || (t.stride[axis] > 0 && t.stride[axis] % 8 == 0); };
    return (t.shape[2] <= 1 || t.stride[2] == 1) && whole(1) && whole(0);
  };
  if (device.capability() != 90) return false;
  use(*static_cast<const Stream*>(c->stream));
  static const bool built = builtForHopper(selectiveScanBwdHalvesKernel<bf16>);
  // dU, dDelta and dZ are laid out like u, delta and z.
  return built && device.sharedPerBlock >= ScanHalvesBlock<bf16>(nullptr).bytes && tensorMapEncoder() && scanInLanes(c) &&
      fits(u) && fits(in(c, DELTA)) && (!has(c, Z) || fits(in(c, Z))) && fits(in(c, DOUT)) && numel(u) > 0 && scanShape(c, kLanesStates, false).perGroup % 4 == 0;
}
uint64_t scanHalvesWorkspace(const MMCall* c) {
  return in(c, U).dtype == MM_BF16 ? Plan<bf16>(c, Scratch()).bytes : Plan<f16>(c, Scratch()).bytes;
}
int32_t selectiveScanBackwardHalves(const MMCall* c) { return in(c, U).dtype == MM_BF16 ? backward<bf16>(c) : backward<f16>(c); }

}  // namespace mm::cuda
