// What both implementations of the chunk engine need between their kernels: states passed on from slot to slot, sums of parts.
#include "cuda/chunk_scan.cuh"

namespace mm::cuda::chunk_scan {
namespace {

constexpr int kPassThreads = 128, kAhead = 8;  // slots whose states are under way at once
constexpr int kSumColumns = 32, kSumRows = 16;

struct PassTotals {
  const float* data;
  bool byChannel;
};

// A thread an element of a state: the recurrence over the slots is sequential, its loads are not.
__global__ void __launch_bounds__(kPassThreads)
chunkPassKernel(const __grid_constant__ Scan s, int64_t steps, StateLayout layout, PassTotals totals, const __grid_constant__ Pass forwards,
                const __grid_constant__ Pass backwards) {
  const Pass& pass = blockIdx.y ? backwards : forwards;
  if (!pass.states) return;
  const int size = layout.tiled ? layout.pt * layout.nt : int(s.stateSize());
  const int blocks = (size + kPassThreads - 1) / kPassThreads;
  const int64_t pair = blockIdx.x / blocks, heads = int64_t(s.heads) * layout.slices;
  const int e = int(blockIdx.x % blocks) * kPassThreads + int(threadIdx.x);
  if (e >= size) return;
  const int virtualHead = int(pair % heads), head = virtualHead / layout.slices;
  const Slots slots = slotsOf(s, int(pair / heads), steps);

  // where the element stands in the states of the call
  int n, p;
  if (layout.tiled) n = e % layout.nt, p = virtualHead % layout.slices * layout.pt + e / layout.nt;
  else n = s.byValue ? e % s.n : e / s.p, p = s.byValue ? e / s.n : e % s.p;
  const bool inside = n < s.n && p < s.p;
  const int64_t place = (pair / heads * s.heads + head) * s.stateSize() + (s.byValue ? int64_t(p) * s.n + n : int64_t(n) * s.p + p);

  float state = pass.first && inside ? pass.first[place] : 0.f;
  float* states = pass.states + virtualHead * int64_t(size) + e;
  const float* decays = totals.data + (totals.byChannel ? int64_t(head) * s.n + (n < s.n ? n : 0) : head);
  const int64_t stateStride = heads * size, decayStride = totals.byChannel ? int64_t(s.heads) * s.n : s.heads;
  const int64_t reads = pass.last ? slots.count : slots.count - 1;  // nothing stands behind the last slot
  for (int64_t i0 = 0; i0 < slots.count; i0 += kAhead) {
    float x[kAhead], d[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      const int64_t i = i0 + j, slot = slots.first + (blockIdx.y ? slots.count - 1 - i : i);
      const bool there = i < reads;
      x[j] = there ? states[slot * stateStride] : 0.f, d[j] = there ? decays[slot * decayStride] : 1.f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      const int64_t i = i0 + j, slot = slots.first + (blockIdx.y ? slots.count - 1 - i : i);
      if (i >= slots.count) break;
      states[slot * stateStride] = state;
      state = fmaf(d[j], state, x[j]);
    }
  }
  if (pass.last && inside) pass.last[place] = state;
}

// out (B, L, groups, N) = sum over the parts of a group; blockIdx.y: 0 dq, 1 dk
template <class T>
__global__ void chunkSumHeadsKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g) {
  const Operand& result = blockIdx.y ? g.dk : g.dq;
  if (!result.given) return;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, rows = s.batch * s.length;
  if (i >= rows * s.groups * s.n) return;
  const int64_t n = i % s.n, group = i / s.n % s.groups, row = i / s.n / s.groups;
  const float* parts = (blockIdx.y ? g.dkHeads : g.dqHeads) + (row * s.groups + group) * g.sharers * s.n + n;
  float sum = 0.f;
  for (int h = 0; h < g.sharers; h++) sum += parts[int64_t(h) * s.n];
  result.at<T>(row / s.length, row % s.length, group)[n] = fromFloat<T>(sum);
}

struct PartSums {
  const float* parts[3];
  float* result[3];
  int64_t rows[3], columns[3], blocks[3];
};
// result[column] = sum over the rows, in double as terms may cancel
__global__ void __launch_bounds__(kSumColumns * kSumRows) chunkSumPartsKernel(const __grid_constant__ PartSums sums) {
  double* partial = reinterpret_cast<double*>(chunkScanShared);
  int64_t block = blockIdx.x;
  int which = 0;
  while (which < 2 && block >= sums.blocks[which]) block -= sums.blocks[which++];
  const int x = threadIdx.x % kSumColumns, y = threadIdx.x / kSumColumns;
  const int64_t column = block * kSumColumns + x, columns = sums.columns[which];
  double sum = 0;
  if (column < columns)
    for (int64_t row = y; row < sums.rows[which]; row += kSumRows) sum += double(sums.parts[which][row * columns + column]);
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (y || column >= columns) return;
  for (int i = 1; i < kSumRows; i++) sum += partial[i * kSumColumns + x];
  sums.result[which][column] = float(sum);
}

}  // namespace

int32_t passStates(const MMCall* c, const Scan& s, int64_t steps, const StateLayout& layout, const float* totals, bool byChannel,
                   const Pass& forwards, const Pass& backwards) {
  const int64_t size = layout.tiled ? int64_t(layout.pt) * layout.nt : s.stateSize();
  const int64_t pairs = int64_t(s.sequences) * s.heads * layout.slices;
  const dim3 grid(unsigned(pairs * ceilDiv(size, kPassThreads)), backwards.states ? 2 : 1);
  return launch(c, chunkPassKernel, grid, dim3(kPassThreads), 0, s, steps, layout, PassTotals{totals, byChannel}, forwards, backwards);
}

int32_t sumHeads(const MMCall* c, const Scan& s, const Gradient& g) {
  if (g.sharers == 1 || !(g.dq.given || g.dk.given)) return MM_OK;
  const dim3 grid(unsigned(ceilDiv(int64_t(s.batch) * s.length * s.groups * s.n, 256)), 2);
  return dispatchFloat(g.dq.given ? g.dq.dtype : g.dk.dtype,
                       [&](auto t) { return launch(c, chunkSumHeadsKernel<decltype(t)>, grid, dim3(256), 0, s, g); });
}

int32_t sumParts(const MMCall* c, const Scan& s, const Gradient& g, int64_t rows, int64_t skipRows) {
  PartSums sums = {};
  int64_t blocks = 0;
  const auto add = [&](int i, bool wanted, const float* parts, float* result, int64_t rowCount, int64_t columns) {
    if (!wanted) return;
    sums.parts[i] = parts, sums.result[i] = result, sums.rows[i] = rowCount, sums.columns[i] = columns;
    blocks += sums.blocks[i] = ceilDiv(columns, kSumColumns);
  };
  add(0, g.wantsRate, g.rateParts, g.dRate, rows, s.heads);
  add(1, g.wantsBias, g.biasParts, g.dBias, rows, s.heads);
  add(2, g.wantsSkip, g.skipParts, g.dSkip, skipRows, s.skip.wide ? int64_t(s.heads) * s.p : s.heads);
  constexpr int threads = kSumColumns * kSumRows;
  return launch(c, chunkSumPartsKernel, dim3(unsigned(blocks)), dim3(threads), sizeof(double) * threads, sums);
}

Operand operand(const MMTensorView& v) {
  Operand o;
  o.data = v.data, o.batch = v.stride[0], o.time = v.stride[1], o.head = v.stride[2], o.dtype = v.dtype, o.given = true;
  return o;
}
Operand optionalOperand(const MMCall* c, int slot) { return has(c, slot) ? operand(in(c, slot)) : Operand{}; }
Operand optionalResult(const MMCall* c, int slot) { return hasOut(c, slot) ? operand(out(c, slot)) : Operand{}; }
Parameter parameter(const MMCall* c, int slot) {
  if (!has(c, slot)) return {};
  const MMTensorView& v = in(c, slot);
  return {v.data, v.dtype, true, v.ndim == 2};
}

Scan describe(const MMCall* c, int q, int k, int v, int initial, int cu) {
  const MMTensorView &keys = in(c, k), &values = in(c, v);
  Scan s;
  s.batch = int(values.shape[0]), s.length = values.shape[1], s.heads = int(values.shape[2]), s.p = int(values.shape[3]);
  s.groups = int(keys.shape[2]), s.n = int(keys.shape[3]);
  s.packed = has(c, cu);
  s.sequences = s.packed ? int(in(c, cu).shape[0]) - 1 : s.batch;
  if (s.packed) s.cu = data<int32_t>(in(c, cu));
  s.q = operand(in(c, q)), s.k = operand(keys), s.v = operand(values);
  s.hasInitial = has(c, initial);
  if (s.hasInitial) s.initial = data<float>(in(c, initial));
  return s;
}

}  // namespace mm::cuda::chunk_scan
