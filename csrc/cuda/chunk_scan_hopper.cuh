// The forward of the chunk engine (chunk_scan.cuh has the formulas) for Hopper: one pass over memory, bf16 and f16 operands with N = 128
// and P a multiple of 64, a decay per head or none.
//
// Value channels do not meet, so a problem is a batch entry, a head and 64 value channels of it: a state of 64 x 128. A cluster of R
// blocks works on a problem; in each of its steps they take R consecutive chunks of 128 steps. A block has four warpgroups:
//   loads    one warp brings k, v and q by bulk copies into rings of two tiles each, another computes the decays, and the last two own
//            N / R key channels of the state, in f32 registers: every block sends them that part of what its chunk adds, S_c, they pass
//            the state through the R chunks in order, and copy the parts before chunk c, rounded, to block c, as operand of q S
//   state    S_c^T = (rest v)^T k. A thread sends its values, rounded, to those lanes that hold the same values of the state. What
//            rounding took stays in the accumulators, decays, and is part of the block's next S_c; at a problem's end it is sent as
//            well. So states are what f32 sums give (without decay a last state is 4e-7 off, and 2e-3 with S_c just rounded)
//   outputs  two warpgroups, 64 queries each: y = D v + (weighted q k^T) v + past (q S), whatever lies above the diagonal left out by 64
//            keys; they take turns at the half with more of them. The state comes last, so that its way through the cluster hides
//            behind the other products, and the next chunk's q k^T runs while y is packed. y goes by way of a warp's queries' tile,
//            which a bulk store reads behind the warps' back and the next step frees
// A weight exp(c_t - c_u) w_u is a product of a factor of the query and one of the key, with the c_m of a step m near the query in
// between: the decays' warp makes the keys' factors for every 16 queries, so an element takes one multiplication, and 16 x 16 on the
// diagonal two masks. Where decays are too strong for that, within 16 steps, or weights are negative, or operands are f16, every element
// takes an exponential instead (chunk_scan_hopper_decay.cuh).
// The state's warpgroup runs up to a step ahead of the outputs. Nothing but operands and results goes through memory.
//
// H100, ssd, 16 heads, 8 groups, P = 128, L = 103424, ms: 0.72 under lasting load, which the card's power binds (0.68 before it does),
// where reading and writing everything once at 3.0 TB/s takes 0.43. On the way, 16 groups: a barrier arrival that releases to the cluster,
// and waits for all stores to memory, 1.41 against 1.33; outputs unrolled for either half, more instructions than the cache holds, 1.33
// against 1.11; the fence for the state's tile in the outputs' warps, behind their stores, 1.11 against 1.02; the state sent piece by
// piece from registers, 0.95 against 0.86; warpgroups that keep their half of the queries, and y exchanged by shuffles, 0.86 against 0.83;
// S_c in f32 between the blocks, 0.91 against 0.83. Under lasting load: one walk for all roles, whose registers were spilled to memory
// that has no cache left, and decays converted where they are loaded, which waits for them, 0.91 against 0.81; the state's tile staged
// before the last one is used, or two tiles of it, 0.84 against 0.82; y's second half packed while its first is stored, 0.89 against 0.81.
// 8 groups: an exponential for every weight, decays in f64, v weighted for S_c in f32 and conversions by halves, all together, 0.77 against
// 0.73 (apart they were not measured, but for the third: 0.77 against 0.76); factors instead of exponentials while the decays' warp still
// summed in f64 and made them behind its wait, 0.81 against 0.78, as all waited for it; v released behind q S, 0.76 against 0.745; y stored
// by the warps, 0.74 against 0.72; a fence and a copy for every chunk that the state is passed through, 0.76 against 0.74; S_c's parts
// released by block, 0.75 against 0.73; the thread's index in a register, not read where it is needed, 0.78 against 0.76; a rest of
// rounding left out before strong decays, which have to be waited for, 0.78 against 0.74; waits that suspend for longer, as before.
// Blocks of 128 value channels and chunks of 64 steps, R = 8 (q k^T and weights once a head; twice the parts of states), 0.705 against 0.74
// before y's bulk stores, but 0.77 with D, and slower than this for a while after rest: not kept, as a second kernel for the same.
// R = 8 where that leaves fewer steps to the busiest cluster.
#pragma once
#include "cuda/chunk_scan_hopper_decay.cuh"
#include "cuda/chunk_scan_mma_tiles.cuh"
#include "cuda/common/cluster.cuh"
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kHopperThreads = 512;
constexpr int kHopperLoadRegisters = 96, kHopperStateRegisters = 128, kHopperOutputRegisters = 144;
static_assert(kHopperLoadRegisters + kHopperStateRegisters + 2 * kHopperOutputRegisters == 512, "all registers of a multiprocessor");

struct HopperMaps {
  CUtensorMap queries, keys, values, results;  // results: 16 rows
};
struct HopperTask {
  int slices, problems, clusters, steps;  // slices of 64 value channels; steps of a problem, R chunks each
  float* handed;                          // (clusters, 64 x 128): states of problems that a cluster begins and the next one ends
  int32_t* flags;                         // (clusters, R, 2), zeros: whether a warp's share of them is there
};

template <int R>
struct HopperTiles {
  using Keys = SlabTile<kHopperChunk, 128>;  // and queries
  using Values = SlabTile<kHopperChunk, kHopperValues>;
  // A state as an operand, 64 rows of 128 key channels: for every block that owns 128 / R of them a slab with rows of 256 / R bytes, whose
  // pieces of 16 are exchanged as wgmma's 64 or 32 byte swizzle has it.
  static constexpr int rowBytes = 256 / R, slabBytes = kHopperValues * rowBytes, stateBytes = R * slabBytes;
  static constexpr int partBytes = stateBytes, decayBytes = kHopperDecayFloats * 4;  // partBytes: S_c's parts of R blocks
  static constexpr int keys = 0, queries = keys + 2 * Keys::bytes, values = queries + 2 * Keys::bytes;
  static constexpr int state = values + 2 * Values::bytes, staged = state + stateBytes, parts = staged + stateBytes;
  static constexpr int decays = parts + partBytes, throughs = decays + 2 * decayBytes;
  static constexpr int throughTurns = 4, share = throughs + throughTurns * 4 * R, barriers = share + 32;  // throughs: by turn and block
  // Barriers. Rings have two each; the others: S_c's parts of all blocks are here, all have used mine; the state's tile is here, all have
  // used mine.
  enum { KEYS_FULL, VALUES_FULL = 2, QUERIES_FULL = 4, DECAYS_FULL = 6, KEYS_FREE = 8, VALUES_FREE = 10, QUERIES_FREE = 12,
         DECAYS_FREE = 14, THROUGHS_FULL = 16, PARTS_FULL = THROUGHS_FULL + throughTurns, PARTS_FREE, STATE_FULL, STATE_FREE, kBarriers };
  static constexpr int bytes = barriers + 8 * kBarriers + 1024;  // and what aligning the first tile takes
  static constexpr int owned = 128 / 8 / R;                      // groups of eight key channels of the state that a block owns
  __device__ __forceinline__ static uint32_t swizzle(int row) { return uint32_t(R == 4 ? row / 2 % 4 : row / 4 % 2) * 16; }
  // Descriptor of the i-th 16 key channels of the tile.
  __device__ __forceinline__ static uint64_t stateDescriptor(uint32_t tile, int i) {
    const uint64_t kind = uint64_t(1) << 16 | uint64_t(8 * rowBytes >> 4) << 32 | uint64_t(R == 4 ? 2 : 3) << 62;
    return shifted(kind | uint64_t((tile & 0x3ffff) >> 4), i * 16 / (128 / R) * slabBytes + i * 32 % rowBytes);
  }
  static_assert(R == 4 || R == 8, "swizzles");
};

// What a cluster does. Clusters share all steps of all problems evenly, in order, each at least those of one problem; so a cluster may
// begin a problem that the next one ends. It begins with that one, and ends with the one that the last cluster began.
struct HopperShare {
  int begun, whole, past, tail, head;  // problems [whole, past) are of this cluster alone; first step of `begun`, steps of `past`
  __device__ HopperShare(const HopperTask& task, int cluster) {
    const int64_t all = int64_t(task.problems) * task.steps;
    const int64_t from = all * cluster / task.clusters, to = all * (cluster + 1) / task.clusters;
    begun = int(from / task.steps), past = int(to / task.steps);
    tail = int(from - int64_t(begun) * task.steps), head = int(to - int64_t(past) * task.steps);
    whole = begun + (tail > 0);
  }
};
struct HopperWalk {
  const HopperShare& mine;
  int problem, step = 0, end, batch, head, column;
  uint32_t turn = 0;
  __device__ HopperWalk(const Scan& s, const HopperTask& task, const HopperShare& mine) : mine(mine) {
    problem = mine.head ? mine.past : mine.whole, end = mine.head ? mine.head : task.steps;
    find(s, task);
  }
  __device__ __forceinline__ bool inside() const { return problem >= 0; }
  __device__ __forceinline__ void advance(const Scan& s, const HopperTask& task) {
    turn++;
    if (++step < end) return;
    const bool tail = mine.begun < mine.whole;
    if (tail && problem == mine.begun) problem = -1;
    else {
      problem = problem == mine.past ? mine.whole : problem + 1, step = 0, end = task.steps;
      if (problem >= mine.past) problem = tail ? mine.begun : -1, step = mine.tail;
      find(s, task);
    }
  }
  __device__ __forceinline__ int stage() const { return int(turn % 2); }
  __device__ __forceinline__ int ringParity() const { return int(turn / 2 % 2); }
  __device__ __forceinline__ int parity() const { return int(turn % 2); }

 private:
  __device__ __forceinline__ void find(const Scan& s, const HopperTask& task) {
    column = problem % task.slices * kHopperValues;
    head = problem / task.slices % s.heads, batch = problem / task.slices / s.heads;
  }
};

template <class T, int R>
__global__ void __launch_bounds__(kHopperThreads, 1)
    chunkScanHopperKernel(const __grid_constant__ Scan s, const __grid_constant__ HopperTask task,
                          const __grid_constant__ HopperMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tiles = HopperTiles<R>;
  using Keys = typename Tiles::Keys;
  using Values = typename Tiles::Values;
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared);
  const auto bar = [&](int i) { return base + Tiles::barriers + 8 * i; };
  const int rank = rankInCluster(), lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, thread = threadIdx.x % 128;
  const int group = __shfl_sync(kAllLanes, int(threadIdx.x) / 128, 0), cluster = int(blockIdx.x) / R;
  if (threadIdx.x == 0) {
    *reinterpret_cast<HopperShare*>(shared + Tiles::share) = HopperShare(task, cluster);
    for (int i = 0; i < 2; i++) {
      for (int b : {Tiles::KEYS_FULL, Tiles::VALUES_FULL, Tiles::QUERIES_FULL}) initBarrier(bar(b + i), 1);
      for (int b : {Tiles::KEYS_FREE, Tiles::VALUES_FREE}) initBarrier(bar(b + i), 12);
      // What plain loads read and plain stores write: all lanes arrive, as racecheck does not follow one behind __syncwarp().
      initBarrier(bar(Tiles::DECAYS_FULL + i), 32), initBarrier(bar(Tiles::DECAYS_FREE + i), 12 * 32);
      initBarrier(bar(Tiles::QUERIES_FREE + i), 8);
    }
    for (int i = 0; i < Tiles::throughTurns; i++) initBarrier(bar(Tiles::THROUGHS_FULL + i), 1);
    initBarrier(bar(Tiles::PARTS_FULL), 1), initBarrier(bar(Tiles::STATE_FULL), 3);
    initBarrier(bar(Tiles::PARTS_FREE), 2 * R), initBarrier(bar(Tiles::STATE_FREE), 8 * R);
    fenceBarriers();
  }
  syncCluster();

  // Every role walks on its own, as registers that all had in common would be spilled where any of them has too few.
  const HopperShare& mine = *reinterpret_cast<const HopperShare*>(shared + Tiles::share);
  const auto startOf = [&](const HopperWalk& at) { return (int64_t(at.step) * R + rank) * kHopperChunk; };
  const auto decaysOf = [&](const HopperWalk& at) {
    return reinterpret_cast<const float*>(shared + Tiles::decays + at.stage() * Tiles::decayBytes);
  };
  // The decays through the chunks of a turn, by block. A slot is written anew four turns later: by a block whose outputs have had the
  // state of the next turn, for which all blocks are done with this one.
  const auto throughsOf = [&](uint32_t turn) {
    return reinterpret_cast<const float*>(shared + Tiles::throughs) + turn % Tiles::throughTurns * R;
  };
  const auto awaitThroughs = [&](const HopperWalk& at) {
    waitBarrier(bar(Tiles::THROUGHS_FULL + at.turn % Tiles::throughTurns), int(at.turn / Tiles::throughTurns % 2));
  };
  const auto release = [&](const HopperWalk& at, int barrier) {
    __syncwarp();
    if (lane == 0) arrive(bar(barrier + at.stage()));
  };
  const int g = lane / 4, t = lane % 4;

  if (group == 0) {
    lowerRegisters<kHopperLoadRegisters>();
    if (warp == 0 && lane == 0) {
      HopperWalk at(s, task, mine);
      for (; at.inside(); at.advance(s, task)) {
        const int row = int(startOf(at)), share = s.share(), stage = at.stage(), parity = at.ringParity();
        const auto fill = [&](int full, int free, int bytes) {
          waitBarrier(bar(free + stage), parity ^ 1);
          arriveExpecting(bar(full + stage), uint32_t(bytes));
          return bar(full + stage);
        };
        const uint32_t k = fill(Tiles::KEYS_FULL, Tiles::KEYS_FREE, Keys::bytes);
        copyTile<Keys>(base + Tiles::keys + stage * Keys::bytes, maps.keys, k, row, at.head / share, at.batch);
        const uint32_t v = fill(Tiles::VALUES_FULL, Tiles::VALUES_FREE, Values::bytes);
        copyBox(base + Tiles::values + stage * Values::bytes, maps.values, v, at.column, row, at.head, at.batch);
        const uint32_t q = fill(Tiles::QUERIES_FULL, Tiles::QUERIES_FREE, Keys::bytes);
        copyTile<Keys>(base + Tiles::queries + stage * Keys::bytes, maps.queries, q, row, at.head / share, at.batch);
      }
    } else if (warp == 1) {
      HopperWalk at(s, task, mine);
      HopperSteps<T> steps;
      const auto rows = [&] {
        const int64_t left = s.length - startOf(at);
        return int(left < 0 ? 0 : left < kHopperChunk ? left : kHopperChunk);
      };
      if (at.inside()) steps.load(s, at.batch, at.head, startOf(at), rows(), at.column);
      while (at.inside()) {
        const int stage = at.stage(), parity = at.ringParity(), slot = int(at.turn % Tiles::throughTurns);
        steps.solve(s, rows());
        const HopperScalars<T> scalars = steps.scalars;
        at.advance(s, task);
        if (at.inside()) steps.load(s, at.batch, at.head, startOf(at), rows(), at.column);
        if (lane == 0) arriveExpecting(bar(Tiles::THROUGHS_FULL + slot), 4 * R);
        if (lane < R)
          storeInBlock(inBlock(base + Tiles::throughs + (slot * R + rank) * 4, lane), scalars.through,
                       inBlock(bar(Tiles::THROUGHS_FULL + slot), lane));
        waitBarrier(bar(Tiles::DECAYS_FREE + stage), parity ^ 1);
        scalars.store(reinterpret_cast<float*>(shared + Tiles::decays + stage * Tiles::decayBytes));
        arrive(bar(Tiles::DECAYS_FULL + stage));
      }
    } else if (warp >= 2) {
      // A lane has the parts of that lane of warps `first` and first + 1 of the state's warpgroup:
      // values p = 16 (first + m) + g (+ 8), n = 8 (rank J + j) + 2 t (+ 1)
      constexpr int J = Tiles::owned;
      int self = lane;
      asm volatile("" : "+r"(self));  // else the thread's index is read anew wherever it is needed
      HopperWalk at(s, task, mine);
      const int first = 2 * (warp - 2);
      float own[2][4 * J];
      int32_t* const flags = task.flags + (cluster * R + rank) * 2 + warp - 2;
      // f(value, place in a state of the call, place among those handed over)
      const auto forOwned = [&](auto&& f) {
        int perP = s.byValue ? s.n : 1, perN = s.byValue ? 1 : s.p;
        asm volatile("" : "+r"(perP), "+r"(perN));  // else what follows from them is kept in registers throughout
        const int64_t state = (int64_t(at.batch) * s.heads + at.head) * s.stateSize() + int64_t(at.column + 16 * first + g) * perP +
                              int64_t(8 * rank * J + 2 * t) * perN;
        const int place = (rank * 2 + warp - 2) * 2 * 4 * J * 32 + self;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int i = 0; i < 4 * J; i++)
            f(own[m][i], state + (16 * m + i % 4 / 2 * 8) * perP + (i / 4 * 8 + i % 2) * perN, place + (m * 4 * J + i) * 32);
      };
      // The lane's row of four matrices of 8 x 8 in a slab; matrix i are the values from 8 (i / J) and the channels from 8 (i % J) on.
      const uint32_t stored = base + Tiles::staged + (16 * first + self / 8 / J * 8 + self % 8) * Tiles::rowBytes +
                              (self / 8 % J * 16 ^ Tiles::swizzle(self % 8));
      // What S_c of block c adds to own, in words of two neighbours: word i are the values from 4 (i % J) + i / J * 2 on.
      uint4 part[2][J / 2];
      const auto load = [&](int c) {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int i = 0; i < J / 2; i++)
            part[m][i] = *reinterpret_cast<const uint4*>(shared + Tiles::parts + ((c * J / 2 + i) * 128 + 32 * (first + m) + self) * 16);
      };
      const auto wordOf = [&](int m, int i) {
        const uint4& four = part[m][i / 4];
        return unpack2<T>(i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w);
      };
      uint32_t round = 0;  // of parts
      const auto awaitParts = [&] {
        if (warp == 2 && self == 0) arriveExpecting(bar(Tiles::PARTS_FULL), Tiles::partBytes);
        waitBarrier(bar(Tiles::PARTS_FULL), int(round++ % 2));
      };
      const auto releaseParts = [&] {
        __syncwarp();
        if (self < R) arriveInBlock(inBlock(bar(Tiles::PARTS_FREE), self));
      };
      bool begins = true;
      for (; at.inside(); begins = at.step + 1 >= at.end, at.advance(s, task)) {
        if (begins && at.step == 0) forOwned([&](float& x, int64_t place, int) { x = s.hasInitial ? s.initial[place] : 0.f; });
        else if (begins) {
          awaitFlag(flags - 2 * R);
          const float* handed = task.handed + (cluster - 1) * kHopperValues * 128;
          forOwned([&](float& x, int64_t, int place) { x = __ldcg(handed + place); });
        }
        const float* throughs = throughsOf(at.turn);
        awaitThroughs(at);
        awaitParts();
        waitBarrier(bar(Tiles::STATE_FREE), at.parity() ^ 1);
        if (warp == 2 && self == 0) arriveExpecting(bar(Tiles::STATE_FULL), Tiles::stateBytes - Tiles::slabBytes);
#pragma unroll 1
        for (int c = 0; c < R; c++) {
          const float through = throughs[c];
          // Its own state a block writes where it is used, those of the others from where they are copied.
          const uint32_t to = stored + (c == rank ? Tiles::state - Tiles::staged : 0) + c * Tiles::slabBytes;
          load(c);
#pragma unroll
          for (int m = 0; m < 2; m++) {
            float(&x)[4 * J] = own[m];
#pragma unroll
            for (int k = 0; k < J / 2; k++) {
              uint32_t words[4];
#pragma unroll
              for (int i = 4 * k; i < 4 * k + 4; i++) words[i % 4] = pack2<T>(x[4 * (i % J) + i / J * 2], x[4 * (i % J) + i / J * 2 + 1]);
              stmatrix4(to + (16 * m + 8 * k) * Tiles::rowBytes, words);
            }
#pragma unroll
            for (int i = 0; i < 2 * J; i++) {
              const float2 add = wordOf(m, i);
              const int k = 4 * (i % J) + i / J * 2;
              x[k] = fmaf(through, x[k], add.x), x[k + 1] = fmaf(through, x[k + 1], add.y);
            }
          }
        }
        releaseParts();
        fenceAsyncProxy();
        __syncwarp();
        if (self == rank) arrive(bar(Tiles::STATE_FULL));
        else if (self < R) {
          const uint32_t rows = 16 * first * Tiles::rowBytes;
          copyToBlock(inBlock(base + Tiles::state + rank * Tiles::slabBytes + rows, self),
                      base + Tiles::staged + self * Tiles::slabBytes + rows, 32 * Tiles::rowBytes, inBlock(bar(Tiles::STATE_FULL), self));
        }
        if (at.step + 1 == at.end) {  // and what rounding took from the last S_c
          awaitParts();
          float through = 1.f;
#pragma unroll 1
          for (int c = R - 1; c >= 0; c--) {
            load(c);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
              for (int i = 0; i < 2 * J; i++) {
                const float2 add = wordOf(m, i);
                const int k = 4 * (i % J) + i / J * 2;
                own[m][k] = fmaf(through, add.x, own[m][k]), own[m][k + 1] = fmaf(through, add.y, own[m][k + 1]);
              }
            through *= throughs[c];
          }
          releaseParts();
        }
        if (at.step + 1 == task.steps && s.final) forOwned([&](float& x, int64_t place, int) { s.final[place] = x; });
        else if (at.step + 1 == at.end) {
          float* handed = task.handed + cluster * kHopperValues * 128;
          forOwned([&](float& x, int64_t, int place) { handed[place] = x; });
          raiseFlag(flags);
        }
      }
    }
  } else if (group == 1) {
    raiseRegisters<kHopperStateRegisters>();
    constexpr int J = Tiles::owned;
    HopperWalk at(s, task, mine);
    uint32_t round = 0;  // of parts
    // Sends word(from) = two neighbours of S_c from `from` on to who owns them.
    const auto send = [&](auto&& word) {
      waitBarrier(bar(Tiles::PARTS_FREE), int(round++ % 2) ^ 1);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const uint32_t parts = inBlock(base + Tiles::parts, r) + (rank * J / 2 * 128 + thread) * 16;
        const uint32_t full = inBlock(bar(Tiles::PARTS_FULL), r);
#pragma unroll
        for (int i = 0; i < J / 2; i++) {
          uint32_t words[4];
#pragma unroll
          for (int k = 0; k < 4; k++) words[k] = word(4 * (r * J + (4 * i + k) % J) + (4 * i + k) / J * 2);
          storeInBlock(parts + i * 128 * 16, words, full);
        }
      }
    };
    float sum[64];  // S_c, and between the steps what rounding took from it, which the next S_c gets
#pragma unroll
    for (int i = 0; i < 64; i++) sum[i] = 0.f;
    bool begins = true;
    for (; at.inside(); begins = at.step + 1 >= at.end, at.advance(s, task)) {
      const int stage = at.stage();
      const float* decays = decaysOf(at);
      waitBarrier(bar(Tiles::DECAYS_FULL + stage), at.ringParity());
      waitBarrier(bar(Tiles::VALUES_FULL + stage), at.ringParity());
      uint32_t a[8][4];
#pragma unroll
      for (int k = 0; k < 8; k++) {
        const int row = 16 * k + lane / 16 * 8 + lane % 8;
        ldmatrix4Transposed(a[k], base + Tiles::values + stage * Values::bytes + Values::offset(row, 2 * warp + lane / 8 % 2));
        const float4 rest = *reinterpret_cast<const float4*>(decays + REST + 16 * k + 4 * t);
#pragma unroll
        for (int i = 0; i < 4; i++) a[k][i] = i < 2 ? weighted<T>(a[k][i], rest.x, rest.y) : weighted<T>(a[k][i], rest.z, rest.w);
      }
      awaitThroughs(at);
      float since = 1.f;  // the decay since this block's last chunk
#pragma unroll
      for (int c = 0; c < R; c++) since *= throughsOf(c > rank && !begins ? at.turn - 1 : at.turn)[c];
      const bool kept = !begins && since > kLeastSince;  // else nothing is left of what rounding took
      if (kept && since != 1.f)
#pragma unroll
        for (int i = 0; i < 64; i++) sum[i] *= since;
      waitBarrier(bar(Tiles::KEYS_FULL + stage), at.ringParity());
      const uint64_t keys = tileDescriptor(base + Tiles::keys + stage * Keys::bytes, Keys::slabBytes);
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 8; k++) multiply<T, true>(sum, a[k], shifted(keys, Keys::rowOffset(16 * k)), k > 0 || kept);
      commitProducts();
      release(at, Tiles::VALUES_FREE), arrive(bar(Tiles::DECAYS_FREE + stage));
      waitProducts<0>();
      settle(sum);
      release(at, Tiles::KEYS_FREE);

      send([&](int from) {
        const uint32_t word = pack2<T>(sum[from], sum[from + 1]);
        const float2 sent = unpack2<T>(word);
        sum[from] -= sent.x, sum[from + 1] -= sent.y;
        return word;
      });
      if (at.step + 1 == at.end) send([&](int from) { return pack2<T>(sum[from], sum[from + 1]); });
    }
  } else {
    raiseRegisters<kHopperOutputRegisters>();
    HopperWalk at(s, task, mine);
    // Of the words of an 8 x 8 on the diagonal.
    const uint32_t seen = (2 * t <= g ? 0xffffu : 0u) | (2 * t < g ? 0xffff0000u : 0u);
    // The code is one for both halves and for all blocks of 64 keys, as instructions have to come from a cache too.
    // The half of the chunk's queries: the second one is more work, so the two warpgroups take turns at it.
    const auto halfOf = [&] { return (group + int(at.turn)) % 2; };
    float x[32], y[32], old[32];  // q k^T with 64 keys, y, q S
    const auto queries = [&] {
      return tileDescriptor(base + Tiles::queries + at.stage() * Keys::bytes + Keys::rowOffset(halfOf() * 64));
    };
    const auto score = [&](int block) {
      const uint64_t q = queries(), k = tileDescriptor(base + Tiles::keys + at.stage() * Keys::bytes + Keys::rowOffset(block * 64));
      fenceProducts();
#pragma unroll
      for (int i = 0; i < 8; i++)
        multiply<T, false, false>(x, shifted(q, Keys::channels(i)), shifted(k, Keys::channels(i)), i > 0);
      commitProducts();
    };
    const auto awaitKeys = [&] {
      waitBarrier(bar(Tiles::KEYS_FULL + at.stage()), at.ringParity());
      waitBarrier(bar(Tiles::QUERIES_FULL + at.stage()), at.ringParity());
    };
    awaitKeys();
    score(0);
    while (at.inside()) {
      const int stage = at.stage(), half = halfOf();
      const int row = half * 64 + 16 * warp + g;  // of the chunk, and 8 more
      const uint32_t valueRow = Values::offset(half * 64 + 16 * warp + lane % 16, lane / 16);  // the lane's of four matrices of 8 x 8
      const char* const valueTile = shared + Tiles::values + stage * Values::bytes;
      const float* decays = decaysOf(at);
      const int64_t start = startOf(at);
      waitBarrier(bar(Tiles::DECAYS_FULL + stage), at.ringParity());
      waitBarrier(bar(Tiles::VALUES_FULL + stage), at.ringParity());
      const int tier = 4 * half + warp;
      const float* const weights = decays + WEIGHTS + 8 * tier * (tier + 1) + 4 * t;
      float4 w[4];  // of the keys of a block, if tiered; else of no use
      const auto loadWeights = [&](int block) {
#pragma unroll
        for (int k = 0; k < 4; k++) w[k] = *reinterpret_cast<const float4*>(weights + 64 * block + 16 * k);
      };
      loadWeights(0);
      waitProducts<0>();
      settle(x);
      if (lane == 0 && at.turn > 0) {  // the last step's queries: y has been copied from there
        waitStoresRead();
        arrive(bar(Tiles::QUERIES_FREE + (stage ^ 1)));
      }
      const bool tiered = decays[TIERED] != 0.f;
      const uint64_t values = tileDescriptor(sharedAddress(valueTile), Values::slabBytes);
#pragma unroll 1
      for (int block = 0;; block++) {
        const int own = block == half ? warp : 4;  // the 16 keys that the warp's queries see in part, and none behind them
        if (block == half) release(at, Tiles::KEYS_FREE);
        uint32_t a[4][4];
        if (tiered) {
#pragma unroll
          for (int k = 0; k < 4; k++) {
            const uint32_t before = k < own ? ~0u : 0u, on = k == own ? seen : before;
            a[k][0] = pack2<T>(x[8 * k] * w[k].x, x[8 * k + 1] * w[k].y) & on;
            a[k][1] = pack2<T>(x[8 * k + 2] * w[k].x, x[8 * k + 3] * w[k].y) & (k <= own ? ~0u : 0u);
            a[k][2] = pack2<T>(x[8 * k + 4] * w[k].z, x[8 * k + 5] * w[k].w) & before;
            a[k][3] = pack2<T>(x[8 * k + 6] * w[k].z, x[8 * k + 7] * w[k].w) & on;
          }
        } else {
          // The last of the block's keys seen from row, less what the lane begins with.
          const int last = (block == half ? 16 * warp + g : 64) - 2 * t;
          const float* of = decays + WEIGHTS + block * 64 + 2 * t;
          const float sums[2] = {decays[WEIGHTS + row], decays[WEIGHTS + row + 8]};
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const float2 c = *reinterpret_cast<const float2*>(of + 8 * j), w = *reinterpret_cast<const float2*>(of + 128 + 8 * j);
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const float u = x[4 * j + 2 * h] * (exp2Approximate(sums[h] - c.x) * w.x);
              const float v = x[4 * j + 2 * h + 1] * (exp2Approximate(sums[h] - c.y) * w.y);
              x[4 * j + 2 * h] = 8 * j <= last + 8 * h ? u : 0.f;
              x[4 * j + 2 * h + 1] = 8 * j < last + 8 * h ? v : 0.f;
            }
          }
#pragma unroll
          for (int k = 0; k < 4; k++) packStep<T>(a[k], x, k);
        }
        fenceProducts();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply<T, true>(y, a[k], shifted(values, Values::rowOffset(64 * block + 16 * k)), block > 0 || k > 0);
        commitProducts();
        if (block == half) break;
        score(block + 1);
        loadWeights(block + 1);
        waitProducts<0>();
        settle(x);
        settle(y);
      }

      const bool there[2] = {start + row < s.length, start + row + 8 < s.length};
      float level[2] = {decays[LEVEL + row], decays[LEVEL + row + 8]}, past[2] = {decays[PAST + row], decays[PAST + row + 8]};
      if (s.normalized) {
        const float* from = s.inverse + (at.batch * s.length + start + row) * s.heads + at.head;
#pragma unroll
        for (int h = 0; h < 2; h++)
          if (there[h]) level[h] *= from[int64_t(8 * h) * s.heads];
      }
      const uint64_t q = queries();
      uint32_t z[2][2][4];
      if (s.z.given) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            uint4 piece = {0, 0, 0, 0};
            if (there[h])
              piece = *reinterpret_cast<const uint4*>(s.z.at<const T>(at.batch, start + row + 8 * h, at.head) + at.column + 8 * t + 32 * i);
            z[h][i][0] = piece.x, z[h][i][1] = piece.y, z[h][i][2] = piece.z, z[h][i][3] = piece.w;
          }
      }
      waitProducts<0>();
      settle(y);
      if (!s.skip.given) release(at, Tiles::VALUES_FREE);
      waitBarrier(bar(Tiles::STATE_FULL), at.parity());
      fenceProducts();
#pragma unroll
      for (int i = 0; i < 8; i++)
        multiply<T, false, false>(old, shifted(q, Keys::channels(i)), Tiles::stateDescriptor(base + Tiles::state, i), i > 0);
      commitProducts();
      const int column = at.column, head = at.head, batch = at.batch;
      at.advance(s, task);
      if (at.inside()) awaitKeys();
      score(0);  // of the next step; of what lies there behind the last one
      if (s.skip.given) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          uint32_t v[4];
          ldmatrix4(v, sharedAddress(valueTile) + (valueRow ^ 32 * k));
          const float4 skip = *reinterpret_cast<const float4*>(decays + SKIP + 16 * k + 4 * t);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float2 d = unpack2<T>(v[i]);
            y[8 * k + 2 * i] = fmaf(y[8 * k + 2 * i], level[i % 2], (i < 2 ? skip.x : skip.z) * d.x);
            y[8 * k + 2 * i + 1] = fmaf(y[8 * k + 2 * i + 1], level[i % 2], (i < 2 ? skip.y : skip.w) * d.y);
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < 32; k++) y[k] *= level[k / 2 % 2];
      }
      past[0] *= level[0], past[1] *= level[1];
      waitProducts<1>();
      settle(old);
      arrive(bar(Tiles::DECAYS_FREE + stage));
      __syncwarp();
      if (lane == 0 && s.skip.given) arrive(bar(Tiles::VALUES_FREE + stage));
      if (lane < R) arriveInBlock(inBlock(bar(Tiles::STATE_FREE), lane));

#pragma unroll
      for (int k = 0; k < 32; k++) y[k] = fmaf(past[k / 2 % 2], old[k], y[k]);
      if (s.z.given) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            transposeQuad(z[h][i]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
              const float2 gate = unpack2<T>(z[h][i][j]);
              const int k = 4 * (4 * i + j) + 2 * h;
              y[k] *= siluApproximate(gate.x), y[k + 1] *= siluApproximate(gate.y);
            }
          }
      }
      // By way of the warp's queries, once its warpgroup is done with them
      syncWarpgroup(group);
      const uint32_t rows = base + Tiles::queries + stage * Keys::bytes;
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; j++) words[j] = pack2<T>(y[4 * (4 * i + j) + 2 * h], y[4 * (4 * i + j) + 2 * h + 1]);
          stmatrix4(rows + Values::offset(row - g + lane % 8 + 8 * h, 4 * i + lane / 8), words);
        }
      fenceAsyncProxy();
      __syncwarp();
      if (lane == 0) {
        storeBox(maps.results, rows + Values::rowOffset(row), column, int(start) + row, head, batch);
        commitStores();
      }
    }
    waitProducts<0>();
    settle(x);
    if (lane == 0) waitStoresRead();
  }
  syncCluster();
#else
  __trap();
#endif
}

}  // namespace mm::cuda::chunk_scan
