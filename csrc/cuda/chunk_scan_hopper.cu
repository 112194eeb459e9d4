#include "cuda/chunk_scan_hopper.cuh"
#include "cuda/common/initcheck.cuh"

namespace mm::cuda::chunk_scan {
namespace {

// A (B, L, heads, width) operand as bulk copies want it.
bool encode(CUtensorMap& map, const Scan& s, const Operand& o, int heads, int width, int rows = kHopperChunk) {
  MMTensorView v = {};
  v.data = o.data, v.dtype = o.dtype, v.ndim = 4;
  v.shape[0] = s.batch, v.shape[1] = s.length, v.shape[2] = heads, v.shape[3] = width;
  v.stride[0] = o.batch, v.stride[1] = o.time, v.stride[2] = o.head, v.stride[3] = 1;
  return encodeHeads(map, v, rows);
}

constexpr int kFlagThreads = 256;
__global__ void chunkClearFlagsKernel(int32_t* flags, int count) {
  for (int i = threadIdx.x; i < count; i += kFlagThreads) flags[i] = 0;
}

// Whether pieces of 8 elements start at multiples of 8 in every row.
bool wholePieces(const Scan& s, const Operand& o) {
  return !o.given || ((s.batch == 1 || o.batch % 8 == 0) && (s.length == 1 || o.time % 8 == 0) && (s.heads == 1 || o.head % 8 == 0));
}

template <class T, int R>
int clustersOf(const MMCall* c) {
  static int counts[64];  // 1 more than the count, by device
  int& count = counts[deviceOf(c).index % 64];
  if (!count) count = 1 + residentClusters(c, chunkScanHopperKernel<T, R>, R, kHopperThreads, HopperTiles<R>::bytes);
  const int most = deviceOf(c).multiprocessors / R;  // what there is scratch for
  return count - 1 < most ? count - 1 : most;
}

// Steps that a cluster takes.
int64_t stepsOf(const Scan& s, int64_t problems, int blocks, int clusters) {
  const int64_t steps = ceilDiv(ceilDiv(s.length, kHopperChunk), blocks);
  return clusters < problems ? ceilDiv(problems * steps, clusters) : steps;
}

struct Handover {
  float* states = nullptr;
  int32_t* flags = nullptr;
};

template <class T, int R>
int32_t run(const MMCall* c, const Scan& s, const HopperMaps& maps, const Handover& handover, int clusters) {
  HopperTask task;
  task.slices = s.p / kHopperValues, task.problems = s.batch * s.heads * task.slices;
  task.clusters = clusters < task.problems ? clusters : task.problems;
  task.steps = int(ceilDiv(ceilDiv(s.length, kHopperChunk), R));
  task.handed = handover.states, task.flags = handover.flags;
  if (task.problems % task.clusters) {
    const int32_t status = launch(c, chunkClearFlagsKernel, dim3(1), dim3(kFlagThreads), 0, handover.flags, task.clusters * R * 2);
    if (status != MM_OK) return status;
  }
  const dim3 grid(unsigned(task.clusters * R));
  return launchClusters(c, chunkScanHopperKernel<T, R>, R, grid, dim3(kHopperThreads), HopperTiles<R>::bytes, s, task, maps);
}

template <class T>
bool solve(const MMCall* c, const Scan& s, const Handover& handover, int32_t& status) {
  static const bool built = builtForHopper(chunkScanHopperKernel<T, 4>);
  HopperMaps maps;
  if (!built || !encode(maps.queries, s, s.q, s.groups, s.n) || !encode(maps.keys, s, s.k, s.groups, s.n) ||
      !encode(maps.values, s, s.v, s.heads, s.p) || !encode(maps.results, s, s.y, s.heads, s.p, 16))
    return false;
  const int four = clustersOf<T, 4>(c), eight = clustersOf<T, 8>(c);
  if (!four) return false;
  const int64_t problems = int64_t(s.batch) * s.heads * (s.p / kHopperValues);
  // Short sequences leave blocks of a cluster idle, which costs more than launches once there are many.
  if (s.length <= 2 * kHopperChunk && problems > four) return false;
  const bool wide = eight && stepsOf(s, problems, 8, eight) < stepsOf(s, problems, 4, four);
  const int64_t rows = int64_t(s.batch) * s.length * s.heads;
  status = zeroForInitcheck(c, s.y.data, rows * s.p * int64_t(sizeof(T)));  // y is dense, whatever the order of its axes
  if (!status) status = wide ? run<T, 8>(c, s, maps, handover, eight) : run<T, 4>(c, s, maps, handover, four);
  return true;
}

}  // namespace

bool solveHopperForward(const MMCall* c, const Scan& s, Scratch& scratch, bool run, int32_t& status) {
  if (deviceOf(c).capability() != 90 || s.packed || s.n != 128 || s.p % kHopperValues) return false;
  if (!wholePieces(s, s.y) || !wholePieces(s, s.z) || int64_t(s.batch) * s.heads * (s.p / kHopperValues) > (1 << 24)) return false;
  const int clusters = deviceOf(c).multiprocessors / 4;  // at most
  Handover handover;
  handover.states = scratch.take<float>(int64_t(clusters) * kHopperValues * 128);
  handover.flags = scratch.take<int32_t>(clusters * 8);
  if (!run) return false;
  return s.v.dtype == MM_BF16 ? solve<bf16>(c, s, handover, status) : solve<f16>(c, s, handover, status);
}

}  // namespace mm::cuda::chunk_scan
