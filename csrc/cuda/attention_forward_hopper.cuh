// attention, forward, for Hopper: the running softmax of attention_forward.cuh with warpgroup products (wgmma) and bulk tensor
// copies (FlashAttention-3, arXiv 2407.08608).
//
// A block is GROUPS consumer warpgroups of 64 queries each and one producer warp. q lies in shared memory; k and v stream through a
// ring of slots in the order of use: k0 k1 v0 k2 v1 ..., each slot with a barrier that says it is full and one that says it is
// free. s = q k^T becomes the weights in place, which are packed in registers as the a operand of o += p v.
//
// Two kinds of overlap hide the softmax, which takes about as long as a product: a warpgroup issues s of block j + 1 before p v of
// block j, and weighs s while p v runs; and the warpgroups take turns at issuing, so that one computes weights while the products of
// the other run. o is only rescaled when a maximum rises by more than 2^8.
//
// H100, B 1, 16 heads, 8 of k and v, D 128, causal, bf16, TFLOP/s at L 2048 / 8192 / 32768 / 103424: 384 / 610 / 672 / 622. cuDNN 310 /
// 561 / 597 / 595, mma.sync 237 / 326 / 346 / 356. As many blocks as multiprocessors, each walking several tiles: 384 / 624 / 583 / 617,
// without turns 390 / 634 / 580 / 496, without holding the weights before the wait for p v 393 / 627 / 579 / 615.
#pragma once
#include "cuda/attention_hopper.cuh"

namespace mm::cuda {

// The operands as maps for bulk copies: boxes of a tile's rows of one head.
struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <int D, int GROUPS, int KEYS, int SLOTS>
struct HopperForwardLayout {
  using Queries = SlabTile<64 * GROUPS, D>;
  using Keys = SlabTile<KEYS, D>;
  static constexpr int threads = 128 * (GROUPS + 1), blocks = GROUPS == 1 ? 2 : 1;  // of a multiprocessor
  static constexpr int registers = GROUPS == 1 ? 216 : 232;                         // of a consumer
  static constexpr int producer = producerRegisters<GROUPS, blocks, registers>();
  static constexpr int slots = Queries::bytes, barriers = slots + SLOTS * Keys::bytes;
  static constexpr int shared = barriers + (2 * SLOTS + 1) * 8 + 1024;  // and what aligning the first tile takes
};

template <class T, int D, int GROUPS, int KEYS, int SLOTS>
__global__ void __launch_bounds__(128 * (GROUPS + 1), GROUPS == 1 ? 2 : 1)
    attentionForwardWgmmaKernel(AttentionProblem p, BlockOrder order, ForwardOperands<T> x, const __grid_constant__ ForwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = HopperForwardLayout<D, GROUPS, KEYS, SLOTS>;
  using Queries = typename Layout::Queries;
  using Keys = typename Layout::Keys;
  AttentionSequence s;
  int head, first;
  if (!orderedTile<Queries::rows, false>(p, order, int(blockIdx.x), s, head, first)) return;

  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers, empty = full + 8 * SLOTS;
  const uint32_t queriesFull = empty + 8 * SLOTS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; i++) initBarrier(full + 8 * i, 1), initBarrier(empty + 8 * i, 4 * GROUPS);
    initBarrier(queriesFull, 1);
    fenceBarriers();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;

  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, min(first + Queries::rows, s.queries) - 1).end};
  const int steps = keys.end > keys.begin ? (keys.end - keys.begin + KEYS - 1) / KEYS : 0;
  Ring<SLOTS> ring;

  if (group == GROUPS) {
    lowerRegisters<Layout::producer>();
    if (warp != 0 || lane != 0) return;
    const auto fill = [&](const CUtensorMap& map, int step) {
      ring.advance();
      waitBarrier(empty + 8 * ring.stage, ring.parity ^ 1);
      const uint32_t bar = full + 8 * ring.stage;
      arriveExpecting(bar, Keys::bytes);
      copyTile<Keys>(base + Layout::slots + ring.stage * Keys::bytes, map, bar, s.firstKey + keys.begin + step * KEYS, head / p.group,
                     s.batch);
    };
    if (steps) fill(maps.k, 0);
    arriveExpecting(queriesFull, Queries::bytes);
    copyTile<Queries>(base, maps.q, queriesFull, s.firstQuery + first, head, s.batch);
    for (int j = 1; j <= steps; j++) {
      if (j < steps) fill(maps.k, j);
      fill(maps.v, j - 1);
    }
    return;
  }

  raiseRegisters<Layout::registers>();
  const uint64_t slotB = tileDescriptor(base + Layout::slots, Keys::slabBytes);
  float o[D / 2], w[KEYS / 2], top[2], total[2], factor[2];
  uint32_t weights[KEYS / 16][4];
  const auto next = [&] {  // waits for a slot
    ring.advance();
    waitBarrier(full + 8 * ring.stage, ring.parity);
  };
  const auto release = [&](int slot) {
    if (lane == 0) arrive(empty + 8 * slot);
  };
  const auto skipSlot = [&] {
    next();
    release(ring.stage);
  };
  const int row = group * 64 + warp * 16, query = first + group * 64, queries = min(64, s.queries - query);
  const Span early = p.keysOf(s, query), late = p.keysOf(s, query + queries - 1);  // of the first and of the last query
  const Span mine = stepsOf(queries > 0 ? Span{early.begin, late.end} : Span{0, 0}, keys, KEYS);
  const uint64_t qA = tileDescriptor(base + Queries::rowOffset(group * 64));
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[i] = 0.f;
#pragma unroll
  for (int h = 0; h < 2; h++) top[h] = -INFINITY, total[h] = 0.f;
  bool rises = false;

  // Turns of the warpgroups at issuing the products of block j; the first ones need none, nor the last p v.
  const auto await = [&](int j) {
    if (GROUPS > 1 && j > 0 && j < steps) syncThreads(1 + GROUPS + group, 256);
  };
  const auto pass = [&](int j) {
    if (GROUPS > 1 && j > 0 && j < steps - (group == GROUPS - 1)) arriveThreads(1 + GROUPS + (group + 1) % GROUPS, 256);
  };
  const auto issueScores = [&] {
    const uint64_t kB = shifted(slotB, ring.stage * Keys::bytes);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
      multiply<T, false, false>(w, shifted(qA, Queries::channels(k)), shifted(kB, Keys::channels(k)), k > 0);
    commitProducts();
  };
  const auto issueSums = [&] {
    const uint64_t vB = shifted(slotB, ring.stage * Keys::bytes);
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply<T, true>(o, weights[k], shifted(vB, Keys::rowOffset(16 * k)), true);
    commitProducts();
  };
  const auto nextValues = [&](int j) {
    next();
    const int rows = s.keys - keys.begin - j * KEYS;
    if ((p.packed() || p.lengths) && rows < KEYS)
      clearRows<Keys, 1>(shared + Layout::slots + ring.stage * Keys::bytes, rows, threadIdx.x % 128, 1 + group);
  };
  // Scores of block j to weights; says in `rises` and `factor` how o is to be rescaled.
  const auto weigh = [&](int j) {
    const int key = keys.begin + j * KEYS;
    if (late.begin > key || early.end < key + KEYS) maskScores<KEYS>(w, p, s, query + warp * 16 + lane / 4, key, lane);
    float largest[2];
    bool rise = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v = fmaxf(w[2 * h], w[2 * h + 1]);
#pragma unroll
      for (int n = 1; n < KEYS / 8; n++) v = fmaxf(v, fmaxf(w[4 * n + 2 * h], w[4 * n + 2 * h + 1]));
      v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
      largest[h] = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
      rise |= (largest[h] - top[h]) * p.scaleLog2 > 8.f;
    }
    rises = __any_sync(0xffffffffu, rise);
    if (rises) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float higher = fmaxf(top[h], largest[h]);
        factor[h] = top[h] == -INFINITY ? 0.f : exp2Approximate((top[h] - higher) * p.scaleLog2);
        top[h] = higher;
        total[h] *= factor[h];
      }
    }
    const float floor[2] = {top[0] == -INFINITY ? 0.f : top[0] * p.scaleLog2, top[1] == -INFINITY ? 0.f : top[1] * p.scaleLog2};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      w[i] = exp2Approximate(fmaf(w[i], p.scaleLog2, -floor[i / 2 % 2]));
      total[i / 2 % 2] += w[i];
    }
  };
  const auto pack = [&] {
    if (rises) {
#pragma unroll
      for (int i = 0; i < D / 2; i++) o[i] *= factor[i / 2 % 2];
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) packStep<T>(weights[k], w, k);
  };
  const auto skip = [&](int j) {
    await(j);
    pass(j);
    if (j < steps) skipSlot();
    if (j > 0) skipSlot();
  };

  if (GROUPS > 1 && group == GROUPS - 1 && steps > 1) arriveThreads(1 + GROUPS, 256);
  int j = 0;
  while (mine.end ? j < mine.begin : j <= steps) skip(j++);
  waitBarrier(queriesFull, 0);
  if (mine.end) {
    next();
    await(j);
    fenceProducts();
    issueScores();
    pass(j);
    int keySlot = ring.stage;
    if (j > 0) skipSlot();
    waitProducts<0>();
    settle(w);
    release(keySlot);
    weigh(j++);
    pack();
#pragma unroll 1
    for (; j < mine.end; j++) {
      next();
      keySlot = ring.stage;
      await(j);
      fenceProducts();
      issueScores();
      nextValues(j - 1);
      fenceProducts();
      issueSums();
      pass(j);
      waitProducts<1>();
      settle(w);
      release(keySlot);
      weigh(j);
      holdBeforeWait(p.dim < 0);
      waitProducts<0>();
      settle(o);
      release(ring.stage);
      pack();
    }
    if (j < steps) skipSlot();
    nextValues(j - 1);
    await(j);
    fenceProducts();
    issueSums();
    pass(j++);
    waitProducts<0>();
    settle(o);
    release(ring.stage);
    while (j <= steps) skip(j++);
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = total[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int i = warp * 16 + h * 8 + lane / 4;
    factor[h] = sum == 0.f ? 0.f : 1.f / sum;
    if (x.lse && lane % 4 == 0 && i < queries)
      x.lse[(int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + query + i] =
          sum == 0.f ? -INFINITY : fmaf(top[h], p.scale, logf(sum));
  }
  syncWarpgroup(1 + group);  // the warpgroup's rows of q now bring o into whole rows
  storeTile<T, Queries>(shared, row, o, factor[0], factor[1], x.o.at(s.batch, s.firstQuery + first + row, head), x.o.row,
                        min(16, s.queries - first - row), p.dim, lane);
#else
  __trap();
#endif
}

}  // namespace mm::cuda
