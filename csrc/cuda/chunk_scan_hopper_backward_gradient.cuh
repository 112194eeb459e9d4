// The gradients of a chunk, for chunk_scan_hopper_backward.cuh.
//
// A block stays on its multiprocessor and takes stages, a (chunk, virtual head) each: v, dO, dS and S, 16 KB each, come through a
// ring of seven tiles, the keys and queries of a group stay for all its heads. Two consumer warpgroups; warpgroup W owns the steps
// [64 W, 64 W + 64) as keys (rows of dk, dv) and as queries (rows of dq), with dq and dk of the group in its accumulators.
//
//   triangles  att^T = k q^T and (dO v^T)^T in three blocks of 64 x 64: W that of its own keys and queries, and of the block of
//              early keys and late queries the queries [64 + 32 W, 96 + 32 W). The decays and the sums that the log-decays' gradient
//              takes from them; att^T of the own block stays in registers, R and the rest go to shared memory.
//   values     dv = w (exp(c_T - c) k dS + att^T dO)
//   keys       dk += R^T q + (exp(c_T - c) w v) dS^T
//   queries    dq += R k + (exp(c) scale dO) S^T, R^T read as the transposed operand
//
// The weighted v and dO are fragments, weighted in registers. The log-decays' gradient also takes v.(k dS) and dO.(q S), whose
// fragments are laid out as those of v and dO; a log-decay's gradient is not formed by q.dq - k.dk, where strong decays cancel.
#pragma once
#include "cuda/chunk_scan_hopper_backward.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda::chunk_scan::hopper {

constexpr int kConsumers = 256, kGradientBlock = kConsumers + 128;
constexpr int kConsumerRegisters = 240, kProducerRegisters = 24;
constexpr int kTiles = 7, kNoteSlots = 3;  // a stage's notes are read until the stage is over: with two slots the ring could overtake
enum { V, DO, DS, S, kStageTiles };        // order within a stage
enum { BARRIER_OWN = 1, BARRIER_FREE = 3, BARRIER_BOTH = 5 };  // named barriers, two each, by warpgroup

// Where a stage stands, as the producer tells it. FROM_START, TO_END: the block takes the group from its first head on, to its last.
enum { NEW_KEYS = 1, KEYS_PARITY = 2, LAST_OF_KEYS = 4, FROM_START = 8, TO_END = 16, LAST_STAGE = 32 };
struct alignas(16) StagePlace {
  int64_t values, queries, keys;  // the first element in dv, dq and dk
  int64_t skip;                   // in the parts of D's gradient, of the first warp
  int flags, rows, virtualHead, unused;  // steps of the chunk; number of (chunk, virtual head)
};

struct GradientLayout {
  static constexpr int keys = 0, queries = KeyTile::bytes, ring = 2 * KeyTile::bytes, tile = ValueTile::bytes;
  // R^T of the own blocks, R^T and att^T of the shared one
  static constexpr int own = ring + kTiles * tile, shared = own + 2 * SquareTile::bytes, att = shared + SquareTile::bytes;
  // notes of a stage: the scalars of its steps, D by value channel, where it stands
  static constexpr int notes = att + SquareTile::bytes, skip = kScalarBytes, place = skip + kValues * 4;
  static constexpr int note = place + int(sizeof(StagePlace));
  // sums over the keys of a warp: of the own blocks (2, 4, 64), of the shared one (4, 64); over the queries: own (128), shared (2, 64);
  // diagonals of the product of the triangles and of dO v^T
  static constexpr int sumOwn = notes + kNoteSlots * note, sumShared = sumOwn + 2 * 4 * 64 * 4, rowOwn = sumShared + 4 * 64 * 4;
  static constexpr int rowShared = rowOwn + 512, diagonal = rowShared + 512, product = diagonal + 512;
  static constexpr int barriers = product + 512, bytes = barriers + (2 * kTiles + 2) * 8 + 1024;
};
static_assert(ValueTile::bytes == StateTile::bytes, "tiles of the ring");

// Sums over a warp's rows of 4 N columns, N 16 or 8; of the i-th 8 of them a lane has columns t and t + 1, x[2 i] and x[2 i + 1].
template <int N>
__device__ __forceinline__ void sumColumns(float (&x)[N], float* sums, int lane) {
  const auto halve = [&](int d, auto half) {  // lanes d apart take a half of the columns each
    constexpr int HALF = decltype(half)::value;
    const bool upper = lane & d;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      const float low = x[i], high = x[HALF + i];
      x[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, d);
    }
  };
  halve(16, std::integral_constant<int, N / 2>()), halve(8, std::integral_constant<int, N / 4>());
  if constexpr (N == 16) {
    halve(4, std::integral_constant<int, 2>());
    *reinterpret_cast<float2*>(sums + 2 * lane) = {x[0], x[1]};
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) x[i] += __shfl_xor_sync(kAllLanes, x[i], 4);
    if ((lane & 4) == 0) *reinterpret_cast<float2*>(sums + (lane & 24) + lane % 4 * 2) = {x[0], x[1]};
  }
}
// What a warp adds to <S, dS>: its 16 rows of both. The rows' products with themselves are the diagonal of a product of matrices.
template <class T>
__device__ __forceinline__ float statesProduct(uint32_t state, uint32_t gradient) {
  const int g8 = threadIdx.x % 32 / 4;
  float upper[4] = {}, lower[4] = {};
#pragma unroll
  for (int k = 0; k < 4; k++) {
    uint32_t a[4], b[4];
    ldmatrix4(a, state ^ (k * 32));
    ldmatrix4(b, gradient ^ (k * 32));
    const uint32_t b0[2] = {b[0], b[2]}, b1[2] = {b[1], b[3]};
    mma16816<T>(upper, a, b0);
    mma16816<T>(lower, a, b1);
  }
  const float mine = g8 % 2 ? upper[1] + lower[3] : upper[0] + lower[2];
  return warpReduce(int(threadIdx.x) % 4 == g8 / 2 ? mine : 0.f);
}
// The same number, of which the compiler does not know that: what is made of it is made anew, not kept in memory meanwhile.
__device__ __forceinline__ int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ float sumQuad(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// The place of a tile of the block's i-th stage, and the parity of the phase that fills it. Two places for each but S, which is
// needed last and comes when the stage before is over.
struct TilePlace {
  int slot, parity;
  __device__ __forceinline__ TilePlace(int which, int i)
      : slot(which == S ? 2 * S : 2 * which + i % 2), parity((which == S ? i : i / 2) & 1) {}
};

__device__ __forceinline__ void produceStages(const Scan& s, const Gradient& g, const Task& task, const Maps& maps,
                                              unsigned char* shared, int first, int count) {
  using Layout = GradientLayout;
  const uint32_t base = sharedAddress(shared);
  const uint32_t full = base + Layout::barriers, empty = full + 8 * kTiles, keysFull = empty + 8 * kTiles, keysEmpty = keysFull + 8;
  const int share = task.share(s), unit = first / share, slot = unit / s.groups;
  int member = first - unit * share, group = unit - slot * s.groups, batch = slot / task.chunks, chunk = slot - batch * task.chunks;
  int head = (group * share + member) / task.slices, slice = group * share + member - head * task.slices, groups = 0;
  bool fromStart = member == 0;
  for (int i = 0; i < count; i++) {
    const int row = chunk * kSteps;
    const auto keys = [&] {
      if (groups) waitBarrier(keysEmpty, (groups - 1) & 1);
      groups++;
      arriveExpecting(keysFull, 2 * KeyTile::bytes);
      copyTile<KeyTile>(base + Layout::keys, maps.k, keysFull, row, group, batch);
      copyTile<KeyTile>(base + Layout::queries, maps.q, keysFull, row, group, batch);
    };
    if (i == 0) keys();
#pragma unroll
    for (int j = 0; j < kStageTiles; j++) {
      const TilePlace p(j, i);
      waitBarrier(empty + 8 * p.slot, p.parity ^ 1);
      const uint32_t tile = base + Layout::ring + p.slot * Layout::tile, bar = full + 8 * p.slot;
      uint32_t bytes = Layout::tile;
      const int note = Layout::notes + i % kNoteSlots * Layout::note;
      if (j == V) {
        if (member == 0) fromStart = true;
        const bool toEnd = member == share - 1;
        StagePlace& at = *reinterpret_cast<StagePlace*>(shared + note + Layout::place);
        at.flags = (i == 0 || member == 0 ? NEW_KEYS : 0) | (i && groups & 1 ? KEYS_PARITY : 0) | (fromStart ? FROM_START : 0) |
                   (toEnd ? TO_END : 0) | (toEnd || i == count - 1 ? LAST_OF_KEYS : 0) | (i == count - 1 ? LAST_STAGE : 0);
        at.rows = int(min(int64_t(kSteps), s.length - row)), at.virtualHead = first + i;
        at.values = batch * g.dv.batch + row * g.dv.time + head * g.dv.head + slice * kValues;
        at.queries = batch * g.dq.batch + row * g.dq.time + group * g.dq.head;
        at.keys = batch * g.dk.batch + row * g.dk.time + group * g.dk.head;
        const int64_t slot = int64_t(batch) * task.chunks + chunk;
        at.skip = s.skip.wide ? (slot * kSkipParts * s.heads + head) * s.p + slice * kValues
                              : (slot * task.slices + slice) * s.heads + head;
        bytes += (task.scalars ? kScalarBytes : 0) + (task.skip ? kValues * 4 : 0);
      }
      arriveExpecting(bar, bytes);
      const bf16* states = static_cast<const bf16*>(j == S ? task.states : task.gradients);
      if (j == V || j == DO) copyBox(tile, j == V ? maps.v : maps.dO, bar, slice * kValues, row, head, batch);
      else copyBulk(tile, states + int64_t(first + i) * kStateElements, Layout::tile, bar);
      const int64_t index = (int64_t(batch) * task.chunks + chunk) * s.heads + head;
      if (j == V && task.scalars) copyBulk(base + note, task.scalars + index * kScalarFloats, kScalarBytes, bar);
      if (j == V && task.skip) copyBulk(base + note + Layout::skip, task.skip + head * s.p + slice * kValues, kValues * 4, bar);
    }
    if (i && member == 0) keys();  // they come free last
    if (++slice == task.slices) slice = 0, head++;
    if (++member < share) continue;
    member = 0;
    if (++group < s.groups) continue;
    group = head = 0;
    if (++chunk == task.chunks) chunk = 0, batch++;
  }
}

// D's gradient by value channel, sum over the steps of v dO: the part of a warp's 16 steps. By head it comes from the triangles' diagonals.
template <class T>
__device__ __forceinline__ void wideSkipGradient(const Scan& s, const Gradient& g, const StagePlace& at, const unsigned char* shared,
                                                 int slotV, int slotDO, int warp, int lane) {
  using Layout = GradientLayout;
  float2 sum = {};
#pragma unroll 4
  for (int i = 0; i < 16; i++) {
    const uint32_t place = Layout::ring + ValueTile::offset(16 * warp + i, lane / 4) + lane % 4 * 4;
    const float2 v = unpack2<T>(*reinterpret_cast<const uint32_t*>(shared + place + slotV * Layout::tile));
    const float2 dO = unpack2<T>(*reinterpret_cast<const uint32_t*>(shared + place + slotDO * Layout::tile));
    sum.x = fmaf(v.x, dO.x, sum.x), sum.y = fmaf(v.y, dO.y, sum.y);
  }
  *reinterpret_cast<float2*>(g.skipParts + at.skip + int64_t(warp) * s.heads * s.p + 2 * lane) = sum;
}

// One code for both warpgroups: with W as a template parameter the instructions fit their caches badly, 2.68 ms of simpleGla against 2.55.
template <class T, bool DECAY>
__device__ __forceinline__ void consumeStages(const Scan& s, const Gradient& g, const Task& task, unsigned char* shared, int W) {
  using Layout = GradientLayout;
  const uint32_t base = sharedAddress(shared);
  const uint32_t full = base + Layout::barriers, empty = full + 8 * kTiles, keysFull = empty + 8 * kTiles, keysEmpty = keysFull + 8;
  const int warp = __shfl_sync(kAllLanes, int(threadIdx.x) % 128 / 32, 0), lane = threadIdx.x % 32, g8 = lane / 4, t2 = lane % 4 * 2;
  const int row = 16 * warp + g8, step = 64 * W + row;  // the first of the lane's two rows of the warpgroup; of the chunk
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(shared + offset); };
  float *const sumOwn = floats(Layout::sumOwn) + (W * 4 + warp) * 64, *const sumShared = floats(Layout::sumShared) + warp * 64;
  float *const rowOwn = floats(Layout::rowOwn), *const rowShared = floats(Layout::rowShared);
  float *const diagonals = floats(Layout::diagonal), *const products = floats(Layout::product);

  const uint32_t ownRows = KeyTile::rowOffset(64 * W), lateRows = KeyTile::rowOffset(64), partRows = KeyTile::rowOffset(64 + 32 * W);
  const uint64_t keys = tileDescriptor(base + Layout::keys, KeyTile::slabBytes);
  const uint64_t queries = tileDescriptor(base + Layout::queries, KeyTile::slabBytes);
  const uint64_t ownKeys = shifted(keys, ownRows), ownQueries = shifted(queries, ownRows);
  const uint64_t ownR = tileDescriptor(base + Layout::own + W * SquareTile::bytes), sharedR = tileDescriptor(base + Layout::shared);
  const uint64_t sharedAtt = tileDescriptor(base + Layout::att);
  const int ownSquare = Layout::own + W * SquareTile::bytes;

  // Of a tile of 64 channels the first two pieces of the warp's rows, as ldmatrix and stmatrix take them; ^ 32 k: the k-th two.
  const uint32_t piece = SquareTile::offset(16 * warp + lane % 16, lane / 16), fragment = 64 * W * 128 + piece;
  const uint32_t ownPiece = base + ownSquare + piece, sharedPiece = base + Layout::shared + piece;

  float dq[64], dk[64];
#pragma unroll 1
  for (int i = 0, noteSlot = 0;; i++, noteSlot = noteSlot == kNoteSlots - 1 ? 0 : noteSlot + 1) {
    const auto place = [&](int which) { return TilePlace(which, anew(i)); };
    const auto tileOf = [&](int which) { return base + Layout::ring + place(which).slot * Layout::tile; };
    const auto tile = [&](int which) { return tileDescriptor(tileOf(which)); };
    const auto wait = [&](int which) { waitBarrier(full + 8 * place(which).slot, place(which).parity); };
    const auto release = [&](int which) {
      __syncwarp();
      if (lane == 0) arrive(empty + 8 * place(which).slot);
    };
    const unsigned char* note = shared + Layout::notes + noteSlot * Layout::note;
    const float* scalars = reinterpret_cast<const float*>(note);
    const auto scalar = [&](int kind, int t) { return DECAY ? scalars[kind * kSteps + t] : 1.f; };
    const auto at = [&]() -> const StagePlace& { return *reinterpret_cast<const StagePlace*>(note + Layout::place); };
    const bool decays = DECAY && task.sums;

    wait(V);
    if (at().flags & NEW_KEYS) {
#pragma unroll
      for (int j = 0; j < 64; j++) dq[j] = dk[j] = 0.f;
      waitBarrier(keysFull, at().flags & KEYS_PARITY ? 1 : 0);
    }
    wait(DO);

    // ---- the own triangle
    uint32_t att[4][4];
    {
      const uint64_t v = tile(V), dO = tile(DO);
      float raw[32], dp[32];
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 8; k++)
        multiply<T, false, false>(raw, shifted(ownKeys, KeyTile::channels(k)), shifted(ownQueries, KeyTile::channels(k)), k > 0);
#pragma unroll
      for (int k = 0; k < 4; k++)
        multiply<T, false, false>(dp, shifted(v, ownRows + ValueTile::channels(k)), shifted(dO, ownRows + ValueTile::channels(k)), k > 0);
      commitProducts();
      if (i) syncThreads(BARRIER_FREE + W, kConsumers);  // the other warpgroup has read the squares and sums of the stage before
      float log2[2], weight[2], out[2] = {};
#pragma unroll
      for (int h = 0; h < 2; h++) log2[h] = scalar(LOG2, step + 8 * h) - task.log2Scale, weight[h] = scalar(WEIGHT, step + 8 * h);
      waitProducts<0>();
      settle(raw);
      settle(dp);
      const int ahead = t2 - row;  // the lane's first query less its first key
      float ownRaw[2] = {}, ownDp[2] = {};  // on the diagonal, which no decay crosses: the sums leave it out
      float in[16] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {  // 16 queries
        uint32_t r[4] = {};
        if (k < warp) {
#pragma unroll
          for (int e = 0; e < 4; e++) att[k][e] = 0;
        } else {
#pragma unroll
          for (int j = 2 * k; j < 2 * k + 2; j++) {
            float x[4], a[4], c[4];
#pragma unroll
            for (int e = 0; e < 4; e++) x[e] = s.scale;
            if constexpr (DECAY) {
              const float2 late = *reinterpret_cast<const float2*>(scalars + LOG2 * kSteps + 64 * W + 8 * j + t2);
#pragma unroll
              for (int e = 0; e < 4; e++) x[e] = exp2Approximate((e % 2 ? late.y : late.x) - log2[e / 2]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
              if (ahead <= 8 * (e / 2) - 8 * j - e % 2) x[e] = 0.f;
              const float b = dp[4 * j + e] * x[e];
              a[e] = raw[4 * j + e] * x[e], c[e] = DECAY ? b * weight[e / 2] : b;
              if constexpr (DECAY) {
                out[e / 2] = fmaf(b, raw[4 * j + e], out[e / 2]);
                in[2 * j + e % 2] = fmaf(c[e], raw[4 * j + e], in[2 * j + e % 2]);
              }
            }
            att[k][j % 2 * 2] = pack2<T>(a[0], a[1]), att[k][j % 2 * 2 + 1] = pack2<T>(a[2], a[3]);
            r[j % 2 * 2] = pack2<T>(c[0], c[1]), r[j % 2 * 2 + 1] = pack2<T>(c[2], c[3]);
            const int h = j % 2, e = 4 * j + 2 * h;  // the diagonal of 16 x 16 crosses these
            if (k == warp) ownRaw[h] = g8 % 2 ? raw[e + 1] : raw[e], ownDp[h] = g8 % 2 ? dp[e + 1] : dp[e];
          }
        }
        stmatrix4(ownPiece ^ (k * 32), r);
      }
      if (decays) sumColumns(in, sumOwn, lane);
      const int again = anew(lane) / 4, place = 16 * anew(warp) + again;  // the first of the lane's rows
      const bool onDiagonal = lane % 4 == again / 2;
      __syncwarp();
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float a = ownRaw[h] * s.scale, c = ownDp[h] * s.scale * weight[h];
        const uint32_t keep = again % 2 ? 0xffffu : 0xffff0000u, pair = again % 2 ? pack2<T>(0.f, a) : pack2<T>(a, 0.f);
#pragma unroll
        for (int k = 0; k < 4; k++)
          if (onDiagonal && k == warp) att[k][3 * h] = (att[k][3 * h] & keep) | pair;
        if (onDiagonal) {
          *reinterpret_cast<T*>(shared + ownSquare + SquareTile::offset(place + 8 * h, place / 8 + h) + again * 2) = fromFloat<T>(c);
          if (DECAY) diagonals[64 * W + place + 8 * h] = ownDp[h] * a, products[64 * W + place + 8 * h] = ownDp[h];
        }
      }
      if (decays) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          out[h] = sumQuad(out[h]);
          if (t2 == 0) rowOwn[step + 8 * h] = out[h];
        }
      }
    }
    // ---- the shared triangle, while products with the own one run
    wait(DS);
    const uint64_t v = tile(V), dO = tile(DO), dS = tile(DS);
    float dv[32], lateRaw[16], lateDp[16];
    fenceProducts();
#pragma unroll
    for (int k = 0; k < 8; k++)
      multiply<T, false, false>(lateRaw, shifted(keys, KeyTile::channels(k)), shifted(queries, partRows + KeyTile::channels(k)), k > 0);
#pragma unroll
    for (int k = 0; k < 4; k++)
      multiply<T, false, false>(lateDp, shifted(v, ValueTile::channels(k)), shifted(dO, partRows + ValueTile::channels(k)), k > 0);
    commitProducts();
#pragma unroll
    for (int k = 0; k < 8; k++)
      multiply<T, false, true>(dv, shifted(ownKeys, KeyTile::channels(k)), shifted(dS, StateTile::rowOffset(16 * k)), k > 0);
    commitProducts();
    fenceAsyncProxy();
    syncWarpgroup(BARRIER_OWN + W);
    fenceProducts();
#pragma unroll
    for (int k = 0; k < 4; k++)
      multiply<T, false, true>(dk, shifted(ownR, SquareTile::channels(k)), shifted(ownQueries, KeyTile::rowOffset(16 * k)), true);
#pragma unroll
    for (int k = 0; k < 4; k++)
      multiply<T, true, true>(dq, shifted(ownR, SquareTile::rowOffset(16 * k)), shifted(ownKeys, KeyTile::rowOffset(16 * k)), true);
    commitProducts();
    {
      float early[2], weight[2], out[2] = {};
#pragma unroll
      for (int h = 0; h < 2; h++) early[h] = scalar(MIDDLE, row + 8 * h) * s.scale, weight[h] = scalar(WEIGHT, row + 8 * h);
      waitProducts<2>();
      settle(lateRaw);
      settle(lateDp);
      float in[8] = {};
#pragma unroll
      for (int k = 0; k < 2; k++) {
        uint32_t a[4], r[4];
#pragma unroll
        for (int j = 2 * k; j < 2 * k + 2; j++) {
          float2 late = {1.f, 1.f};
          if (DECAY) late = *reinterpret_cast<const float2*>(scalars + MIDDLE * kSteps + 64 + 32 * W + 8 * j + t2);
#pragma unroll
          for (int h = 0; h < 2; h++) {
            float x[2], c[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const float f = early[h] * (e ? late.y : late.x), b = lateDp[4 * j + 2 * h + e] * f;
              x[e] = lateRaw[4 * j + 2 * h + e] * f, c[e] = DECAY ? b * weight[h] : b;
              out[h] = fmaf(b, lateRaw[4 * j + 2 * h + e], out[h]);
              in[2 * j + e] = fmaf(c[e], lateRaw[4 * j + 2 * h + e], in[2 * j + e]);
            }
            a[j % 2 * 2 + h] = pack2<T>(x[0], x[1]), r[j % 2 * 2 + h] = pack2<T>(c[0], c[1]);
          }
        }
        stmatrix4(sharedPiece ^ (W * 64 + k * 32), r);
        stmatrix4((sharedPiece ^ (W * 64 + k * 32)) + (Layout::att - Layout::shared), a);
      }
      if (decays) sumColumns(in, sumShared + 32 * W, lane);
      if (decays) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          out[h] = sumQuad(out[h]);
          if (t2 == 0) rowShared[64 * W + row + 8 * h] = out[h];
        }
      }
    }
    fenceAsyncProxy();
    arriveThreads(BARRIER_BOTH + 1 - W, kConsumers);

    // ---- dv, and what else the shared triangle gives
    waitProducts<1>();
    settle(dv);
    float carried[2] = {};
    uint32_t x[4][4], upstream[4][4];
    if constexpr (DECAY) {
      const uint32_t values = tileOf(V);
#pragma unroll
      for (int k = 0; k < 4; k++) ldmatrix4(x[k], values + (fragment ^ (k * 32)));
      const float behind[2] = {scalar(BEHIND, step), scalar(BEHIND, step + 8)};
      const float factor[2] = {behind[0] * scalar(WEIGHT, step), behind[1] * scalar(WEIGHT, step + 8)};
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 value = unpack2<T>(x[k][j]);
          float* d = dv + 8 * k + 2 * j;
          d[0] *= behind[j % 2], d[1] *= behind[j % 2];
          carried[j % 2] = fmaf(value.y, d[1], fmaf(value.x, d[0], carried[j % 2]));
          x[k][j] = pack2<T>(value.x * factor[j % 2], value.y * factor[j % 2]);
        }
      if (g.wantsSkip && s.skip.wide) wideSkipGradient<T>(s, g, at(), shared, place(V).slot, place(DO).slot, 4 * W + warp, lane);
      release(V);
    }
    syncThreads(BARRIER_BOTH + W, kConsumers);
    {
      const uint64_t v = tile(V), dO = tile(DO), dS = tile(DS);
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 4; k++) multiply<T, true>(dv, att[k], shifted(dO, ownRows + ValueTile::rowOffset(16 * k)), true);
      if (W == 0)
#pragma unroll
        for (int k = 0; k < 4; k++)
          multiply<T, false, true>(dv, shifted(sharedAtt, SquareTile::channels(k)), shifted(dO, lateRows + ValueTile::rowOffset(16 * k)),
                                   true);
      commitProducts();
#pragma unroll
      for (int k = 0; k < 4; k++) {
        if (W == 0)
          multiply<T, false, true>(dk, shifted(sharedR, SquareTile::channels(k)), shifted(queries, lateRows + KeyTile::rowOffset(16 * k)),
                                   true);
        else multiply<T, true, true>(dq, shifted(sharedR, SquareTile::rowOffset(16 * k)), shifted(keys, KeyTile::rowOffset(16 * k)), true);
      }
#pragma unroll
      for (int k = 0; k < 4; k++) {
        if constexpr (DECAY) multiply<T, false>(dk, x[k], shifted(dS, StateTile::channels(k)), true);
        else multiply<T, false, false>(dk, shifted(v, ownRows + ValueTile::channels(k)), shifted(dS, StateTile::channels(k)), true);
      }
      commitProducts();
    }

    if (W == 0 && DECAY && g.wantsSkip && !s.skip.wide && warp == 0) {
      const float4 sums = reinterpret_cast<const float4*>(products)[lane];
      const float sum = warpReduce((sums.x + sums.y) + (sums.z + sums.w));
      if (lane == 0) g.skipParts[at().skip] = sum;
    }
    if constexpr (DECAY) {
      const uint32_t gradients = tileOf(DO);
#pragma unroll
      for (int k = 0; k < 4; k++) ldmatrix4(upstream[k], gradients + (fragment ^ (k * 32)));
    }
    waitProducts<1>();
    settle(dv);
#pragma unroll
    for (int k = 0; k < 4; k++) settle(att[k]);
    syncWarpgroup(BARRIER_OWN + W);  // the own square is free for bringing results into rows
    const auto store = [&](const float* d, const Operand& result, int64_t first) {  // 64 channels
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t p[4];
#pragma unroll
        for (int j = 0; j < 4; j++) p[j] = pack2<T>(d[8 * k + 2 * j], d[8 * k + 2 * j + 1]);
        stmatrix4(ownPiece ^ (k * 32), p);
      }
      __syncwarp();
      const int own = 16 * warp + lane / 8, rows = at().rows - 64 * W - own;
      const int64_t stride = 4 * result.time;
      T* to = static_cast<T*>(result.data) + first + (64 * W + own) * result.time + lane % 8 * 8;
      uint4 words[4];
#pragma unroll
      for (int n = 0; n < 4; n++)
        words[n] = *reinterpret_cast<const uint4*>(shared + ownSquare + SquareTile::offset(own + 4 * n, lane % 8));
#pragma unroll
      for (int n = 0; n < 4; n++, to += stride)
        if (4 * n < rows) *reinterpret_cast<uint4*>(to) = words[n];
      __syncwarp();
    };
    if (g.dv.given) {
      if constexpr (DECAY) {
        const float weight[2] = {scalar(WEIGHT, step), scalar(WEIGHT, step + 8)};
#pragma unroll
        for (int j = 0; j < 16; j++) dv[2 * j] *= weight[j % 2], dv[2 * j + 1] *= weight[j % 2];
        if (task.skip)
#pragma unroll
          for (int j = 0; j < 16; j++) {
            const float2 skip = *reinterpret_cast<const float2*>(note + Layout::skip + (j / 2 * 8 + t2) * 4);
            const float2 dy = unpack2<T>(upstream[j / 4][j % 4]);
            dv[2 * j] = fmaf(skip.x, dy.x, dv[2 * j]), dv[2 * j + 1] = fmaf(skip.y, dy.y, dv[2 * j + 1]);
          }
      }
      store(dv, g.dv, at().values);
    }
    if constexpr (DECAY) release(DO);

    // ---- what comes from the state before the chunk
    wait(S);
    const uint64_t state = tile(S);
    float inter[2] = {}, through = 0.f;
    if constexpr (DECAY) {
      if (decays) through = statesProduct<T>(tileOf(S) + fragment, tileOf(DS) + fragment) * scalar(BEFORE, kSteps - 1);
      float qS[32];
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 8; k++)
        multiply<T, false, true>(qS, shifted(ownQueries, KeyTile::channels(k)), shifted(state, StateTile::rowOffset(16 * k)), k > 0);
      commitProducts();
      waitProducts<1>();  // x is free
#pragma unroll
      for (int k = 0; k < 4; k++) settle(x[k]);
      const float before[2] = {scalar(BEFORE, step) * s.scale, scalar(BEFORE, step + 8) * s.scale};
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 dy = unpack2<T>(upstream[k][j]);
          x[k][j] = pack2<T>(dy.x * before[j % 2], dy.y * before[j % 2]);
        }
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 4; k++) multiply<T, false>(dq, x[k], shifted(state, StateTile::channels(k)), true);
      commitProducts();
      waitProducts<1>();
      settle(qS);
      if ((at().flags & LAST_OF_KEYS) && lane == 0) arrive(keysEmpty);
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 dy = unpack2<T>(upstream[k][j]);
          inter[j % 2] = fmaf(dy.y, qS[8 * k + 2 * j + 1], fmaf(dy.x, qS[8 * k + 2 * j], inter[j % 2]));
        }
#pragma unroll
      for (int h = 0; h < 2; h++) inter[h] = sumQuad(inter[h]) * before[h], carried[h] = sumQuad(carried[h]);
    } else {
      const uint64_t dO = tile(DO);
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 4; k++)
        multiply<T, false, false>(dq, shifted(dO, ownRows + ValueTile::channels(k)), shifted(state, StateTile::channels(k)), true);
      commitProducts();
      waitProducts<1>();
      release(V);
      release(DS);
      if ((at().flags & LAST_OF_KEYS) && lane == 0) arrive(keysEmpty);
    }
    waitProducts<0>();
    settle(dq);
    settle(dk);
    if constexpr (DECAY) {
#pragma unroll
      for (int k = 0; k < 4; k++) settle(x[k]);
      release(DS);
    } else release(DO);
    release(S);
    if (decays) {
      if (t2 < 4) {  // two lanes of a quad take its two rows
        const int r = row + 4 * t2, t = 64 * W + r;
        const float *own = floats(Layout::sumOwn) + W * 4 * 64 + r, *late = floats(Layout::sumShared) + r;
        float in = (own[0] + own[64]) + (own[128] + own[192]), out = rowOwn[t];
        if (W == 0) out += rowShared[r] + rowShared[64 + r];
        else in += (late[0] + late[64]) + (late[128] + late[192]);
        float* const to = task.sums + int64_t(at().virtualHead) * (kGradientKinds * kSteps) + t;
        to[CROSSING * kSteps] = in - scalar(WEIGHT, t) * out + (t2 ? inter[1] : inter[0]);
        to[CARRIED * kSteps] = t2 ? carried[1] : carried[0];
        to[DIRECT * kSteps] = diagonals[t] + out + (t2 ? carried[1] : carried[0]);
      }
      if (lane == 0) task.through[int64_t(at().virtualHead) * kThroughParts + 4 * W + warp] = through;
    }
    const int flags = at().flags;
    if (!(flags & LAST_STAGE)) arriveThreads(BARRIER_FREE + 1 - W, kConsumers);

    if (flags & LAST_OF_KEYS) {
      const bool whole = (flags & FROM_START) && (flags & TO_END);
      const auto finish = [&](const float(&d)[64], const Operand& result, int64_t first, int which) {
        if (!result.given) return;
        if (whole) {
          store(d, result, first);
          store(d + 32, result, first + 64);
          return;
        }
        const int64_t part = int64_t(blockIdx.x) * 4 + (flags & FROM_START ? 2 : 0) + which;
        float* const to = task.parts + part * (kSteps * kKeys) + step * kKeys + t2;
#pragma unroll
        for (int j = 0; j < 32; j++) *reinterpret_cast<float2*>(to + j % 2 * 8 * kKeys + j / 2 * 8) = {d[2 * j], d[2 * j + 1]};
      };
      finish(dq, g.dq, at().queries, 0);
      finish(dk, g.dk, at().keys, 1);
    }
    if (flags & LAST_STAGE) return;
  }
}

template <class T, bool DECAY>
__global__ void __launch_bounds__(kGradientBlock, 1)
chunkGradientWgmmaKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task,
                         const __grid_constant__ Maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = GradientLayout;
  extern __shared__ __align__(1024) unsigned char dynamic[];
  unsigned char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers;
  const int64_t first = blockIdx.x * task.perBlock;
  const int count = int(min(task.perBlock, task.stages - first));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTiles; i++) initBarrier(full + 8 * i, 1), initBarrier(full + 8 * (kTiles + i), kConsumers / 32);
    initBarrier(full + 16 * kTiles, 1), initBarrier(full + 16 * kTiles + 8, kConsumers / 32);
    fenceBarriers();
  }
  __syncthreads();
  const int role = __shfl_sync(kAllLanes, int(threadIdx.x) / 128, 0);
  if (role == 2) {
    lowerRegisters<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produceStages(s, g, task, maps, shared, int(first), count);
  } else {
    raiseRegisters<kConsumerRegisters>();
    consumeStages<T, DECAY>(s, g, task, shared, role);
  }
#else
  __trap();
#endif
}

}  // namespace mm::cuda::chunk_scan::hopper
