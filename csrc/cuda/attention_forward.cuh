// attention, forward (FlashAttention-2, arXiv 2307.08691): blocks of keys pass a tile of queries of one head, and the softmax is
// kept as a running maximum `top`, a running sum `total` and an unnormalised o:
//   s = q k^T, top' = max(top, rowmax s), p = 2^(scaleLog2 (s - top')), total = total 2^(scaleLog2 (top - top')) + rowsum p,
//   o = o 2^(scaleLog2 (top - top')) + p v; at the end o / total and lse = scale top + ln total.
//
// Tensor cores: four warps of 16 MT queries; o, s and p stay in registers, p being the A fragment of the second product. With
// MT = 2 every fragment of k and v that a warp reads from shared memory serves two products: that read is what bounds the
// kernel. q stays in shared memory, as registers are full with o and s; k and v come by cp.async, one block ahead. o and total
// are only rescaled when a maximum rises by more than 2^8. Two blocks of 96 KiB share a multiprocessor.
//
// General: tiles in f32, see attention_tile.cuh.
#pragma once
#include "cuda/attention_tile.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda {

template <int D, int MT>
struct ForwardTile {
  static constexpr int threads = 128, rows = 64 * MT, keys = D > 128 ? 32 : 64, pieces = tilePieces(D);
  static constexpr int rowBytes = pieces * 16, operand = keys * rowBytes;     // bytes of a block of keys or values
  static constexpr int shared = rows * rowBytes + 2 * 2 * operand;            // q, two stages of k and v
};

// s (16 MT rows of tile a from `row` on) x (KEYS rows of tile b) = a b^T over D channels
template <class T, int D, int MT, int KEYS>
__device__ __forceinline__ void scoreTile(float (&s)[MT][KEYS / 8][4], uint32_t a, int row, uint32_t b, uint32_t lanesA, uint32_t lanesB) {
  constexpr int PIECES = tilePieces(D);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][n][e] = 0.f;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t fa[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) ldmatrix4(fa[m], blockAddress<PIECES>(a + row * PIECES * 16, lanesA, m * 16, k * 2));
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      uint32_t fb[4];
      ldmatrix4(fb, blockAddress<PIECES>(b, lanesB, n * 16, k * 2));
#pragma unroll
      for (int m = 0; m < MT; m++) mma161616<T>(s[m][2 * n], s[m][2 * n + 1], fa[m], fb);
    }
  }
}

// acc (16 MT rows) x (D channels) += a (16 MT x 16, in registers) times rows [row, row + 16) of tile b
template <class T, int D, int MT>
__device__ __forceinline__ void addRows(float (&acc)[MT][D / 8][4], const uint32_t (&a)[MT][4], uint32_t b, int row, uint32_t lanesA) {
#pragma unroll
  for (int n = 0; n < D / 16; n++) {
    uint32_t fb[4];
    ldmatrix4Transposed(fb, blockAddress<tilePieces(D)>(b, lanesA, row, n * 2));
#pragma unroll
    for (int m = 0; m < MT; m++) mma161616<T>(acc[m][2 * n], acc[m][2 * n + 1], a[m], fb);
  }
}

// Scores of keys [key, key + KEYS) that their query does not see become -inf; queries [query, query + 16 MT).
template <int MT, int KEYS>
__device__ __forceinline__ void maskScores(float (&s)[MT][KEYS / 8][4], const AttentionProblem& p, const AttentionSequence& sequence,
                                           int query, int key, int lane) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Span seen = p.keysOf(sequence, query + m * 16 + half * 8 + lane / 4);
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int j = key + n * 8 + lane % 4 * 2 + e;
          if (j < seen.begin || j >= seen.end) s[m][n][half * 2 + e] = -INFINITY;
        }
    }
}

// Running softmax of 16 MT rows in C fragments: lane (g, t) keeps rows g and g + 8 of each 16, with a quarter of their sums.
template <int MT>
struct Softmax {
  float top[MT][2], total[MT][2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) top[m][h] = -INFINITY, total[m][h] = 0.f;
  }

  // Raises `top` where the scores ask for it, and rescales what was summed so far.
  template <int KEYS, int N>
  __device__ __forceinline__ void raise(const float (&s)[MT][KEYS][4], float (&o)[MT][N][4], float scaleLog2) {
    float largest[MT][2];
    bool rises = false;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v = s[m][0][h * 2];
#pragma unroll
        for (int n = 0; n < KEYS; n++) v = fmaxf(v, fmaxf(s[m][n][h * 2], s[m][n][h * 2 + 1]));
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
        largest[m][h] = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
        rises |= (largest[m][h] - top[m][h]) * scaleLog2 > 8.f;
      }
    if (!__any_sync(0xffffffffu, rises)) return;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float next = fmaxf(top[m][h], largest[m][h]);
        const float factor = top[m][h] == -INFINITY ? 0.f : exp2Approximate((top[m][h] - next) * scaleLog2);
        top[m][h] = next;
        total[m][h] *= factor;
#pragma unroll
        for (int n = 0; n < N; n++) o[m][n][h * 2] *= factor, o[m][n][h * 2 + 1] *= factor;
      }
  }

  // Scores to weights, added to `total`.
  __device__ __forceinline__ void weigh(float (&s)[4], int m, float scaleLog2) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float base = top[m][h] == -INFINITY ? 0.f : top[m][h] * scaleLog2;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        s[h * 2 + e] = exp2Approximate(fmaf(s[h * 2 + e], scaleLog2, -base));
        total[m][h] += s[h * 2 + e];
      }
    }
  }

  // The whole sum of a row, in all its lanes.
  __device__ __forceinline__ float sum(int m, int h) const {
    float v = total[m][h];
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
  }
};

template <class T, int D, int MT>
__global__ void __launch_bounds__(128, 2) attentionForwardMmaKernel(AttentionProblem p, ForwardOperands<T> x) {
  using Tile = ForwardTile<D, MT>;
  constexpr int PIECES = Tile::pieces, KEYS = Tile::keys;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Late queries, which see the most keys under a causal mask, come first: the short ones fill the end.
  const int head = int(blockIdx.x) % p.heads, slot = int(gridDim.x) / p.heads - 1 - int(blockIdx.x) / p.heads;
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, false>(p, slot, s, first)) return;
  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, min(first + Tile::rows, s.queries) - 1).end};
  const int blocks = keys.end > keys.begin ? (keys.end - keys.begin + KEYS - 1) / KEYS : 0;
  // Queries of this warp, and the keys that its first and its last one see.
  const int warpRow = warp * 16 * MT, query = first + warpRow, queries = min(16 * MT, s.queries - query);
  const Span early = p.keysOf(s, query), late = p.keysOf(s, query + queries - 1);

  const uint32_t qTile = sharedAddress(shared), stages = qTile + Tile::rows * Tile::rowBytes;
  const T *k = x.k.at(s.batch, s.firstKey + keys.begin, head / p.group), *v = x.v.at(s.batch, s.firstKey + keys.begin, head / p.group);
  const auto load = [&](int j) {
    const uint32_t stage = stages + (j & 1) * 2 * Tile::operand;
    const int rows = keys.end - keys.begin - j * KEYS;
    loadTile<KEYS, PIECES, Tile::threads>(stage, k + int64_t(j) * KEYS * x.k.row, x.k.row, rows, p.dim, threadIdx.x);
    loadTile<KEYS, PIECES, Tile::threads>(stage + Tile::operand, v + int64_t(j) * KEYS * x.v.row, x.v.row, rows, p.dim, threadIdx.x);
    commitAsync();
  };

  float o[MT][D / 8][4] = {};
  Softmax<MT> softmax;
  softmax.reset();
  const uint32_t lanesA = rowsFirst<PIECES>(lane), lanesB = piecesFirst<PIECES>(lane);
  if (blocks) {
    loadTile<Tile::rows, PIECES, Tile::threads>(qTile, x.q.at(s.batch, s.firstQuery + first, head), x.q.row, s.queries - first, p.dim,
                                                threadIdx.x);
    load(0);
  }
#pragma unroll 1
  for (int j = 0; j < blocks; j++) {
    waitAsync<0>();
    __syncthreads();
    if (j + 1 < blocks) load(j + 1);
    const int key = keys.begin + j * KEYS;
    if (queries <= 0 || key >= late.end || key + KEYS <= early.begin) continue;
    const uint32_t kTile = stages + (j & 1) * 2 * Tile::operand, vTile = kTile + Tile::operand;
    float w[MT][KEYS / 8][4];
    scoreTile<T, D, MT, KEYS>(w, qTile, warpRow, kTile, lanesA, lanesB);
    if (late.begin > key || early.end < key + KEYS) maskScores<MT, KEYS>(w, p, s, query, key, lane);
    softmax.raise(w, o, p.scaleLog2);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
      uint32_t a[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        softmax.weigh(w[m][2 * i], m, p.scaleLog2);
        softmax.weigh(w[m][2 * i + 1], m, p.scaleLog2);
        packFragment<T>(a[m], w[m][2 * i], w[m][2 * i + 1]);
      }
      addRows<T, D, MT>(o, a, vTile, i * 16, lanesA);
    }
  }

  if (queries <= 0) return;
  __syncwarp();  // the warp's rows of q serve to bring o into whole rows
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float total = softmax.sum(m, h);
      const int i = m * 16 + h * 8 + lane / 4;
      factor[h] = total == 0.f ? 0.f : 1.f / total;
      if (x.lse && lane % 4 == 0 && i < queries)
        x.lse[(int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + query + i] =
            total == 0.f ? -INFINITY : fmaf(softmax.top[m][h], p.scale, logf(total));
    }
    stageRows<T, PIECES>(shared, warpRow + m * 16, o[m], factor[0], factor[1], lane);
  }
  __syncwarp();
  storeRows<T, PIECES>(shared, warpRow, x.o.at(s.batch, s.firstQuery + query, head), x.o.row, queries, p.dim, lane);
}

// ---- general
struct GeneralForward {
  AnyView q, k, v, o;
  float* lse;
  Storage storage;
};
template <class Tile>
constexpr int kForwardFloats = (Tile::rows + 2 * Tile::cols) * Tile::ld + Tile::rows * Tile::lds;

template <class Tile>
__global__ void __launch_bounds__(Tile::threads) attentionForwardTileKernel(AttentionProblem p, GeneralForward x) {
  constexpr int RM = Tile::RM, CN = Tile::CN;
  extern __shared__ __align__(128) char shared[];
  float *q = reinterpret_cast<float*>(shared), *k = q + Tile::rows * Tile::ld;
  float *v = k + Tile::cols * Tile::ld, *w = v + Tile::cols * Tile::ld;
  const int tx = threadIdx.x % Tile::TX, ty = threadIdx.x / Tile::TX;
  const int head = int(blockIdx.x) % p.heads, slot = int(gridDim.x) / p.heads - 1 - int(blockIdx.x) / p.heads, kvHead = head / p.group;
  AttentionSequence s;
  int first;
  if (!findTile<Tile::rows, false>(p, slot, s, first)) return;
  const int queries = min(Tile::rows, s.queries - first);
  const Span keys = {p.keysOf(s, first).begin, p.keysOf(s, first + queries - 1).end};
  loadFloatRows<Tile, Tile::rows>(q, x.storage, x.q, s.batch, s.firstQuery + first, head, queries, p.dim, p.scaleLog2);

  float o[RM][Tile::NV][Tile::width] = {}, top[RM], total[RM];
#pragma unroll
  for (int i = 0; i < RM; i++) top[i] = -INFINITY, total[i] = 0.f;
  for (int key = keys.begin; key < keys.end; key += Tile::cols) {
    __syncthreads();
    loadFloatRows<Tile, Tile::cols>(k, x.storage, x.k, s.batch, s.firstKey + key, kvHead, keys.end - key, p.dim, 1.f);
    loadFloatRows<Tile, Tile::cols>(v, x.storage, x.v, s.batch, s.firstKey + key, kvHead, keys.end - key, p.dim, 1.f);
    __syncthreads();
    float scores[RM][CN];
    dotRows<Tile>(scores, q, k, ty, tx);
#pragma unroll
    for (int i = 0; i < RM; i++) {
      const Span seen = p.keysOf(s, first + ty + Tile::TY * i);
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < CN; j++) {
        const int at = key + tx + Tile::TX * j;
        if (at < seen.begin || at >= seen.end) scores[i][j] = -INFINITY;
        largest = fmaxf(largest, scores[i][j]);
      }
      largest = fmaxf(rowReduce<Tile>(largest, Max{}), top[i]);
      const float factor = top[i] == -INFINITY ? 0.f : exp2f(top[i] - largest), base = largest == -INFINITY ? 0.f : largest;
      top[i] = largest;
      total[i] *= factor;
#pragma unroll
      for (int n = 0; n < Tile::NV; n++)
#pragma unroll
        for (int e = 0; e < Tile::width; e++) o[i][n][e] *= factor;
#pragma unroll
      for (int j = 0; j < CN; j++) {
        const float weight = exp2f(scores[i][j] - base);
        total[i] += weight;
        w[(ty + Tile::TY * i) * Tile::lds + tx + Tile::TX * j] = weight;
      }
    }
    __syncwarp();
    addWeighted<Tile>(o, w, v, ty, tx);
  }

  float factor[RM];
#pragma unroll
  for (int i = 0; i < RM; i++) {
    const float sum = rowReduce<Tile>(total[i], Add{});
    const int r = ty + Tile::TY * i;
    factor[i] = sum == 0.f ? 0.f : 1.f / sum;
    if (x.lse && tx == 0 && r < queries)
      x.lse[(int64_t(s.batch) * p.heads + head) * p.queries + s.firstQuery + first + r] =
          sum == 0.f ? -INFINITY : fmaf(top[i], kLn2, logf(sum));
  }
  storeFloatRows<Tile>(o, factor, x.storage, x.o, s.batch, s.firstQuery + first, head, queries, p.dim, ty, tx);
}

}  // namespace mm::cuda
