// attention, backward. With P = exp(scale q k^T - lse), recomputed by block, delta = rowsum(dO o) - dLse and
// dS = P (dO v^T - delta):  dV = P^T dO, dK = scale dS^T q, dQ = scale dS k.
//
// Three passes: delta and lse in base 2; dK and dV by tiles of keys, past which the queries of all heads of the group run; dQ by
// tiles of queries, past which the keys run. S and dP are computed twice, seven products instead of five, and in return no
// gradient is ever summed across blocks: no atomics, the same bits every time.
//
// Tensor cores, dK and dV: a warp owns 16 MT keys and computes S^T and dP^T with k and v as A fragments, which stay in registers
// with both accumulators (192 registers at D = 128); P^T and dS^T then are the A fragments of the second products as they
// stand. Only q and dO pass through shared memory, in two stages of 64 queries, and no warp needs another's results. At
// D = 256 registers hold one accumulator, so dK and dV go apart and k and v stay in shared memory.
// Tensor cores, dQ: as the forward kernel, with half as many keys at once, since S and dP stand beside the accumulator.
//
// General: tiles in f32, see attention_tile.cuh. Where one tile holds all keys, one kernel computes everything.
#pragma once
#include "cuda/attention_forward.cuh"

namespace mm::cuda {

struct GeneralBackward {
  AnyView q, k, v, o, dO, dQ, dK, dV;
  const float *lse, *dLse;  // the call's
  float *lse2, *delta;      // of the first pass; null where there is none
  Storage storage;
};

// lse2 and delta of every row: eight lanes a row.
__global__ void __launch_bounds__(256) attentionRowSumsKernel(AttentionProblem p, int64_t rows, GeneralBackward x) {
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 8;
  const int lane = threadIdx.x % 8, h = int(row % p.heads);
  const int64_t l = row / p.heads % p.queries, b = row / p.heads / p.queries, at = (b * p.heads + h) * p.queries + l;
  float sum = 0.f;
  if (row < rows)
    withFloat(x.storage.dtype, [&](auto type) {
      using T = decltype(type);
      const T *o = rowsOf<const T>(x.o, int(b), int(l), h), *dO = rowsOf<const T>(x.dO, int(b), int(l), h);
      if (x.storage.vectors) {
        for (int j = lane * 4; j < p.dim; j += 32) {
          float a[4], d[4];
          loadFloats<4>(o + j, a);
          loadFloats<4>(dO + j, d);
#pragma unroll
          for (int e = 0; e < 4; e++) sum = fmaf(a[e], d[e], sum);
        }
      } else {
        for (int j = lane; j < p.dim; j += 8) sum = fmaf(toFloat(o[j]), toFloat(dO[j]), sum);
      }
    });
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (row < rows && lane == 0) {
    x.delta[at] = sum - (x.dLse ? x.dLse[at] : 0.f);
    x.lse2[at] = x.lse[at] == -INFINITY ? INFINITY : x.lse[at] * kLog2e;
  }
}

// ---- dK and dV on tensor cores
template <int D>
struct KeyGradientTile {
  static constexpr bool resident = D <= 128;  // k and v stay in registers
  static constexpr int MT = D <= 64 ? 2 : 1, warps = D > 64 && D <= 128 ? 8 : 4, threads = warps * 32;
  static constexpr int rows = warps * 16 * MT, queries = D > 128 ? 16 : 64, pieces = tilePieces(D), rowBytes = pieces * 16;
  static constexpr int keys = rows * rowBytes, operand = queries * rowBytes, stage = 2 * operand;  // bytes of k or v; of q or dO; of both
  static constexpr int tiles = resident ? (2 * keys > 2 * stage ? 2 * keys : 2 * stage) : 2 * keys + 2 * stage;
  static constexpr int shared = tiles + 2 * 2 * queries * 4;  // and lse2, delta of both stages
};

template <class T, int D, bool DK, bool DV>
__global__ void __launch_bounds__(KeyGradientTile<D>::threads, 256 / KeyGradientTile<D>::threads)
    attentionKeyGradientMmaKernel(AttentionProblem p, BackwardOperands<T> x) {
  using Tile = KeyGradientTile<D>;
  constexpr int MT = Tile::MT, PIECES = Tile::pieces, THREADS = Tile::threads, QUERIES = Tile::queries;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int kvHead = int(blockIdx.x) % p.kvHeads;  // early keys first: most queries see them under a causal mask
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, true>(p, int(blockIdx.x) / p.kvHeads, s, first)) return;
  const int warpRow = warp * 16 * MT, key = first + warpRow, keys = min(16 * MT, s.keys - key), offset = s.keys - s.queries;
  const Span queries = p.queriesOf(s, first, min(first + Tile::rows, s.keys));
  const uint32_t kTile = sharedAddress(shared), vTile = kTile + Tile::keys;
  const uint32_t stages = Tile::resident ? kTile : kTile + 2 * Tile::keys, stats = kTile + Tile::tiles;
  const uint32_t lanesA = rowsFirst<PIECES>(lane), lanesB = piecesFirst<PIECES>(lane);

  loadTile<Tile::rows, PIECES, THREADS>(kTile, x.k.at(s.batch, s.firstKey + first, kvHead), x.k.row, s.keys - first, p.dim, threadIdx.x);
  loadTile<Tile::rows, PIECES, THREADS>(vTile, x.v.at(s.batch, s.firstKey + first, kvHead), x.v.row, s.keys - first, p.dim, threadIdx.x);
  commitAsync();
  waitAsync<0>();
  __syncthreads();
  constexpr int HELD = Tile::resident ? D / 16 : 1;
  uint32_t kHeld[HELD][MT][4], vHeld[HELD][MT][4];
  if constexpr (Tile::resident) {
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
      for (int m = 0; m < MT; m++) {
        ldmatrix4(kHeld[i][m], blockAddress<PIECES>(kTile + warpRow * PIECES * 16, lanesA, m * 16, i * 2));
        ldmatrix4(vHeld[i][m], blockAddress<PIECES>(vTile + warpRow * PIECES * 16, lanesA, m * 16, i * 2));
      }
    __syncthreads();
  }

  // Steps run over the heads of the group and, within a head, over blocks of queries.
  const int blocks = queries.end > queries.begin ? (queries.end - queries.begin + QUERIES - 1) / QUERIES : 0, steps = blocks * p.group;
  int loadHead = kvHead * p.group, loadQuery = queries.begin;
  const auto load = [&](int step) {
    const uint32_t stage = stages + (step & 1) * Tile::stage, stat = stats + (step & 1) * 2 * QUERIES * 4;
    const int rows = queries.end - loadQuery;
    const int64_t l = s.firstQuery + loadQuery;
    loadTile<QUERIES, PIECES, THREADS>(stage, x.q.at(s.batch, l, loadHead), x.q.row, rows, p.dim, threadIdx.x);
    loadTile<QUERIES, PIECES, THREADS>(stage + Tile::operand, x.dO.at(s.batch, l, loadHead), x.dO.row, rows, p.dim, threadIdx.x);
    if (threadIdx.x < 2 * QUERIES) {
      const int i = threadIdx.x % QUERIES;
      const float* from = (threadIdx.x < QUERIES ? x.lse2 : x.delta) + (int64_t(s.batch) * p.heads + loadHead) * p.queries + l;
      copyAsync4(stat + threadIdx.x * 4, i < rows ? from + i : from, i < rows);
    }
    commitAsync();
    loadQuery += QUERIES;
    if (loadQuery >= queries.end) loadQuery = queries.begin, loadHead++;
  };

  float dK[DK ? MT : 1][D / 8][4] = {}, dV[DV ? MT : 1][D / 8][4] = {};
  if (steps) load(0);
  int query = queries.begin;
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    waitAsync<0>();
    __syncthreads();
    if (step + 1 < steps) load(step + 1);
    const uint32_t qTile = stages + (step & 1) * Tile::stage, dOTile = qTile + Tile::operand;
    const float* stat = reinterpret_cast<const float*>(shared + Tile::tiles) + (step & 1) * 2 * QUERIES;
#pragma unroll 1
    for (int i = 0; i < QUERIES; i += 16) {
      const int begin = query + i, low = begin + offset, high = low + 15;  // key positions of the 16 queries
      if (keys <= 0 || begin >= queries.end) break;
      if ((p.right >= 0 && key > high + p.right) || (p.left >= 0 && key + 16 * MT - 1 < low - p.left)) continue;
      float w[MT][2][4] = {}, dP[MT][2][4] = {};
#pragma unroll
      for (int k = 0; k < D / 16; k++) {
        uint32_t fb[4];
        if constexpr (!Tile::resident) {
#pragma unroll
          for (int m = 0; m < MT; m++) {
            ldmatrix4(kHeld[0][m], blockAddress<PIECES>(kTile + warpRow * PIECES * 16, lanesA, m * 16, k * 2));
            if constexpr (DK) ldmatrix4(vHeld[0][m], blockAddress<PIECES>(vTile + warpRow * PIECES * 16, lanesA, m * 16, k * 2));
          }
        }
        ldmatrix4(fb, blockAddress<PIECES>(qTile + i * PIECES * 16, lanesB, 0, k * 2));
#pragma unroll
        for (int m = 0; m < MT; m++) mma161616<T>(w[m][0], w[m][1], kHeld[Tile::resident ? k : 0][m], fb);
        if constexpr (DK) {
          ldmatrix4(fb, blockAddress<PIECES>(dOTile + i * PIECES * 16, lanesB, 0, k * 2));
#pragma unroll
          for (int m = 0; m < MT; m++) mma161616<T>(dP[m][0], dP[m][1], vHeld[Tile::resident ? k : 0][m], fb);
        }
      }
      if ((p.right >= 0 && key + 16 * MT - 1 > low + p.right) || (p.left >= 0 && key < high - p.left)) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
              const int j = key + m * 16 + e / 2 * 8 + lane / 4, at = low + n * 8 + lane % 4 * 2 + e % 2;
              if ((p.right >= 0 && j > at + p.right) || (p.left >= 0 && j < at - p.left)) w[m][n][e] = -INFINITY;
            }
      }
      uint32_t weights[MT][4], slopes[MT][4];
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const float2 lse2 = *reinterpret_cast<const float2*>(stat + i + n * 8 + lane % 4 * 2);
        const float2 delta = *reinterpret_cast<const float2*>(stat + QUERIES + i + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            w[m][n][e] = exp2Approximate(fmaf(w[m][n][e], p.scaleLog2, e % 2 ? -lse2.y : -lse2.x));
            if constexpr (DK) dP[m][n][e] = w[m][n][e] * (dP[m][n][e] - (e % 2 ? delta.y : delta.x));
          }
      }
#pragma unroll
      for (int m = 0; m < MT; m++) {
        packFragment<T>(weights[m], w[m][0], w[m][1]);
        packFragment<T>(slopes[m], dP[m][0], dP[m][1]);
      }
      if constexpr (DV) addRows<T, D, MT>(dV, weights, dOTile + i * PIECES * 16, 0, lanesA);
      if constexpr (DK) addRows<T, D, MT>(dK, slopes, qTile + i * PIECES * 16, 0, lanesA);
    }
    query += QUERIES;
    if (query >= queries.end) query = queries.begin;
  }

  __syncthreads();  // k and v's place serves to bring the gradients into whole rows
  if (keys <= 0) return;
#pragma unroll
  for (int m = 0; m < MT; m++) {
    if constexpr (DK) stageRows<T, PIECES>(shared, warpRow + m * 16, dK[m], p.scale, p.scale, lane);
    if constexpr (DV) stageRows<T, PIECES>(shared + Tile::keys, warpRow + m * 16, dV[m], 1.f, 1.f, lane);
  }
  __syncwarp();
  const int64_t l = s.firstKey + key;
  if (DK && x.dK.data) storeRows<T, PIECES>(shared, warpRow, x.dK.at(s.batch, l, kvHead), x.dK.row, keys, p.dim, lane);
  if (DV && x.dV.data) storeRows<T, PIECES>(shared + Tile::keys, warpRow, x.dV.at(s.batch, l, kvHead), x.dV.row, keys, p.dim, lane);
}

// ---- dQ on tensor cores
template <int D, int MT>
struct QueryGradientTile {
  static constexpr int threads = 128, rows = 64 * MT, keys = D > 128 ? 16 : 32, pieces = tilePieces(D), rowBytes = pieces * 16;
  static constexpr int held = rows * rowBytes, operand = keys * rowBytes;  // bytes of q or dO; of a block of k or v
  static constexpr int shared = 2 * held + 2 * 2 * operand;
};

template <class T, int D, int MT>
__global__ void __launch_bounds__(128, 2) attentionQueryGradientMmaKernel(AttentionProblem p, BackwardOperands<T> x) {
  using Tile = QueryGradientTile<D, MT>;
  constexpr int PIECES = Tile::pieces, KEYS = Tile::keys;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head = int(blockIdx.x) % p.heads, slot = int(gridDim.x) / p.heads - 1 - int(blockIdx.x) / p.heads;
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, false>(p, slot, s, first)) return;
  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, min(first + Tile::rows, s.queries) - 1).end};
  const int blocks = keys.end > keys.begin ? (keys.end - keys.begin + KEYS - 1) / KEYS : 0;
  const int warpRow = warp * 16 * MT, query = first + warpRow, queries = min(16 * MT, s.queries - query);
  const Span early = p.keysOf(s, query), late = p.keysOf(s, query + queries - 1);

  const uint32_t qTile = sharedAddress(shared), dOTile = qTile + Tile::held, stages = dOTile + Tile::held;
  const T *k = x.k.at(s.batch, s.firstKey + keys.begin, head / p.group), *v = x.v.at(s.batch, s.firstKey + keys.begin, head / p.group);
  const auto load = [&](int j) {
    const uint32_t stage = stages + (j & 1) * 2 * Tile::operand;
    const int rows = keys.end - keys.begin - j * KEYS;
    loadTile<KEYS, PIECES, Tile::threads>(stage, k + int64_t(j) * KEYS * x.k.row, x.k.row, rows, p.dim, threadIdx.x);
    loadTile<KEYS, PIECES, Tile::threads>(stage + Tile::operand, v + int64_t(j) * KEYS * x.v.row, x.v.row, rows, p.dim, threadIdx.x);
    commitAsync();
  };

  float dQ[MT][D / 8][4] = {}, lse2[MT][2], delta[MT][2];
  const uint32_t lanesA = rowsFirst<PIECES>(lane), lanesB = piecesFirst<PIECES>(lane);
  if (blocks) {
    const int64_t l = s.firstQuery + first;
    loadTile<Tile::rows, PIECES, Tile::threads>(qTile, x.q.at(s.batch, l, head), x.q.row, s.queries - first, p.dim, threadIdx.x);
    loadTile<Tile::rows, PIECES, Tile::threads>(dOTile, x.dO.at(s.batch, l, head), x.dO.row, s.queries - first, p.dim, threadIdx.x);
    load(0);
  }
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = m * 16 + h * 8 + lane / 4;
      const int64_t at = (int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + query + i;
      lse2[m][h] = i < queries ? x.lse2[at] : INFINITY;
      delta[m][h] = i < queries ? x.delta[at] : 0.f;
    }
#pragma unroll 1
  for (int j = 0; j < blocks; j++) {
    waitAsync<0>();
    __syncthreads();
    if (j + 1 < blocks) load(j + 1);
    const int key = keys.begin + j * KEYS;
    if (queries <= 0 || key >= late.end || key + KEYS <= early.begin) continue;
    const uint32_t kTile = stages + (j & 1) * 2 * Tile::operand, vTile = kTile + Tile::operand;
    float w[MT][KEYS / 8][4], dP[MT][KEYS / 8][4];
    scoreTile<T, D, MT, KEYS>(w, qTile, warpRow, kTile, lanesA, lanesB);
    scoreTile<T, D, MT, KEYS>(dP, dOTile, warpRow, vTile, lanesA, lanesB);
    if (late.begin > key || early.end < key + KEYS) maskScores<MT, KEYS>(w, p, s, query, key, lane);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
      uint32_t slopes[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 2 * i; n < 2 * i + 2; n++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            dP[m][n][e] = exp2Approximate(fmaf(w[m][n][e], p.scaleLog2, -lse2[m][e / 2])) * (dP[m][n][e] - delta[m][e / 2]);
        packFragment<T>(slopes[m], dP[m][2 * i], dP[m][2 * i + 1]);
      }
      addRows<T, D, MT>(dQ, slopes, kTile, i * 16, lanesA);
    }
  }

  if (queries <= 0) return;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < MT; m++) stageRows<T, PIECES>(shared, warpRow + m * 16, dQ[m], p.scale, p.scale, lane);
  __syncwarp();
  storeRows<T, PIECES>(shared, warpRow, x.dQ.at(s.batch, s.firstQuery + query, head), x.dQ.row, queries, p.dim, lane);
}

// ---- general
template <class Tile>
constexpr int kBackwardFloats = 2 * (Tile::rows + Tile::cols) * Tile::ld + 2 * Tile::rows * Tile::lds + 2 * Tile::cols;

// dK and dV of a tile of keys. ALL: the tile holds all keys of its sequence, so that dQ is complete here, and no pass went before.
template <class Tile, bool ALL>
__global__ void __launch_bounds__(Tile::threads) attentionKeyGradientTileKernel(AttentionProblem p, GeneralBackward x) {
  constexpr int RM = Tile::RM, CN = Tile::CN;
  static_assert(!ALL || (Tile::rows == Tile::cols && Tile::cols % Tile::TY == 0), "rows of dQ are shared out like those of dK");
  extern __shared__ __align__(128) char shared[];
  float *k = reinterpret_cast<float*>(shared), *v = k + Tile::rows * Tile::ld;
  float *q = v + Tile::rows * Tile::ld, *dO = q + Tile::cols * Tile::ld;
  float *w = dO + Tile::cols * Tile::ld, *dS = w + Tile::rows * Tile::lds, *lse2 = dS + Tile::rows * Tile::lds, *delta = lse2 + Tile::cols;
  const int tx = threadIdx.x % Tile::TX, ty = threadIdx.x / Tile::TX;
  const int kvHead = int(blockIdx.x) % p.kvHeads;
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, true>(p, int(blockIdx.x) / p.kvHeads, s, first)) return;
  const int keys = min(Tile::rows, s.keys - first);
  const Span queries = ALL ? Span{0, s.queries} : p.queriesOf(s, first, first + keys);
  loadFloatRows<Tile, Tile::rows>(k, x.storage, x.k, s.batch, s.firstKey + first, kvHead, keys, p.dim, 1.f);
  loadFloatRows<Tile, Tile::rows>(v, x.storage, x.v, s.batch, s.firstKey + first, kvHead, keys, p.dim, 1.f);

  float dK[RM][Tile::NV][Tile::width] = {}, dV[RM][Tile::NV][Tile::width] = {}, ones[RM], scales[RM];
#pragma unroll
  for (int i = 0; i < RM; i++) ones[i] = 1.f, scales[i] = kLn2;  // q was scaled by scale log2(e)
  for (int head = kvHead * p.group; head < (kvHead + 1) * p.group; head++)
    for (int query = queries.begin; query < queries.end; query += Tile::cols) {
      const int count = min(Tile::cols, queries.end - query), l = s.firstQuery + query;
      const int64_t stat = (int64_t(s.batch) * p.heads + head) * p.queries + l;
      __syncthreads();
      loadFloatRows<Tile, Tile::cols>(q, x.storage, x.q, s.batch, l, head, count, p.dim, p.scaleLog2);
      loadFloatRows<Tile, Tile::cols>(dO, x.storage, x.dO, s.batch, l, head, count, p.dim, 1.f);
      if constexpr (ALL) {
        __syncthreads();
        withFloat(x.storage.dtype, [&](auto type) {
          using T = decltype(type);
          const T* o = rowsOf<const T>(x.o, s.batch, l, head);
          for (int i = threadIdx.x / 8; i < Tile::cols; i += Tile::threads / 8) {
            float sum = 0.f;
            if (i < count)
              for (int j = threadIdx.x % 8; j < p.dim; j += 8) sum = fmaf(toFloat(o[i * x.o.row + j]), dO[i * Tile::ld + j], sum);
#pragma unroll
            for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
            if (threadIdx.x % 8 == 0) {
              delta[i] = i < count ? sum - (x.dLse ? x.dLse[stat + i] : 0.f) : 0.f;
              lse2[i] = i < count ? (x.lse[stat + i] == -INFINITY ? INFINITY : x.lse[stat + i] * kLog2e) : 0.f;
            }
          }
        });
      } else {
        for (int i = threadIdx.x; i < Tile::cols; i += Tile::threads) {
          lse2[i] = i < count ? x.lse2[stat + i] : 0.f;
          delta[i] = i < count ? x.delta[stat + i] : 0.f;
        }
      }
      __syncthreads();
      float scores[RM][CN], dP[RM][CN];
      dotRows<Tile>(scores, k, q, ty, tx);
      dotRows<Tile>(dP, v, dO, ty, tx);
#pragma unroll
      for (int j = 0; j < CN; j++) {
        const int c = tx + Tile::TX * j;
        const Span seen = p.keysOf(s, query + c);
#pragma unroll
        for (int i = 0; i < RM; i++) {
          const int r = ty + Tile::TY * i;
          const float weight = first + r >= seen.begin && first + r < seen.end ? exp2f(scores[i][j] - lse2[c]) : 0.f;
          w[r * Tile::lds + c] = weight;
          dS[r * Tile::lds + c] = weight * (dP[i][j] - delta[c]);
        }
      }
      __syncwarp();
      if (x.dV.data) addWeighted<Tile>(dV, w, dO, ty, tx);
      if (x.dK.data) addWeighted<Tile>(dK, dS, q, ty, tx);
      if constexpr (ALL) {
        if (!x.dQ.data) continue;
        __syncthreads();
        float dQ[RM][Tile::NV][Tile::width] = {}, factor[RM];
#pragma unroll
        for (int i = 0; i < RM; i++) factor[i] = p.scale;
#pragma unroll 2
        for (int c = 0; c < Tile::rows; c++)
#pragma unroll
          for (int n = 0; n < Tile::NV; n++) {
            const auto y = *reinterpret_cast<const Pack<float, Tile::width>*>(k + c * Tile::ld + (tx + Tile::TX * n) * Tile::width);
#pragma unroll
            for (int i = 0; i < RM; i++)
#pragma unroll
              for (int e = 0; e < Tile::width; e++) dQ[i][n][e] = fmaf(dS[c * Tile::lds + ty + Tile::TY * i], y.v[e], dQ[i][n][e]);
          }
        storeFloatRows<Tile>(dQ, factor, x.storage, x.dQ, s.batch, l, head, count, p.dim, ty, tx);
      }
    }
  if (x.dK.data) storeFloatRows<Tile>(dK, scales, x.storage, x.dK, s.batch, s.firstKey + first, kvHead, keys, p.dim, ty, tx);
  if (x.dV.data) storeFloatRows<Tile>(dV, ones, x.storage, x.dV, s.batch, s.firstKey + first, kvHead, keys, p.dim, ty, tx);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads) attentionQueryGradientTileKernel(AttentionProblem p, GeneralBackward x) {
  constexpr int RM = Tile::RM, CN = Tile::CN;
  extern __shared__ __align__(128) char shared[];
  float *q = reinterpret_cast<float*>(shared), *dO = q + Tile::rows * Tile::ld;
  float *k = dO + Tile::rows * Tile::ld, *v = k + Tile::cols * Tile::ld, *dS = v + Tile::cols * Tile::ld;
  const int tx = threadIdx.x % Tile::TX, ty = threadIdx.x / Tile::TX;
  const int head = int(blockIdx.x) % p.heads, slot = int(gridDim.x) / p.heads - 1 - int(blockIdx.x) / p.heads, kvHead = head / p.group;
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, false>(p, slot, s, first)) return;
  const int queries = min(Tile::rows, s.queries - first), l = s.firstQuery + first;
  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, first + queries - 1).end};
  loadFloatRows<Tile, Tile::rows>(q, x.storage, x.q, s.batch, l, head, queries, p.dim, p.scaleLog2);
  loadFloatRows<Tile, Tile::rows>(dO, x.storage, x.dO, s.batch, l, head, queries, p.dim, 1.f);

  float dQ[RM][Tile::NV][Tile::width] = {}, lse2[RM], delta[RM], factor[RM];
#pragma unroll
  for (int i = 0; i < RM; i++) {
    const int r = ty + Tile::TY * i;
    const int64_t at = (int64_t(s.batch) * p.heads + head) * p.queries + l + r;
    lse2[i] = r < queries ? x.lse2[at] : INFINITY;
    delta[i] = r < queries ? x.delta[at] : 0.f;
    factor[i] = p.scale;
  }
  for (int key = keys.begin; key < keys.end; key += Tile::cols) {
    __syncthreads();
    loadFloatRows<Tile, Tile::cols>(k, x.storage, x.k, s.batch, s.firstKey + key, kvHead, keys.end - key, p.dim, 1.f);
    loadFloatRows<Tile, Tile::cols>(v, x.storage, x.v, s.batch, s.firstKey + key, kvHead, keys.end - key, p.dim, 1.f);
    __syncthreads();
    float scores[RM][CN], dP[RM][CN];
    dotRows<Tile>(scores, q, k, ty, tx);
    dotRows<Tile>(dP, dO, v, ty, tx);
#pragma unroll
    for (int i = 0; i < RM; i++) {
      const int r = ty + Tile::TY * i;
      const Span seen = p.keysOf(s, first + r);
#pragma unroll
      for (int j = 0; j < CN; j++) {
        const int c = tx + Tile::TX * j;
        const bool sees = key + c >= seen.begin && key + c < seen.end;
        dS[r * Tile::lds + c] = sees ? exp2f(scores[i][j] - lse2[i]) * (dP[i][j] - delta[i]) : 0.f;
      }
    }
    __syncwarp();
    addWeighted<Tile>(dQ, dS, k, ty, tx);
  }
  storeFloatRows<Tile>(dQ, factor, x.storage, x.dQ, s.batch, l, head, queries, p.dim, ty, tx);
}

}  // namespace mm::cuda
