// Tiles of the tensor-core chunk engine (chunk_scan_mma.cuh) in shared memory: how they are loaded, their fragments and products.
#pragma once
#include "cuda/chunk_scan_mma.cuh"
#include "cuda/common/mma.cuh"

namespace mm::cuda::chunk_scan {

// exp(c_t - c_u) for u <= t, from the scalars of a chunk
__device__ __forceinline__ float decayBetween(const float* steps, int t, int u) {
  return __expf((steps[HI * kChunk + t] - steps[HI * kChunk + u]) + (steps[LO * kChunk + t] - steps[LO * kChunk + u]));
}

template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t v) {
  if constexpr (std::is_same_v<T, bf16>) return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)};  // in half the instructions
  else return __half22float2(*reinterpret_cast<const __half2*>(&v));
}

// The 4-byte pair of columns `col`, col + 1 of a swizzled tile with rows of 8 PIECES elements.
template <int PIECES>
__device__ __forceinline__ uint32_t* pairAt(unsigned char* tile, int row, int col) {
  return reinterpret_cast<uint32_t*>(tile + swizzled<PIECES>(row, col / 8) + col % 8 * 2);
}

// ROWS rows of 8 PIECES elements; zeros from row `rows` and column `cols` (a multiple of 8) on
template <int THREADS, int ROWS, int PIECES, class T>
__device__ __forceinline__ void loadTileAsync(uint32_t tile, const T* x, int64_t stride, int rows, int cols) {
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
    const int row = i / PIECES, piece = i % PIECES;
    const bool inside = row < rows && piece * 8 < cols;
    copyAsync16(tile + swizzled<PIECES>(row, piece), inside ? x + row * stride + piece * 8 : x, inside);
  }
}
// COUNT floats, zeros from `count` (a multiple of 4) on
template <int THREADS, int COUNT>
__device__ __forceinline__ void loadFloatsAsync(uint32_t shared, const float* x, int count = COUNT) {
  for (int i = threadIdx.x; i < COUNT / 4; i += THREADS) copyAsync16(shared + i * 16, i * 4 < count ? x + i * 4 : x, i * 4 < count);
}
// What a walk needs of a chunk's decay: its scalars by step, or the decay of each channel over the chunk.
template <int THREADS, int NT, Decay KIND>
__device__ __forceinline__ void loadDecayAsync(uint32_t shared, const Scan& s, const MmaTask& task, int64_t chunk, int head) {
  const int64_t index = chunk * s.heads + head;
  if (KIND == Decay::Head) loadFloatsAsync<THREADS, kStepFloats>(shared, task.steps + index * kStepFloats);
  else loadFloatsAsync<THREADS, NT>(shared, task.totals + index * s.n, s.n);
}

// Fragments (common/mma.cuh) of swizzled tiles. A, 16 x 16 from (m, k): rows of the tile are m, or k when transposed.
template <int PIECES, bool TRANSPOSED>
__device__ __forceinline__ void loadA(uint32_t (&a)[4], uint32_t tile, int m, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (TRANSPOSED) ldmatrix4Transposed(a, tile + swizzled<PIECES>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
  else ldmatrix4(a, tile + swizzled<PIECES>(m + lane % 16, k / 8 + lane / 16));
}
// B, 16 k x 16 n from (k, n), two tiles of 8 columns: rows of the tile are n, or k when transposed.
template <int PIECES, bool TRANSPOSED>
__device__ __forceinline__ void loadB(uint32_t (&b)[2][2], uint32_t tile, int k, int n) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  if constexpr (TRANSPOSED) ldmatrix4Transposed(r, tile + swizzled<PIECES>(k + lane % 16, n / 8 + lane / 16));
  else ldmatrix4(r, tile + swizzled<PIECES>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// acc (16 M rows from `row`, 8 N columns from `col`) += A B over k0 <= k < k1, by one warp
template <class T, int M, int N, int PA, bool TA, int PB, bool TB>
__device__ __forceinline__ void warpProduct(float (&acc)[M][N][4], uint32_t a, int row, uint32_t b, int col, int k0, int k1) {
#pragma unroll 4
  for (int k = k0; k < k1; k += 16) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) loadA<PA, TA>(fa[m], a, row + 16 * m, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[2][2];
      loadB<PB, TB>(fb, b, k, col + 8 * n);
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma16816<T>(acc[m][n], fa[m], fb[0]);
        mma16816<T>(acc[m][n + 1], fa[m], fb[1]);
      }
    }
  }
}

// f(m, n, half, row, column) for the pairs (row, column), (row, column + 1) that acc[m][n][2 half], [2 half + 1] hold
template <int M, int N, class F>
__device__ __forceinline__ void forFragments(int row, int col, F&& f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < N; n++) f(m, n, half, row + 16 * m + 8 * half + lane / 4, col + 8 * n + lane % 4 * 2);
}

// Four lanes of a row exchange: lane t gets word t of the four lanes.
__device__ __forceinline__ void transposeQuad(uint32_t (&r)[4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, t & 1 ? r[j] : r[j + 1], 1);
    (t & 1 ? r[j] : r[j + 1]) = other;
  }
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, t & 2 ? r[j] : r[j + 2], 2);
    (t & 2 ? r[j] : r[j + 2]) = other;
  }
}

// The part of this warp of a (64, WIDTH) result: 32 x WIDTH / 4, of narrow ones 16 x WIDTH / 2.
template <int WIDTH>
struct WarpPart {
  static constexpr int rowParts = WIDTH >= 64 ? 2 : 4, colParts = 8 / rowParts, rows = kChunk / rowParts, cols = WIDTH / colParts;
  static constexpr int M = rows / 16, N = cols / 8;
  int rowPart = threadIdx.x / 32 / colParts, colPart = threadIdx.x / 32 % colParts, row = rowPart * rows, col = colPart * cols;
  using Fragments = float[M][N][4];
};

}  // namespace mm::cuda::chunk_scan
