// attention, backward, for Hopper: the passes of attention_backward.cuh with warpgroup products (wgmma), which alone reach the
// rate of the chip, and bulk tensor copies. With P = exp2(scaleLog2 q k^T - lse2) and dS = P (dO v^T - delta):
//
//   dV = P^T dO, dK = scale dS^T q   by tiles of 128 keys, past which the queries of all heads of the group run
//   dQ = scale dS k                  by tiles of 128 queries, past which the keys run
//
// A block is two consumer warpgroups and one producer warp. The resident operands (k and v; q and dO) stay in shared memory, the
// others stream through a ring of stages, each with a barrier that says it is full and one that says it is free.
//
// Keys: a warpgroup owns 64 keys and computes S^T = k q^T and dP^T = v dO^T, 64 keys x 64 queries, straight in the layout of the a
// operand of the second products: P^T and dS^T are packed in registers, and dO and q, k-major in the first products, are read
// mn-major in the second ones from the same tiles. Registers: 128 of dK and dV, 64 of S^T and dP^T, 32 packed.
// Queries: a warpgroup owns 64 queries, S = q k^T and dP = dO v^T; dS is packed in registers and k read mn-major.
//
// Within a warpgroup the products of the next step are issued before the exponentials of this one need the registers, and the two
// warpgroups fill each other's gaps. Nothing is summed across blocks: the same bits every time.
//
// Tried on an H100, TFLOP/s at L = 32768 / 8192, H = 16, Hk = 8, D = 128, causal. dQ: 128 keys a step 725 / 672, 64 keys 719 / 678,
// 64 keys with q and dO in registers 653 / 667. dK and dV: 2, 3 and 4 stages 662, 661, 654 / 605, 683, 607. D = 64, dQ: 128 keys 558
// at 8192, 64 keys 547.
#pragma once
#include "cuda/attention_hopper.cuh"

namespace mm::cuda {

// The operands as maps for bulk copies: boxes of `rows` rows of one head.
struct BackwardMaps {
  CUtensorMap q, k, v, dO;
};

constexpr int kGradientConsumers = 2, kGradientThreads = 128 * (kGradientConsumers + 1);
constexpr int kGradientRegisters = 240;  // of a consumer
constexpr int kGradientProducerRegisters = producerRegisters<kGradientConsumers, 1, kGradientRegisters>();

// Shared memory: resident tiles, stages, numbers of the rows of stages, barriers (full and free of each stage, resident).
template <int D, int RESIDENT, int STREAMED, int STAGES, bool STATS>
struct GradientLayout {
  using Resident = SlabTile<RESIDENT, D>;
  using Streamed = SlabTile<STREAMED, D>;
  static constexpr int stages = STAGES, stageBytes = 2 * Streamed::bytes, statBytes = STATS ? STREAMED * 8 : 0;
  static constexpr int stage = 2 * Resident::bytes, stats = stage + STAGES * stageBytes, barriers = stats + STAGES * statBytes;
  static constexpr int shared = barriers + (2 * STAGES + 1) * 8 + 1024;  // and what aligning the first tile takes
};
template <int D, int STAGES>
using KeyGradientLayout = GradientLayout<D, 128, 64, STAGES, true>;
template <int D, int KEYS, int STAGES>
using QueryGradientLayout = GradientLayout<D, 128, KEYS, STAGES, false>;

template <class T, int D, int STAGES>
__global__ void __launch_bounds__(kGradientThreads, 1)
    attentionKeyGradientWgmmaKernel(AttentionProblem p, BlockOrder order, BackwardOperands<T> x,
                                    const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = KeyGradientLayout<D, STAGES>;
  using Keys = typename Layout::Resident;
  using Queries = typename Layout::Streamed;
  constexpr int QUERIES = Queries::rows;
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers, empty = full + 8 * STAGES, resident = empty + 8 * STAGES;
  AttentionSequence s;
  int kvHead, first;  // early keys first: most queries see them under a causal mask
  if (!orderedTile<Keys::rows, true>(p, order, int(blockIdx.x), s, kvHead, first)) return;
  const Span queries = p.queriesOf(s, first, min(first + Keys::rows, s.keys));
  // Steps run over the heads of the group and, within a head, over blocks of queries.
  const int blocks = queries.end > queries.begin ? (queries.end - queries.begin + QUERIES - 1) / QUERIES : 0, steps = blocks * p.group;

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) initBarrier(full + 8 * i, 33), initBarrier(empty + 8 * i, 4 * kGradientConsumers);
    initBarrier(resident, 1);
    fenceBarriers();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (group == kGradientConsumers) {
    lowerRegisters<kGradientProducerRegisters>();
    if (warp != 0) return;
    if (lane == 0) {
      arriveExpecting(resident, 2 * Keys::bytes);
      copyTile<Keys>(base, maps.k, resident, s.firstKey + first, kvHead, s.batch);
      copyTile<Keys>(base + Keys::bytes, maps.v, resident, s.firstKey + first, kvHead, s.batch);
    }
    Ring<STAGES> ring;
    int head = kvHead * p.group, query = queries.begin;
    for (int step = 0; step < steps; step++) {
      ring.advance();
      if (step >= STAGES) waitBarrier(empty + 8 * ring.stage, ring.parity ^ 1);
      const uint32_t stage = base + Layout::stage + ring.stage * Layout::stageBytes, bar = full + 8 * ring.stage;
      if (lane == 0) {
        arriveExpecting(bar, Layout::stageBytes);
        copyTile<Queries>(stage, maps.q, bar, s.firstQuery + query, head, s.batch);
        copyTile<Queries>(stage + Queries::bytes, maps.dO, bar, s.firstQuery + query, head, s.batch);
      }
      // lse2 and delta side by side; zeros behind the last query, where q and dO are zero.
      const int64_t at = (int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + query;
      const uint32_t stat = base + Layout::stats + ring.stage * Layout::statBytes;
#pragma unroll
      for (int i = lane; i < QUERIES; i += 32) {
        const bool valid = query + i < s.queries;
        copyAsync4(stat + i * 8, x.lse2 + (valid ? at + i : 0), valid);
        copyAsync4(stat + i * 8 + 4, x.delta + (valid ? at + i : 0), valid);
      }
      arriveBehindCopies(bar);
      query += QUERIES;
      if (query >= queries.end) query = queries.begin, head++;
    }
    waitAsync<0>();
    return;
  }

  raiseRegisters<kGradientRegisters>();
  const int key = first + group * 64, keys = min(64, s.keys - key), offset = s.keys - s.queries;
  const Span mine = stepsOf(keys > 0 ? p.queriesOf(s, key, key + keys) : Span{0, 0}, queries, QUERIES);
  const uint64_t kA = tileDescriptor(base + Keys::rowOffset(group * 64)), vA = shifted(kA, Keys::bytes);
  const uint64_t stageB = tileDescriptor(base + Layout::stage, Queries::slabBytes);
  float dK[D / 2], dV[D / 2], w[QUERIES / 2], dP[QUERIES / 2];
  uint32_t weights[QUERIES / 16][4], slopes[QUERIES / 16][4];
#pragma unroll
  for (int i = 0; i < D / 2; i++) dK[i] = 0.f, dV[i] = 0.f;

  Ring<STAGES> ring;
  const auto next = [&](int query) {  // waits for a step's stage
    ring.advance();
    waitBarrier(full + 8 * ring.stage, ring.parity);
    if (p.packed() && s.queries - query < QUERIES)
      clearRows<Queries, 2>(shared + Layout::stage + ring.stage * Layout::stageBytes, s.queries - query, threadIdx.x % 128, 1 + group);
  };
  const auto release = [&](int stage) {
    if (lane == 0) arrive(empty + 8 * stage);
  };
  const auto issueScores = [&](float (&acc)[QUERIES / 2], uint64_t a, uint64_t b) {  // a b^T over the channels
#pragma unroll
    for (int k = 0; k < D / 16; k++)
      multiply<T, false, false>(acc, shifted(a, Keys::channels(k)), shifted(b, Queries::channels(k)), k > 0);
    commitProducts();
  };
  const auto issueSums = [&](float (&acc)[D / 2], const uint32_t (&a)[QUERIES / 16][4], uint64_t b) {  // over the queries
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) multiply<T, true>(acc, a[k], shifted(b, Queries::rowOffset(16 * k)), true);
    commitProducts();
  };
  int query = queries.begin;
  const auto nextQuery = [&] {
    query += QUERIES;
    if (query >= queries.end) query = queries.begin;
  };
  // A step, with S^T and dP^T under way; leaves dV and dK under way.
  const auto compute = [&] {
    const int stage = ring.stage;
    const uint64_t qB = shifted(stageB, stage * Layout::stageBytes), dOB = shifted(qB, Queries::bytes);
    const float4* stat = reinterpret_cast<const float4*>(shared + Layout::stats + stage * Layout::statBytes) + lane % 4;
    waitProducts<1>();
    settle(w);
    const int low = query + offset, high = low + QUERIES - 1;  // key positions of the queries
    if ((p.right >= 0 && key + 63 > low + p.right) || (p.left >= 0 && key < high - p.left)) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int j = key + warp * 16 + h * 8 + lane / 4 - low - lane % 4 * 2;
        const int from = p.right < 0 ? -QUERIES : j - p.right, to = p.left < 0 ? QUERIES : j + p.left;
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            if (n * 8 + e < from || n * 8 + e > to) w[4 * n + 2 * h + e] = -INFINITY;
      }
    }
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
      const float4 x2 = stat[n * 4];  // lse2 and delta of two queries
#pragma unroll
      for (int h = 0; h < 2; h++) {
        w[4 * n + 2 * h] = exp2Approximate(fmaf(w[4 * n + 2 * h], p.scaleLog2, -x2.x));
        w[4 * n + 2 * h + 1] = exp2Approximate(fmaf(w[4 * n + 2 * h + 1], p.scaleLog2, -x2.z));
      }
    }
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) packStep<T>(weights[k], w, k);
    fenceProducts();
    issueSums(dV, weights, dOB);
    waitProducts<1>();
    settle(dP);
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
      const float4 x2 = stat[n * 4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        dP[4 * n + 2 * h] = w[4 * n + 2 * h] * (dP[4 * n + 2 * h] - x2.y);
        dP[4 * n + 2 * h + 1] = w[4 * n + 2 * h + 1] * (dP[4 * n + 2 * h + 1] - x2.w);
      }
    }
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) packStep<T>(slopes[k], dP, k);
    fenceProducts();
    issueSums(dK, slopes, qB);
  };

  waitBarrier(resident, 0);
  int step = 0;
  const auto skip = [&] {
    next(query);
    release(ring.stage);
    nextQuery();
    step++;
  };
  // Steps before the first and behind the last one in which the warpgroup's keys are seen; those between two heads are computed.
  const int end = mine.end ? steps - (blocks - mine.end) : 0;
  while (step < (mine.end ? mine.begin : steps)) skip();
  if (step < end) {
    next(query);
    const uint64_t b = shifted(stageB, ring.stage * Layout::stageBytes);
    fenceProducts();
    issueScores(w, kA, b);
    issueScores(dP, vA, shifted(b, Queries::bytes));
#pragma unroll 1
    for (;;) {
      compute();
      const int stage = ring.stage;
      if (++step == end) break;
      nextQuery();
      next(query);
      const uint64_t b = shifted(stageB, ring.stage * Layout::stageBytes);
      fenceProducts();
      issueScores(w, kA, b);
      waitProducts<1>();  // dS^T stands in the registers of the next dP^T
      release(stage);
      fenceProducts();
      issueScores(dP, vA, shifted(b, Queries::bytes));
    }
    waitProducts<0>();
    release(ring.stage);
    nextQuery();
  }
  while (step < steps) skip();

  settle(dK);
  settle(dV);
  syncWarpgroup(1 + group);  // the warpgroup's rows of k and v now bring the gradients into whole rows
  const int row = group * 64 + warp * 16, rows = min(16, keys - warp * 16);
  const int64_t l = s.firstKey + key + warp * 16;
  if (x.dK.data) storeTile<T, Keys>(shared, row, dK, p.scale, p.scale, x.dK.at(s.batch, l, kvHead), x.dK.row, rows, p.dim, lane);
  if (x.dV.data) storeTile<T, Keys>(shared + Keys::bytes, row, dV, 1.f, 1.f, x.dV.at(s.batch, l, kvHead), x.dV.row, rows, p.dim, lane);
#else
  __trap();
#endif
}

template <class T, int D, int KEYS, int STAGES>
__global__ void __launch_bounds__(kGradientThreads, 1)
    attentionQueryGradientWgmmaKernel(AttentionProblem p, BlockOrder order, BackwardOperands<T> x,
                                      const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = QueryGradientLayout<D, KEYS, STAGES>;
  using Queries = typename Layout::Resident;
  using Keys = typename Layout::Streamed;
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers, empty = full + 8 * STAGES, resident = empty + 8 * STAGES;
  AttentionSequence s;
  int head, first;
  if (!orderedTile<Queries::rows, false>(p, order, int(blockIdx.x), s, head, first)) return;
  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, min(first + Queries::rows, s.queries) - 1).end};
  const int steps = keys.end > keys.begin ? (keys.end - keys.begin + KEYS - 1) / KEYS : 0;

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) initBarrier(full + 8 * i, 1), initBarrier(empty + 8 * i, 4 * kGradientConsumers);
    initBarrier(resident, 1);
    fenceBarriers();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (group == kGradientConsumers) {
    lowerRegisters<kGradientProducerRegisters>();
    if (warp != 0 || lane != 0) return;
    arriveExpecting(resident, 2 * Queries::bytes);
    copyTile<Queries>(base, maps.q, resident, s.firstQuery + first, head, s.batch);
    copyTile<Queries>(base + Queries::bytes, maps.dO, resident, s.firstQuery + first, head, s.batch);
    Ring<STAGES> ring;
    for (int step = 0; step < steps; step++) {
      ring.advance();
      if (step >= STAGES) waitBarrier(empty + 8 * ring.stage, ring.parity ^ 1);
      const uint32_t stage = base + Layout::stage + ring.stage * Layout::stageBytes, bar = full + 8 * ring.stage;
      arriveExpecting(bar, Layout::stageBytes);
      copyTile<Keys>(stage, maps.k, bar, s.firstKey + keys.begin + step * KEYS, head / p.group, s.batch);
      copyTile<Keys>(stage + Keys::bytes, maps.v, bar, s.firstKey + keys.begin + step * KEYS, head / p.group, s.batch);
    }
    return;
  }

  raiseRegisters<kGradientRegisters>();
  const int query = first + group * 64, queries = min(64, s.queries - query);
  const Span early = p.keysOf(s, query), late = p.keysOf(s, query + queries - 1);  // of the first and of the last query
  const Span mine = stepsOf(queries > 0 ? Span{early.begin, late.end} : Span{0, 0}, keys, KEYS);
  const uint64_t qA = tileDescriptor(base + Queries::rowOffset(group * 64)), dOA = shifted(qA, Queries::bytes);
  const uint64_t stageB = tileDescriptor(base + Layout::stage, Keys::slabBytes);
  float dQ[D / 2], w[KEYS / 2], dP[KEYS / 2], lse2[2], delta[2];
  uint32_t slopes[KEYS / 16][4];
#pragma unroll
  for (int i = 0; i < D / 2; i++) dQ[i] = 0.f;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int i = warp * 16 + h * 8 + lane / 4;
    const int64_t at = (int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + query + i;
    lse2[h] = i < queries ? x.lse2[at] : INFINITY;
    delta[h] = i < queries ? x.delta[at] : 0.f;
  }

  Ring<STAGES> ring;
  const auto next = [&](int step) {
    ring.advance();
    waitBarrier(full + 8 * ring.stage, ring.parity);
    const int rows = s.keys - keys.begin - step * KEYS;
    if (p.packed() && rows < KEYS)
      clearRows<Keys, 2>(shared + Layout::stage + ring.stage * Layout::stageBytes, rows, threadIdx.x % 128, 1 + group);
  };
  const auto release = [&](int stage) {
    if (lane == 0) arrive(empty + 8 * stage);
  };
  const auto issueScores = [&](float (&acc)[KEYS / 2], uint64_t a, uint64_t b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++)
      multiply<T, false, false>(acc, shifted(a, Queries::channels(k)), shifted(b, Keys::channels(k)), k > 0);
    commitProducts();
  };
  // A step, with S and dP under way; leaves dQ under way.
  const auto compute = [&](int step) {
    const uint64_t kB = shifted(stageB, ring.stage * Layout::stageBytes);
    waitProducts<1>();
    settle(w);
    const int key = keys.begin + step * KEYS;
    if (late.begin > key || early.end < key + KEYS) maskScores<KEYS>(w, p, s, query + warp * 16 + lane / 4, key, lane);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) w[i] = exp2Approximate(fmaf(w[i], p.scaleLog2, -lse2[i / 2 % 2]));
    holdBeforeWait(p.dim < 0);
    waitProducts<0>();
    settle(dP);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) dP[i] = w[i] * (dP[i] - delta[i / 2 % 2]);
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) packStep<T>(slopes[k], dP, k);
    fenceProducts();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply<T, true>(dQ, slopes[k], shifted(kB, Keys::rowOffset(16 * k)), true);
    commitProducts();
  };

  waitBarrier(resident, 0);
  int step = 0;
  const auto skip = [&] {
    next(step);
    release(ring.stage);
    step++;
  };
  while (step < (mine.end ? mine.begin : steps)) skip();
  if (step < mine.end) {
    next(step);
    const uint64_t b = shifted(stageB, ring.stage * Layout::stageBytes);
    fenceProducts();
    issueScores(w, qA, b);
    issueScores(dP, dOA, shifted(b, Keys::bytes));
#pragma unroll 1
    for (;;) {
      compute(step);
      const int stage = ring.stage;
      if (++step == mine.end) break;
      next(step);
      const uint64_t b = shifted(stageB, ring.stage * Layout::stageBytes);
      fenceProducts();
      issueScores(w, qA, b);
      waitProducts<1>();  // dS stands in the registers of the next dP
      release(stage);
      fenceProducts();
      issueScores(dP, dOA, shifted(b, Keys::bytes));
    }
    waitProducts<0>();
    release(ring.stage);
  }
  while (step < steps) skip();

  settle(dQ);
  syncWarpgroup(1 + group);
  const int row = group * 64 + warp * 16;
  storeTile<T, Queries>(shared, row, dQ, p.scale, p.scale, x.dQ.at(s.batch, s.firstQuery + first + row, head), x.dQ.row,
                        min(16, s.queries - first - row), p.dim, lane);
#else
  __trap();
#endif
}

}  // namespace mm::cuda
