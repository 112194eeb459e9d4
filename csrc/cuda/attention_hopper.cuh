// What the attention kernels for Hopper share: the ring of stages between a producer warp and consumer warpgroups, tiles in shared
// memory as bulk copies and warpgroup products want them, and the order of blocks.
#pragma once
#include "cuda/attention.cuh"
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"

namespace mm::cuda {

// Registers of a thread of the producer where those of GROUPS consumers are raised to that many: the rest of what the launch gave the
// block, BLOCKS on a multiprocessor. A raise beyond that waits forever.
template <int GROUPS, int BLOCKS, int CONSUMER>
constexpr int producerRegisters() {
  constexpr int entry = 65536 / (128 * (GROUPS + 1) * BLOCKS) / 8 * 8, rest = (GROUPS + 1) * entry - GROUPS * CONSUMER;
  static_assert(CONSUMER % 8 == 0 && CONSUMER >= entry && rest >= 24, "registers");
  return rest;
}

// Blocks in the order in which they start: sections of heads whose streamed operands fit in the L2 cache together, so that long
// sequences are read from memory about once a section; in a section the longest tiles first, and those of all its heads side by
// side. A head of another batch entry is another head here; the tiles of packed sequences are all of one head.
struct BlockOrder {
  int heads, section, slots;  // slots: tiles of a head
  int tiles() const { return heads * slots; }
};
// KEYS: blocks own tiles of keys of key-value heads, and a head's queries and their gradients stream; else queries, and keys and
// values stream.
template <int ROWS, bool KEYS>
BlockOrder blockOrder(const AttentionProblem& p, size_t cache) {
  const int copies = p.packed() ? 1 : p.sequences, streams = p.kvHeads * copies, users = KEYS ? 1 : p.group;
  const int64_t bytes = int64_t(KEYS ? p.queries : p.keys) * p.dim * 4;
  const int64_t fit = bytes ? int64_t(cache) * 2 / 3 / bytes : streams, sections = ceilDiv(streams, fit < 1 ? 1 : fit);
  const int64_t slots = tileSlots(p, KEYS ? p.keys : p.queries, ROWS);
  return {streams * users, int(ceilDiv(streams, sections ? sections : 1)) * users, int(p.packed() || !slots ? slots : slots / copies)};
}

// The tile of that index in this order; false where the slot is empty.
template <int ROWS, bool KEYS>
__device__ __forceinline__ bool orderedTile(const AttentionProblem& p, const BlockOrder& order, int index, AttentionSequence& s, int& head,
                                            int& first) {
  const int size = order.section * order.slots, section = index / size, i = index - section * size;
  const int width = min(order.section, order.heads - section * order.section), heads = KEYS ? p.kvHeads : p.heads;
  const int owner = section * order.section + i % width, slot = KEYS ? i / width : order.slots - 1 - i / width;
  head = owner % heads;
  return findTile<ROWS, KEYS>(p, p.packed() ? slot : slot * p.sequences + owner / heads, s, first);
}

// The ring of stages as one of its users walks it.
template <int STAGES>
struct Ring {
  int stage = STAGES - 1, parity = 1;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Steps that this many queries or keys of a warpgroup need, out of all steps of the block.
__device__ __forceinline__ Span stepsOf(Span mine, Span all, int size) {
  if (mine.end <= mine.begin) return {0, 0};
  return {(mine.begin - all.begin) / size, (mine.end - all.begin + size - 1) / size};
}

// Zeros in rows [rows, ROWS) of the TILES tiles of a stage, by one warpgroup: where a sequence ends before its tensor, the copy also
// brought rows behind it, which may hold anything, and zero times that must be zero. All warpgroups write the same.
template <class Tile, int TILES>
__device__ __forceinline__ void clearRows(char* stage, int rows, int thread, int barrier) {
  for (int i = thread; i < TILES * Tile::slabs * (Tile::rows - rows) * 8; i += 128) {
    const int piece = i % 8, row = rows + i / 8 % (Tile::rows - rows), slab = i / 8 / (Tile::rows - rows);
    *reinterpret_cast<uint4*>(stage + slab * Tile::slabBytes + row * 128 + piece * 16) = uint4{0, 0, 0, 0};
  }
  fenceAsyncProxy();
  syncWarpgroup(barrier);
}

// Writes a warp's 16 rows of an accumulator times a factor for each half to rows [row, row + 16) of a tile, and from there to a
// strided result.
template <class T, class Tile, int R>
__device__ __forceinline__ void storeTile(char* tile, int row, const float (&d)[R], float upper, float lower, T* global, int64_t stride,
                                          int rows, int dim, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < R / 4; j++) {
    *reinterpret_cast<uint32_t*>(tile + Tile::offset(row + g, j) + t * 4) = pack2<T>(d[4 * j] * upper, d[4 * j + 1] * upper);
    *reinterpret_cast<uint32_t*>(tile + Tile::offset(row + g + 8, j) + t * 4) = pack2<T>(d[4 * j + 2] * lower, d[4 * j + 3] * lower);
  }
  __syncwarp();
  constexpr int PIECES = Tile::dim / 8;
#pragma unroll
  for (int n = 0; n < PIECES / 2; n++) {
    const int i = n * 32 + lane, r = i / PIECES, piece = i % PIECES;
    if (r < rows && piece * 8 < dim)
      *reinterpret_cast<uint4*>(global + r * stride + piece * 8) = *reinterpret_cast<const uint4*>(tile + Tile::offset(row + r, piece));
  }
}

// Hides the keys that a query does not see. w: the scores of a warp's 16 queries with KEYS keys from `key`; `query`: the first of the
// lane's two.
template <int KEYS>
__device__ __forceinline__ void maskScores(float (&w)[KEYS / 2], const AttentionProblem& p, const AttentionSequence& s, int query, int key,
                                           int lane) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const Span seen = p.keysOf(s, query + h * 8);
    const int from = seen.begin - key - lane % 4 * 2, to = seen.end - key - lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        if (n * 8 + e < from || n * 8 + e >= to) w[4 * n + 2 * h + e] = -INFINITY;
  }
}

}  // namespace mm::cuda
