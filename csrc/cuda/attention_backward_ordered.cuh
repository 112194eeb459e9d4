// attention, backward, for Hopper in five products, where the kernels of attention_backward_hopper.cuh take seven. With
// P = exp2(scaleLog2 q k^T - lse2) and dS = P (dO v^T - delta), by tiles of 128 keys, past which the queries of all heads of the
// group run in tiles of 64:
//
//   dV = P^T dO, dK = scale dS^T q   stay in registers
//   dQ = scale sum over tiles of keys of dS k   is summed in memory, in f32, tile of keys behind tile of keys
//
// A block is two consumer warpgroups of 64 keys and a producer warpgroup: one warp streams q and dO, two add dQ to memory. S^T and
// dP^T are computed so that P^T and dS^T are the a operands of dV and dK as they stand. dS^T also goes to shared memory, where the
// two warpgroups' halves make the a operand of dQ, of which a warpgroup computes 64 queries by half the channels; that product runs a
// step late, when the other half has long been there.
//
// A warpgroup that issues products stands still until the tensor cores have taken nearly all of them, so what it has to do besides
// stands between them: the exponentials between the products of dP^T, dS^T's way to shared memory between those of dK, dQ's between
// those of S^T. Registers: 128 of dK and dV, 32 each of S^T, dP^T and dQ, of which two live at a time, 32 packed.
//
// The order of the sum. A tile of dQ is added to by one block at a time (bulk copies that add), in a fixed order: a counter for each
// tile says how many tiles of keys have been added, and a block waits for its number. Blocks take tickets, and all numbers
// rise with the tickets, so that a block waits only for blocks that run already. Under a causal mask the long blocks, of early keys, go
// first and walk past the queries in descending order, a step or so behind each other: the tiles that they share stay in the cache, and
// the short blocks of the end leave no multiprocessor idle. Where all heads' queries fit in the cache, half of the heads go the other
// way and before: late keys first, queries in ascending order from the diagonal on. There no block waits for another at the start, and
// each multiprocessor gets a long and a short block. Where even that leaves them idle, the heads of a group are blocks of their own,
// and dK and dV are summed from one to the next in memory.
//
// The sums lie in the order of the accumulators, tiles of 64 queries: [half][n-tile of 8 channels][thread][4].
//
// Tried on an H100, TFLOP/s of this kernel at L = 32768, H = 16, Hk = 8, D = 128, causal; the seven products 497: one warp that adds dQ
// 427, two in turns 570; nothing between the products 549, with the above 587; half of the heads ascending 354, the cache overflows.
// L = 103424: blocks that may run away from each other 387 to 533, see kOrderedLead 549 to 591. L = 2048: heads of a group in one block
// 263, apart 391. dP^T from -delta on, not subtracted from it (whole backward, turn about): 2048 -0.3 %, 8192 +2, 32768 584 to 602,
// 103424 566 to 597.
#pragma once
#include "cuda/attention_hopper.cuh"

namespace mm::cuda {

constexpr int kOrderedKeys = 128, kOrderedQueries = 64, kOrderedConsumers = 2, kOrderedThreads = 128 * (kOrderedConsumers + 1);
constexpr int kOrderedStages = 3, kOrderedSlopes = 2;  // buffers of q and dO, and of dS
constexpr int kOrderedLead = 7;                        // steps, see the producer
constexpr int kOrderedRegisters = 240;                 // of a consumer
constexpr int kOrderedProducerRegisters = producerRegisters<kOrderedConsumers, 1, kOrderedRegisters>();

struct OrderedMaps {
  CUtensorMap q, k, v, dO;
};

// Tickets: sections of `width` streams, each stream with `slots` tiles of keys. Streams are key-value heads with all heads of their
// group or, with group 1, single heads.
struct TicketOrder {
  int streams, width, slots, tiles, group;  // tiles: of queries of a head
  int ascending;                            // sections that walk past the queries in ascending order, the first ones
  int tickets() const { return streams * slots; }
};

template <class T>
struct OrderedOperands {
  HeadView<T> dK, dV;
  const float *lse2, *delta;  // (B, H, tiles * 64): +inf and 0 behind the last query; delta negated
  float* dQ;                  // (B, H, tiles) sums
  float4* keys;               // (B, Hk, slots) sums of dK and dV over heads of a group that are streams of their own
  int *turns, *ticket;        // (B, H, tiles) added to dQ so far; the next ticket
  int* members;               // (B, Hk, slots) added to `keys` so far
};

template <int D>
struct OrderedLayout {
  static constexpr int STAGES = kOrderedStages, SLOPES = kOrderedSlopes;
  using Keys = SlabTile<kOrderedKeys, D>;
  using Queries = SlabTile<kOrderedQueries, D>;
  static_assert(Keys::slabs == kOrderedConsumers, "a consumer's half of the channels is a slab");
  using Slopes = SlabTile<kOrderedKeys, kOrderedQueries>;  // dS^T
  static constexpr int stat = kOrderedQueries * 4, half = kOrderedQueries * D / 2 * 4;
  static constexpr int q = 2 * Keys::bytes, dO = q + STAGES * Queries::bytes, slopes = dO + STAGES * Queries::bytes;
  static constexpr int dQ = slopes + SLOPES * Slopes::bytes, lse2 = dQ + 2 * half, delta = lse2 + STAGES * stat;
  static constexpr int barriers = delta + STAGES * stat, count = 1 + 3 * STAGES + 2 * SLOPES + 3;
  static constexpr int ticket = barriers + count * 8, shared = ticket + 8 + 1024;  // and what aligning the first tile takes
};

// The tiles of keys that see tile `tile` of a sequence's queries.
__device__ __forceinline__ Span keyTilesOf(const AttentionProblem& p, const AttentionSequence& s, int tile) {
  const int first = tile * kOrderedQueries, last = min(first + kOrderedQueries, s.queries) - 1;
  const int begin = p.keysOf(s, first).begin, end = p.keysOf(s, last).end;
  return end > begin ? Span{begin / kOrderedKeys, (end + kOrderedKeys - 1) / kOrderedKeys} : Span{0, 0};
}

// The tile of keys of a ticket.
struct KeyTile {
  int width, slot, first, head, batch;  // streams of the section; head: the first one of the stream
  bool descending;                      // the walk past the queries; that of a section past its tiles of keys is the other one
  __device__ __forceinline__ KeyTile(const AttentionProblem& p, const TicketOrder& order, int ticket) {
    const int size = order.width * order.slots, section = ticket / size, at = ticket - section * size;
    width = min(order.width, order.streams - section * order.width);
    const int stream = section * order.width + at % width;
    descending = section >= order.ascending;
    slot = descending ? at / width : order.slots - 1 - at / width, first = slot * kOrderedKeys;
    head = stream * order.group % p.heads, batch = stream * order.group / p.heads;
  }
  __device__ __forceinline__ AttentionSequence sequence(const AttentionProblem& p) const { return {batch, 0, p.queries, 0, p.keys}; }
};

// A block's walk past the tiles of queries: up or down, all heads of the group at each tile.
struct QueryWalk {
  int tile, head;  // of the group
  __device__ QueryWalk(Span tiles, bool descending) : tile(descending ? tiles.end - 1 : tiles.begin), head(0) {}
  __device__ __forceinline__ void advance(bool descending, int group) {
    if (++head == group) head = 0, tile += descending ? -1 : 1;
  }
};

// A block's place among those that add to the tile of dQ at which a walk stands.
struct Turn {
  int64_t tile;  // of all heads
  int number, count;
  __device__ __forceinline__ Turn(const AttentionProblem& p, const TicketOrder& order, const KeyTile& own, const QueryWalk& walk) {
    const Span users = keyTilesOf(p, own.sequence(p), walk.tile);
    tile = (int64_t(own.batch) * p.heads + own.head + walk.head) * order.tiles + walk.tile;
    number = own.descending ? own.slot - users.begin : users.end - 1 - own.slot, count = users.end - users.begin;
  }
};

__device__ __forceinline__ int loadAcquire(const int* p) {
  int v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void storeRelease(int* p, int v) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Accumulators of the two consumers as they lie in registers, pieces of four floats.
template <int R>
__device__ __forceinline__ void addPieces(float (&d)[R], const float4* from) {
#pragma unroll
  for (int i = 0; i < R / 4; i++) {
    const float4 v = __ldcg(from + i * 128 * kOrderedConsumers);
    d[4 * i] += v.x, d[4 * i + 1] += v.y, d[4 * i + 2] += v.z, d[4 * i + 3] += v.w;
  }
}
template <int R>
__device__ __forceinline__ void storePieces(float4* to, const float (&d)[R]) {
#pragma unroll
  for (int i = 0; i < R / 4; i++) to[i * 128 * kOrderedConsumers] = {d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]};
}

// First pass: lse2 and -delta of every row, eight lanes a row, and counters and ticket zeroed.
struct OrderedRows {
  HeadView<const char> o, dO;  // of 16-bit elements, strides in elements
  const float *lse, *dLse;
  float *lse2, *delta;
  int *counters, count, rows;  // rows: of a head, whole tiles
};
template <class T, int D>
__global__ void __launch_bounds__(256) attentionOrderedRowsKernel(AttentionProblem p, OrderedRows x) {
  const int64_t thread = int64_t(blockIdx.x) * 256 + threadIdx.x, row = thread / 8;
  if (thread < x.count) x.counters[thread] = 0;
  const int lane = threadIdx.x % 8, h = int(row % p.heads), l = int(row / p.heads % x.rows), b = int(row / p.heads / x.rows);
  float sum = 0.f;
  if (b < p.sequences && l < p.queries) {
    const T* o = reinterpret_cast<const T*>(x.o.data) + b * x.o.batch + l * x.o.row + h * x.o.head;
    const T* dO = reinterpret_cast<const T*>(x.dO.data) + b * x.dO.batch + l * x.dO.row + h * x.dO.head;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
      const int at = i * 64 + lane * 8;
      if (at < p.dim) {
        float a[8], d[8];
        loadFloats<8>(o + at, a);
        loadFloats<8>(dO + at, d);
#pragma unroll
        for (int e = 0; e < 8; e++) sum = fmaf(a[e], d[e], sum);
      }
    }
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (b < p.sequences && lane == 0) {
    const int64_t head = int64_t(b) * p.heads + h, from = head * p.queries + l, to = head * x.rows + l;
    const float lse = l < p.queries ? x.lse[from] : -INFINITY;
    x.delta[to] = l < p.queries && x.dLse ? x.dLse[from] - sum : -sum;
    x.lse2[to] = lse == -INFINITY ? INFINITY : lse * kLog2e;
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kOrderedThreads, 1)
    attentionGradientsOrderedKernel(AttentionProblem p, TicketOrder order, OrderedOperands<T> x, const __grid_constant__ OrderedMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = OrderedLayout<D>;
  using Keys = typename Layout::Keys;
  using Queries = typename Layout::Queries;
  using Slopes = typename Layout::Slopes;
  constexpr int QUERIES = kOrderedQueries, STAGES = kOrderedStages, SLOPES = kOrderedSlopes;
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared);
  const uint32_t resident = base + Layout::barriers, qFull = resident + 8, dOFull = qFull + 8 * STAGES, empty = dOFull + 8 * STAGES,
                 slopesFull = empty + 8 * STAGES, slopesEmpty = slopesFull + 8 * SLOPES, dQFull = slopesEmpty + 8 * SLOPES,
                 dQEmpty = dQFull + 16;
  if (threadIdx.x == 0) {
    initBarrier(resident, 1);
    for (int i = 0; i < STAGES; i++) {
      initBarrier(qFull + 8 * i, 1), initBarrier(dOFull + 8 * i, 1);
      initBarrier(empty + 8 * i, 128 * kOrderedConsumers);  // all lanes: racecheck does not follow one behind __syncwarp()
    }
    for (int i = 0; i < SLOPES; i++) {
      initBarrier(slopesFull + 8 * i, 4 * kOrderedConsumers);
      initBarrier(slopesEmpty + 8 * i, 4 * kOrderedConsumers);
    }
    for (int i = 0; i < 2; i++) initBarrier(dQFull + 8 * i, 4 * kOrderedConsumers);
    initBarrier(dQEmpty, 1);
    fenceBarriers();
    *reinterpret_cast<int*>(shared + Layout::ticket) = atomicAdd(x.ticket, 1);
  }
  __syncthreads();
  const int* const ticket = reinterpret_cast<const int*>(shared + Layout::ticket);
  const KeyTile own(p, order, *ticket);
  const bool descending = own.descending;
  const int first = own.first;
  const AttentionSequence s = own.sequence(p);
  const Span queries = p.queriesOf(s, first, min(first + kOrderedKeys, s.keys));
  const Span tiles = queries.end > queries.begin ? Span{queries.begin / QUERIES, (queries.end + QUERIES - 1) / QUERIES} : Span{0, 0};
  const int steps = (tiles.end - tiles.begin) * order.group;
  QueryWalk walk(tiles, descending);

  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (group == kOrderedConsumers) {
    lowerRegisters<kOrderedProducerRegisters>();
    if (lane != 0 || warp == 3) return;
    if (warp == 0) {
      arriveExpecting(resident, 2 * Keys::bytes);
      copyTile<Keys>(base, maps.k, resident, first, own.head / p.group, own.batch);
      copyTile<Keys>(base + Keys::bytes, maps.v, resident, first, own.head / p.group, own.batch);
      Ring<STAGES> ring;
      QueryWalk behind = walk;
      bool followed = false;  // the next tile of keys has a block
      for (int step = 0; step < steps; step++, walk.advance(descending, order.group)) {
        ring.advance();
        if (step >= STAGES) waitBarrier(empty + 8 * ring.stage, ring.parity ^ 1);
        // A block that has run away from the one behind it finds no tile in the cache that the other one leaves, and the other one
        // none of its own: it loads a tile only when the tile some steps back has been added to by both. (dQ of a step is on its way
        // five steps of loading later.)
        if (step == kOrderedLead) followed = loadAcquire(x.ticket) > *ticket + own.width;
        if (followed) {
          const Turn turn(p, order, own, behind);
          if (turn.number + 1 < turn.count)
            while (loadAcquire(x.turns + turn.tile) < turn.number + 2) {}
          behind.advance(descending, order.group);
        }
        const int head = own.head + walk.head, query = walk.tile * QUERIES;
        const int64_t stat = (int64_t(own.batch) * p.heads + head) * order.tiles * QUERIES + query;
        const uint32_t q = qFull + 8 * ring.stage, dO = dOFull + 8 * ring.stage;
        arriveExpecting(q, Queries::bytes + Layout::stat);
        copyTile<Queries>(base + Layout::q + ring.stage * Queries::bytes, maps.q, q, query, head, own.batch);
        copyBulk(base + Layout::lse2 + ring.stage * Layout::stat, x.lse2 + stat, Layout::stat, q);
        arriveExpecting(dO, Queries::bytes + Layout::stat);
        copyTile<Queries>(base + Layout::dO + ring.stage * Queries::bytes, maps.dO, dO, query, head, own.batch);
        copyBulk(base + Layout::delta + ring.stage * Layout::stat, x.delta + stat, Layout::stat, dO);
      }
      return;
    }
    // Adds dQ to memory when the tile's turn has come to this tile of keys; two warps in turns, as that takes longer than a step.
    for (int step = 0; step < steps; step++, walk.advance(descending, order.group)) {
      if (step % 2 != warp - 1) continue;
      const Turn turn(p, order, own, walk);
      float* const to = x.dQ + turn.tile * (QUERIES * D);
      while (turn.number && loadAcquire(x.turns + turn.tile) < turn.number) {}
      waitBarrier(dQFull + 8 * (step & 1), step / 2 & 1);
      if (turn.number) addBulk(to, base + Layout::dQ, 2 * Layout::half);
      else storeBulk(to, base + Layout::dQ, 2 * Layout::half);
      commitStores();
      waitStoresRead();
      arrive(dQEmpty);
      waitBulk();
      storeRelease(x.turns + turn.tile, turn.number + 1);
    }
    return;
  }

  raiseRegisters<kOrderedRegisters>();
  const int key = first + group * 64, offset = s.keys - s.queries;
  const uint64_t kA = tileDescriptor(base + Keys::rowOffset(group * 64)), vA = shifted(kA, Keys::bytes);
  const uint64_t kB = tileDescriptor(base + group * Keys::slabBytes, Keys::slabBytes);
  const uint64_t qB = tileDescriptor(base + Layout::q, Queries::slabBytes), dOB = shifted(qB, Layout::dO - Layout::q);
  const uint64_t slopesA = tileDescriptor(base + Layout::slopes);
  const uint32_t slopeRow = base + Layout::slopes + Slopes::rowOffset(group * 64 + warp * 16 + lane % 16);  // stmatrix4: two by two
  const int slopePiece = lane / 16, swizzle = lane % 8;
  float dK[D / 2], dV[D / 2], w[QUERIES / 2], dP[QUERIES / 2];
  uint32_t weights[QUERIES / 16][4], slopes[QUERIES / 16][4];
#pragma unroll
  for (int i = 0; i < D / 2; i++) dK[i] = 0.f, dV[i] = 0.f;

  Ring<STAGES> ring;
  const auto release = [&](uint32_t barrier) {
    if (lane == 0) arrive(barrier);
  };
  // Of an earlier step, over the block's keys.
  const auto issueQueryGradient = [&](float (&dQ)[D / 4], int step) {
    const uint64_t a = shifted(slopesA, step % SLOPES * Slopes::bytes);
    multiplyNew<T, true, true>(dQ, a, kB);
#pragma unroll
    for (int k = 1; k < kOrderedKeys / 16; k++)
      multiply<T, true, true>(dQ, shifted(a, Slopes::rowOffset(16 * k)), shifted(kB, Keys::rowOffset(16 * k)), true);
    commitProducts();
  };
  const auto waitSlopes = [&](int step) { waitBarrier(slopesFull + 8 * (step % SLOPES), step / SLOPES & 1); };
  const auto sent = [&](int step) {  // dQ lies in shared memory
    fenceAsyncProxy();
    __syncwarp();
    release(dQFull + 8 * (step & 1));
  };
  float4* const sums = reinterpret_cast<float4*>(shared + Layout::dQ + group * Layout::half) + threadIdx.x % 128;
  const auto storeSum = [&](const float (&dQ)[D / 4], int i) { sums[i * 128] = {dQ[4 * i], dQ[4 * i + 1], dQ[4 * i + 2], dQ[4 * i + 3]}; };
  // S^T of a step, and between its products dQ of another one to shared memory.
  const auto issueScores = [&](bool send, const float (&dQ)[D / 4]) {
    const uint64_t b = shifted(qB, ring.stage * Queries::bytes);
    fenceProducts();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
      if (i == 0) multiplyNew<T, false, false>(w, kA, b);
      else multiply<T, false, false>(w, shifted(kA, Keys::channels(i)), shifted(b, Queries::channels(i)), true);
      if (send) storeSum(dQ, i);
    }
    commitProducts();
  };
  // A step, with S^T under way; leaves dK under way.
  const auto compute = [&](int step) {
    const float2* lse2s = reinterpret_cast<const float2*>(shared + Layout::lse2 + ring.stage * Layout::stat) + lane % 4;
    const float2* deltas = reinterpret_cast<const float2*>(shared + Layout::delta + ring.stage * Layout::stat) + lane % 4;
    waitBarrier(dOFull + 8 * ring.stage, ring.parity);
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {  // dP^T starts from -delta
      const float2 delta = deltas[n * 4];
      dP[4 * n] = dP[4 * n + 2] = delta.x, dP[4 * n + 1] = dP[4 * n + 3] = delta.y;
    }
    waitProducts<0>();
    settle(w);
    const int low = walk.tile * QUERIES + offset, high = low + QUERIES - 1;  // key positions of the queries
    if ((p.right >= 0 && key + 63 > low + p.right) || (p.left >= 0 && key < high - p.left) || key + 64 > s.keys) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = key + warp * 16 + h * 8 + lane / 4, j = row - low - lane % 4 * 2;
        const int from = p.right < 0 ? -QUERIES : j - p.right, to = row >= s.keys ? -1 : p.left < 0 ? QUERIES : j + p.left;
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            if (n * 8 + e < from || n * 8 + e > to) w[4 * n + 2 * h + e] = -INFINITY;
      }
    }
    const uint64_t qStage = shifted(qB, ring.stage * Queries::bytes), dOStage = shifted(dOB, ring.stage * Queries::bytes);
    float2 lse2[QUERIES / 8];
#pragma unroll
    for (int n = 0; n < 2; n++) lse2[n] = lse2s[n * 4];
    fenceProducts();
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
      multiply<T, false, false>(dP, shifted(vA, Keys::channels(n)), shifted(dOStage, Queries::channels(n)), true);
      if (n + 2 < QUERIES / 8) lse2[n + 2] = lse2s[(n + 2) * 4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        w[4 * n + 2 * h] = exp2Approximate(fmaf(w[4 * n + 2 * h], p.scaleLog2, -lse2[n].x));
        w[4 * n + 2 * h + 1] = exp2Approximate(fmaf(w[4 * n + 2 * h + 1], p.scaleLog2, -lse2[n].y));
      }
    }
    commitProducts();
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) packStep<T>(weights[k], w, k);
    fenceProducts();
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) multiply<T, true>(dV, weights[k], shifted(dOStage, Queries::rowOffset(16 * k)), true);
    commitProducts();
    waitProducts<1>();
    settle(dP);
#pragma unroll
    for (int i = 0; i < QUERIES / 2; i++) dP[i] *= w[i];
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) packStep<T>(slopes[k], dP, k);
    const uint32_t made = step % SLOPES;
    if (step >= SLOPES) waitBarrier(slopesEmpty + 8 * made, (step / SLOPES & 1) ^ 1);
    fenceProducts();
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) {
      multiply<T, true>(dK, slopes[k], shifted(qStage, Queries::rowOffset(16 * k)), true);
      stmatrix4(slopeRow + made * Slopes::bytes + ((2 * k + slopePiece) ^ swizzle) * 16, slopes[k]);
    }
    commitProducts();
    fenceAsyncProxy();
    __syncwarp();
    release(slopesFull + 8 * made);
    waitProducts<1>();  // dV, for the registers of P
  };

  waitBarrier(resident, 0);
  if (steps) {
    float dQ[D / 4] = {};
    ring.advance();
    waitBarrier(qFull, 0);
    issueScores(false, dQ);
    int step = 0;
#pragma unroll 1
    for (;;) {
      compute(step);
      if (step + 1 == steps) break;
      const uint32_t used = empty + 8 * ring.stage;
      const int late = step - 1;  // below 0: a product of anything
      if (late >= 0) waitSlopes(late);
      fenceProducts();
      float dQ[D / 4];
      issueQueryGradient(dQ, late & (SLOPES - 1));
      ring.advance();
      waitBarrier(qFull + 8 * ring.stage, ring.parity);
      if (late > 0) waitBarrier(dQEmpty, (late - 1) & 1);
      waitProducts<0>();
      settle(dQ);
      arrive(used);
      if (late >= 0) release(slopesEmpty + 8 * (late % SLOPES));
      issueScores(late >= 0, dQ);
      if (late >= 0) sent(late);
      walk.advance(descending, order.group);
      step++;
    }
    waitProducts<0>();
    for (int late = max(0, step - 1); late <= step; late++) {
      waitSlopes(late);
      fenceProducts();
      float dQ[D / 4];
      issueQueryGradient(dQ, late);
      waitProducts<0>();
      settle(dQ);
      release(slopesEmpty + 8 * (late % SLOPES));
      if (late > 0) waitBarrier(dQEmpty, (late - 1) & 1);
#pragma unroll
      for (int i = 0; i < D / 16; i++) storeSum(dQ, i);
      sent(late);
    }
  }

  settle(dK);
  settle(dV);
  syncThreads(1, 128 * kOrderedConsumers);  // the rows of k and v now bring the gradients into whole rows
  const KeyTile tile(p, order, *static_cast<const volatile int*>(ticket));  // once more, for registers
  const int kvHead = tile.head / p.group, member = tile.head % p.group;
  if (order.group < p.group) {  // the heads of the group, one behind the other
    const int64_t sum = (int64_t(tile.batch) * p.kvHeads + kvHead) * order.slots + tile.slot;
    float4* const keys = x.keys + sum * (kOrderedKeys * D / 2) + threadIdx.x;
    if (member) {
      if (threadIdx.x == 0)
        while (loadAcquire(x.members + sum) < member) {}
      syncThreads(1, 128 * kOrderedConsumers);
      addPieces(dK, keys), addPieces(dV, keys + kOrderedKeys * D / 4);
    }
    if (member + 1 < p.group) {
      storePieces(keys, dK), storePieces(keys + kOrderedKeys * D / 4, dV);
      __threadfence();
      syncThreads(1, 128 * kOrderedConsumers);
      if (threadIdx.x == 0) storeRelease(x.members + sum, member + 1);
      return;
    }
  }
  const int row = group * 64 + warp * 16, l = tile.first + row, rows = min(16, p.keys - l);
  if (x.dK.data) storeTile<T, Keys>(shared, row, dK, p.scale, p.scale, x.dK.at(tile.batch, l, kvHead), x.dK.row, rows, p.dim, lane);
  if (x.dV.data) storeTile<T, Keys>(shared + Keys::bytes, row, dV, 1.f, 1.f, x.dV.at(tile.batch, l, kvHead), x.dV.row, rows, p.dim, lane);
#else
  __trap();
#endif
}

// Last pass: the sums of dQ, scaled, as rows. A block a tile, its warps as the consumers' were.
template <class T, int D>
__global__ void __launch_bounds__(256) attentionOrderedQueriesKernel(AttentionProblem p, const float* sums, int tiles, HeadView<T> dQ) {
  const int tile = int(blockIdx.x) % tiles, head = int(blockIdx.x) / tiles % p.heads, b = int(blockIdx.x) / tiles / p.heads;
  const int half = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
  const Span users = keyTilesOf(p, p.sequence(b), tile);
  const float4* from = reinterpret_cast<const float4*>(sums) + (int64_t(blockIdx.x) * 2 + half) * (D * 8) + threadIdx.x % 128;
  float4 v[D / 16];
#pragma unroll
  for (int i = 0; i < D / 16; i++) v[i] = users.end > users.begin ? from[i * 128] : float4{0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int i = 0; i < D / 16; i += 4)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // Two channels of four pieces each become one piece of a row: lane t of four gets piece i + t.
      uint32_t r[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        r[j] = h ? pack2<T>(v[i + j].z * p.scale, v[i + j].w * p.scale) : pack2<T>(v[i + j].x * p.scale, v[i + j].y * p.scale);
#pragma unroll
      for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (!(j & bit)) {
            const uint32_t mine = t & bit ? r[j] : r[j + bit], other = __shfl_xor_sync(0xffffffffu, mine, bit);
            if (t & bit) r[j] = other;
            else r[j + bit] = other;
          }
      const int row = tile * kOrderedQueries + warp * 16 + h * 8 + lane / 4, channel = half * (D / 2) + (i + t) * 8;
      if (row < p.queries && channel < p.dim) *reinterpret_cast<uint4*>(dQ.at(b, row, head) + channel) = uint4{r[0], r[1], r[2], r[3]};
    }
}

}  // namespace mm::cuda
