// The states before and their gradients behind every chunk, for chunk_scan_hopper_backward.cuh.
//
// A block walks the chunks of a sequence and virtual head in one direction with 64 x 64 of the state in the accumulators of one
// warpgroup (row: key channel): forwards S = exp(c_T) S + (exp(c_T - c_t) w_t k_t)^T v_t, backwards dS = exp(c_T) dS +
// (exp(c_t) scale q_t)^T dO_t. The transposed keys come by ldmatrix and are weighted in registers. A producer warp keeps a ring of
// stages full.
//
// Blocks of a cluster, the 2 halves of the key channels and where a head has 2 slices of values those too, load halves of the tiles
// that they share and multicast them: alone, the blocks of a head drift apart and read 46 % more than there is (0.36 ms at L = 32768
// with 16 heads, of 0.27 that the bytes take). Clusters keep pace with those that read the same keys, without which ssd at L = 103424
// with H = 16, P = 128, G = 16 moves 3.57 GB instead of 2.60 (1.21 ms, 0.96), with H = 80, P = 64, G = 1 5.84 instead of 4.60 (2.15, 1.62).
#pragma once
#include "cuda/chunk_scan_hopper_backward.cuh"
#include "cuda/common/cluster.cuh"

namespace mm::cuda::chunk_scan::hopper {

constexpr int kStateThreads = 160;  // a warpgroup and the producer

struct StateLayout {
  static constexpr int values = ValueTile::bytes, scalars = 2 * ValueTile::bytes, stage = scalars + 3072;  // slabs start at 1024 bytes
  static constexpr int bytes(int stages) { return stages * stage + 2 * stages * 8 + 1024; }
};

// One box of 64 steps, to the same place of the blocks of the cluster in `mask`.
__device__ __forceinline__ void multicastBox(uint32_t slab, const CUtensorMap& map, uint32_t barrier, int channel, int row, int head,
                                             int batch, int mask) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5, %6}], "
      "[%2], %7;" ::"r"(slab),
      "l"(&map), "r"(barrier), "r"(channel), "r"(row), "r"(head), "r"(batch), "h"(uint16_t(mask))
      : "memory");
}

// Walks over the same keys keep pace, so that what one reads lies in the second-level cache for the others: none begins a chunk before
// all have begun the one before. As that is for speed only, a walk whose others do not come (another kernel has their place) goes on.
struct Pace {
  int32_t* begun;
  int walks;
  __device__ __forceinline__ void begin(int i) {
    if (!begun) return;
    atomicAdd(begun + i, 1);
    for (int polls = 0; i; polls++) {
      int32_t count;
      asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(begun + i - 1) : "memory");
      if (count >= walks) break;
      if (polls == 100) {
        begun = nullptr;
        break;
      }
      __nanosleep(100);
    }
  }
};

// CLUSTER 4: two slices of values a head.
template <class T, bool DECAY, int CLUSTER>
__global__ void __launch_bounds__(kStateThreads, 3)
chunkStatesWgmmaKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task,
                       const __grid_constant__ Maps maps, int stages) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char dynamic[];
  unsigned char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + stages * StateLayout::stage, empty = full + 8 * stages;
  // key channels 64 keyPart.., values of a virtual head, direction, head, batch entry
  const int keyPart = blockIdx.x % 2, slice = blockIdx.x / 2 % task.slices, rest = blockIdx.x / 2 / task.slices;
  const bool backwards = rest % 2;
  const int rank = blockIdx.x % CLUSTER, head = rest / 2 % s.heads, batch = rest / 2 / s.heads, virtualHead = head * task.slices + slice;
  const int chunks = task.chunks, updates = chunks - (backwards && g.wantsInitial ? 0 : 1);
  const int64_t slot0 = int64_t(batch) * chunks;
  const auto chunkAt = [&](int i) { return backwards ? chunks - 1 - i : i; };

  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; i++) initBarrier(full + 8 * i, 1), initBarrier(empty + 8 * i, 4 * (CLUSTER == 4 ? 3 : 2));
    fenceBarriers();
  }
  syncCluster();
  const int warp = __shfl_sync(kAllLanes, int(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  if (warp == 4) {
    if (lane == 0) {
      const CUtensorMap &keys = backwards ? maps.q : maps.k, &values = backwards ? maps.dO : maps.v;
      const int group = head / s.share();
      int stage = 0, parity = 1;
      const int64_t together = (int64_t(batch) * s.groups + group) * 2 + backwards;
      Pace pace{task.begun ? task.begun + together * chunks : nullptr, task.sharedWalks(s)};
      for (int i = 0; i < updates; i++) {
        pace.begin(i);
        waitBarrier(empty + 8 * stage, parity);  // of all blocks that get a part of this block
        const uint32_t to = base + stage * StateLayout::stage, bar = full + 8 * stage;
        const int chunk = chunkAt(i), row = chunk * kSteps;
        arriveExpecting(bar, 2 * ValueTile::bytes + (DECAY ? kScalarBytes : 0));
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const uint32_t part = to + half * (ValueTile::bytes / 2);
          if (CLUSTER == 2) copyBox(part, keys, bar, keyPart * 64, row + half * 64, group, batch);
          else if (half == rank / 2) multicastBox(part, keys, bar, keyPart * 64, row + half * 64, group, batch, 5 << keyPart);
          if (half == keyPart)
            multicastBox(part + StateLayout::values, values, bar, slice * kValues, row + half * 64, head, batch, 3 << (rank & 2));
        }
        const float* scalars = task.scalars + ((slot0 + chunk) * s.heads + head) * kScalarFloats;
        if (DECAY) copyBulk(to + StateLayout::scalars, scalars, kScalarBytes, bar);
        if (++stage == stages) stage = 0, parity ^= 1;
      }
    }
    __syncwarp();
    syncCluster();
    return;
  }

  // Without decay dS / scale is what is summed, and scale S what is left: all products with either need no scale.
  const float in = DECAY || !backwards ? 1.f : 1.f / s.scale, out = DECAY ? 1.f : s.scale;
  const int row = keyPart * 64 + warp * 16 + lane / 4, col = slice * kValues + lane % 4 * 2;
  const int64_t pair = (int64_t(batch) * s.heads + head) * s.stateSize();
  const auto offset = [&](int i) {  // of accumulator i in the states of the call
    const int n = row + i / 2 % 2 * 8, p = col + i / 4 * 8 + i % 2;
    return s.byValue ? int64_t(p) * s.n + n : int64_t(n) * s.p + p;
  };
  float state[32];
  const float* first = backwards ? g.hasFinal ? g.dFinal : nullptr : s.hasInitial ? s.initial : nullptr;
#pragma unroll
  for (int i = 0; i < 32; i++) state[i] = first ? first[pair + offset(i)] * in : 0.f;

  T* const result = static_cast<T*>(backwards ? task.gradients : task.states) + virtualHead * int64_t(kStateElements);
  int stage = 0, parity = 0;
#pragma unroll 1
  for (int i = 0; i < chunks; i++) {
    T* const to = result + (slot0 + chunkAt(i)) * task.virtualHeads(s) * kStateElements;
    forPieces<T>(state, out, [&](int half, int piece, uint4 words) {
      *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(to) + StateTile::offset(row + 8 * half, piece)) = words;
    });
    if (i == updates) break;

    waitBarrier(full + 8 * stage, parity);
    const uint32_t keys = base + stage * StateLayout::stage;
    const uint64_t keysA = tileDescriptor(keys), values = shifted(keysA, StateLayout::values);
    if constexpr (DECAY) {
      const float* scalars = reinterpret_cast<const float*>(shared + stage * StateLayout::stage + StateLayout::scalars);
      uint32_t a[8][4];
#pragma unroll
      for (int k = 0; k < 8; k++) {
        ldmatrix4Transposed(a[k], keys + ValueTile::offset(16 * k + lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2));
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int t = 16 * k + 8 * h + lane % 4 * 2;
          float2 f = *reinterpret_cast<const float2*>(scalars + (backwards ? BEFORE : BEHIND) * kSteps + t);
          if (backwards) f.x *= s.scale, f.y *= s.scale;
          else {
            const float2 w = *reinterpret_cast<const float2*>(scalars + WEIGHT * kSteps + t);
            f.x *= w.x, f.y *= w.y;
          }
#pragma unroll
          for (int r = 2 * h; r < 2 * h + 2; r++) {
            const float2 x = unpack2<T>(a[k][r]);
            a[k][r] = pack2<T>(x.x * f.x, x.y * f.y);
          }
        }
      }
      const float total = scalars[BEFORE * kSteps + kSteps - 1];
#pragma unroll
      for (int j = 0; j < 32; j++) state[j] *= total;
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 8; k++) multiply<T, true>(state, a[k], shifted(values, ValueTile::rowOffset(16 * k)), true);
    } else {
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 8; k++)
        multiply<T, true, true>(state, shifted(keysA, ValueTile::rowOffset(16 * k)), shifted(values, ValueTile::rowOffset(16 * k)), true);
    }
    commitProducts();
    waitProducts<0>();
    settle(state);
    if (lane < (CLUSTER == 4 ? 3 : 2)) arriveInBlock(inBlock(empty + 8 * stage, rank ^ lane));
    if (++stage == stages) stage = 0, parity ^= 1;
  }
  if (backwards && g.wantsInitial)
#pragma unroll
    for (int i = 0; i < 32; i++) g.dInitial[pair + offset(i)] = state[i] * out;
  syncCluster();  // the others may yet arrive at barriers of this block
#else
  __trap();
#endif
}

}  // namespace mm::cuda::chunk_scan::hopper
