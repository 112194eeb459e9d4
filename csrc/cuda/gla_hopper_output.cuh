// The outputs of gla on Hopper: a block walks over a segment with its state in registers. All but the triangle is transposed, so that the
// state, rounded, is an operand as it stands: y^T = S'^T q'^T + v^T A^T.
#pragma once
#include "cuda/gla_hopper.cuh"

namespace mm::cuda::gla {

struct OutputMaps {
  CUtensorMap q, k, v;
};

struct OutputLayout {
  static constexpr int stages = 3, k = Rows::bytes, v = 2 * Rows::bytes, stage = 3 * Rows::bytes;
  static constexpr int att = stages * stage, out = att + Square::bytes;
  static constexpr int spare = out + Rows::bytes;  // c, where it is beyond the split
  static constexpr int parts = spare + kSteps * kWidth * 4, decay = parts + 8 * kWidth * 4, barriers = decay + kWidth * 4;
  static constexpr int shared = barriers + stages * 8 + 1024;  // and what aligning the first tile takes
};
static_assert(OutputLayout::shared <= 227 * 1024);

template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    glaOutputKernel(const __grid_constant__ Scan s, const __grid_constant__ Walk walk, const __grid_constant__ OutputMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = OutputLayout;
  const Segment at(s, walk);
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(shared + offset); };
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), lane = threadIdx.x % 32;
  const auto loadRows = [&](int i) {
    const uint32_t bar = full + i % Layout::stages * 8, to = base + i % Layout::stages * Layout::stage;
    const int row = (at.first + i) * kSteps;
    arriveExpecting(bar, Layout::stage);
    copyTile<Rows>(to, maps.q, bar, row, at.head, at.batch);
    copyTile<Rows>(to + Layout::k, maps.k, bar, row, at.head, at.batch);
    copyTile<Rows>(to + Layout::v, maps.v, bar, row, at.head, at.batch);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::stages; i++) initBarrier(full + 8 * i, 1);
    fenceBarriers();
    for (int i = 0; i < Layout::stages && i < at.count; i++) loadRows(i);
  }
  __syncthreads();
  const auto load = [&](RawGates<G>& raw, int i) { loadGates(raw, s, at.batch, int64_t(at.first + i) * kSteps, at.head); };
  RawGates<G> raw;
  load(raw, 0);

  StateTile state;
  readFirst<false>(state, s, walk, at, s.initial);

#pragma unroll 1
  for (int i = 0; i < at.count; i++) {
    const int64_t start = int64_t(at.first + i) * kSteps;
    char* const q = shared + i % Layout::stages * Layout::stage;
    char *const k = q + Layout::k, *const square = shared + Layout::att, *const out = shared + Layout::out;
    float* const decay = floats(Layout::decay);
    Own c;
    float before[kOwnChannels], total[kOwnChannels];
    accumulate(c, before, total, raw, floats(Layout::parts));
    const bool beyond = beyondSplit(total);
    if (i + 1 < at.count) load(raw, i + 1);
    waitBarrier(full + i % Layout::stages * 8, i / Layout::stages & 1);
    if (beyond) {
      float* spare = floats(Layout::spare);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++)
        *reinterpret_cast<float4*>(spare + (ownStep() + r) * kWidth + ownChannel()) = {c[r][0], c[r][1], c[r][2], c[r][3]};
      __syncthreads();
      sumScores(square, spare, q, k, s.scale);
      __syncthreads();
    }
    scaleOwn(k, [&](int r, int j) { return exp2Approximate(total[j] - c[r][j]); });
    scaleOwn(q, [&](int r, int j) { return exp2Approximate(beyond ? c[r][j] : c[r][j] - total[j]) * s.scale; });
    if (threadIdx.x < 32)
      *reinterpret_cast<float4*>(decay + ownChannel()) = {exp2Approximate(total[0]), exp2Approximate(total[1]), exp2Approximate(total[2]), exp2Approximate(total[3])};
    fenceAsyncProxy();
    __syncthreads();

    const uint32_t stage = base + i % Layout::stages * Layout::stage;
    const uint64_t qD = tileDescriptor(stage), kD = tileDescriptor(stage + Layout::k), attD = tileDescriptor(base + Layout::att);
    const uint64_t vD = tileDescriptor(stage + Layout::v + group * Rows::slabBytes);
    float scores[16], y[32];  // a warpgroup makes half the columns of the triangle
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kWidth / 16; n++)
      multiply<bf16, false, false>(scores, shifted(qD, Rows::channels(n)), shifted(kD, Rows::rowOffset(32 * group) + Rows::channels(n)),
                                   n > 0);
    commitProducts();
    uint32_t rounded[kWidth / 16][4];
#pragma unroll
    for (int n = 0; n < kWidth / 16; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float(&x)[4] = state[2 * n + h];
        float2 by = {1.f, 1.f};
        if (!beyond) by = *reinterpret_cast<const float2*>(decay + 16 * n + 8 * h + lane % 4 * 2);
        rounded[n][2 * h] = pack2<bf16>(x[0] * by.x, x[1] * by.y), rounded[n][2 * h + 1] = pack2<bf16>(x[2] * by.x, x[3] * by.y);
      }
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kWidth / 16; n++) multiply<bf16, false>(y, rounded[n], shifted(qD, Rows::channels(n)), n > 0);
    commitProducts();
    waitProducts<1>();
    settle(scores);
    if (!beyond) storeTriangle(square, scores, 32 * group);
    decayState(state, decay);
    fenceAsyncProxy();
    __syncthreads();  // the triangle is there
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kSteps / 16; n++)
      multiply<bf16, true, false>(y, shifted(vD, Rows::rowOffset(16 * n)), shifted(attD, Square::channels(n)), true);
    commitProducts();
    issueAdvance(state, stage + Layout::v, stage + Layout::k);
    waitProducts<1>();
    settle(y);
    const int p = stateRow() + lane / 4;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t place = Rows::offset(8 * j + lane % 4 * 2 + e % 2, p / 8 + e / 2) + p % 8 * 2;
        *reinterpret_cast<bf16*>(out + place) = fromFloat<bf16>(y[4 * j + e]);
      }
    waitProducts<0>();
    settle(asProduct(state));
    __syncthreads();  // the outputs are there, the tiles are read
    if (threadIdx.x == 0 && i + Layout::stages < at.count) loadRows(i + Layout::stages);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = j * 16 + threadIdx.x / 16, piece = threadIdx.x % 16;
      if (start + row < s.length && piece * 8 < s.p)
        *reinterpret_cast<uint4*>(s.y.at<bf16>(at.batch, start + row, at.head) + piece * 8) =
            *reinterpret_cast<const uint4*>(out + Rows::offset(row, piece));
    }
  }
  if (at.number + 1 < walk.segments) return;
  const int64_t pair = int64_t(at.batch) * s.heads + at.head;
  chunk_scan::writeState<kWidth>(state, s, s.final + pair * s.stateSize(), stateRow(), s.p);
#else
  __trap();
#endif
}

}  // namespace mm::cuda::gla
