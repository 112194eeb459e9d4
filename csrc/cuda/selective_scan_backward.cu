#include "cuda/selective_scan_backward.cuh"

namespace mm::cuda {
namespace {

using namespace ops::selective_scan_bwd;

template <class T>
struct Plan {
  ScanShape shape;
  ScanBlocks blocks;
  ScanBackwardParts parts;
  float* carried;
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
    parts = ScanBackwardParts(c, shape, kScanBorder, s);
    carried = s.take<float>(blocks.count < shape.states ? 3 * numel(in(c, U)) : 0);
    bytes = s.bytes();
  }
};

template <class T>
int32_t backward(const MMCall* c) {
  const Plan<T> plan(c, Scratch(c));
  const ScanInputs inputs = scanInputs<T>(c, plan.shape);
  const ScanShape& shape = inputs.shape;
  const ScanBackwardParts& parts = plan.parts;
  const int channels = plan.blocks.channels;
  const bool chunked = shape.chunks > 1;
  ScanBackward v = scanBackward<T>(c, inputs, parts);
  v.carried = plan.carried;

  ScanSweep sweep = {};
  sweep.in = inputs;
  sweep.dOut = v.dOut;
  sweep.borders = parts.borders;
  if (chunked) sweep.ends = parts.ends, sweep.sums = parts.sums, sweep.back = parts.back, sweep.borderSums = parts.borderSums;
  int32_t status = forScanPasses(shape, plan.blocks.count, [&](const ScanShape& pass) {
    sweep.in.shape = pass;
    return chunked ? launchScanSweep<T, true>(c, sweep, channels, pass.chunks) : launchScanSweep<T, false>(c, sweep, channels, 1);
  });
  if (status != MM_OK) return status;
  if (chunked)
    if (const int32_t chained = launchScanChain(c, shape, inputs.a, parts.sums, parts.ends, parts.back, v.dLastState)) return chained;

  status = forScanPasses(shape, plan.blocks.count, [&](const ScanShape& pass) {
    v.in.shape = pass;
    const uint32_t bytes = ScanBackwardShared<T>(nullptr, pass, channels, has(c, Z)).bytes;
    return dispatchBool(shape.variesB && shape.variesC,
        [&](auto varies) { return launch(c, selectiveScanBwdKernel<T, decltype(varies)::value>, scanGrid(pass, pass.chunks),
            dim3(channels), bytes, v); });
  });
  if (status != MM_OK) return status;
  return launchScanSums<T>(c, shape, parts);
}

uint64_t workspace(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return Plan<decltype(t)>(c, Scratch()).bytes; });
}
int32_t selectiveScanBackward(const MMCall* c) {
  return dispatchFloat(in(c, U).dtype, [&](auto t) { return backward<decltype(t)>(c); });
}

// Copies in bulk need addresses that are multiples of 16, known only now.
uint64_t eitherWorkspace(const MMCall* c) {
  const uint64_t halves = scanHalvesWorkspace(c), channels = workspace(c);
  return halves > channels ? halves : channels;
}
int32_t halvesOrChannels(const MMCall* c) {
  for (const int slot : {U, DELTA, B, C, Z, DOUT})
    if (has(c, slot) && !aligned(16, data<char>(in(c, slot)))) return selectiveScanBackward(c);
  for (const int slot : {DU, DDELTA, DZ})
    if (hasOut(c, slot) && !aligned(16, data<char>(out(c, slot)))) return selectiveScanBackward(c);
  return selectiveScanBackwardHalves(c);
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(selective_scan_backward,
    {"selectiveScanBackward", "halves", scanInHalves, eitherWorkspace, halvesOrChannels},
    {"selectiveScanBackward", "channels", nullptr, workspace, selectiveScanBackward})
