// patchEmbed: y[t, e] = sum over features f of P[t, f] W[e, f] + bias[e], where row t of P is a p x p patch of the image with its
// channels, f = (channel, row, column). Backward: dW = dY^T P, dX = dY W put back where the patches came from, dBias = the column
// sums of dY (reduction.cuh).
//
// All three are one product C[m, n] = sum over k of A[m, k] B[n, k], in which the place of every element is a row offset plus a
// column offset: for P, the place of the patch in its image plus the place of the feature in its patch. So the patches are never
// gathered into a matrix: the product reads (and for dX writes) the images themselves. A block computes 128 x 64 of C; the next
// slices of A and B are loaded into registers while the present ones, in shared memory twice over, are multiplied. Lanes go along
// the axis in which an operand is dense: along k, or along its rows, and shared memory holds it in the same order.
//   f32        slices of 16, 8 x 4 results a thread
//   bf16, f16  slices of 32, mma.sync, 32 x 32 results a warp; pairs of elements at once where widths are even (L = 2)
// dW sums over all tokens: where its tiles are too few to fill the device the tokens are cut into parts, whose partial products lie
// in the workspace and are added in order.
#pragma once
#include "cuda/common/mma.cuh"
#include "cuda/reduction.cuh"

namespace mm::cuda {

constexpr int kPatchThreads = 256, kPatchM = 128, kPatchN = 64, kPatchSlice = 16, kPatchMmaSlice = 32;

// The offset of index i = (a, b, c) of an axis that is cut in three: a * stride[0] + b * stride[1] + c * stride[2].
struct CutAxis {
  FastDiv middle, inner;
  int64_t stride[3];

  __device__ __forceinline__ int64_t at(uint32_t i) const {
    const uint32_t ab = inner.div(i), c = i - ab * inner.divisor, a = middle.div(ab), b = ab - a * middle.divisor;
    return int64_t(a) * stride[0] + int64_t(b) * stride[1] + int64_t(c) * stride[2];
  }
};

struct ProductOperand {
  CutAxis row, k;  // `row`: m or n
};

template <class T, class O>
struct PatchProduct {
  const T *a, *b;
  O* c;
  float* partial;  // null, or (parts, m, n)
  const float* bias;
  const T* biasT;
  ProductOperand aAxis, bAxis;
  CutAxis cRow, cCol;
  uint32_t m, n, k, perPart;  // perPart: of k, a multiple of the slices
};

// Results v of a thread at rows x columns of C. The bias and all offsets come first: a load behind every store would be waited for
// each time.
template <int ROWS, int COLS, class T, class O>
__device__ __forceinline__ void storeProducts(const PatchProduct<T, O>& p, const uint32_t (&row)[ROWS], const uint32_t (&col)[COLS],
                                              const float (&v)[ROWS][COLS]) {
  if (p.partial) {
    float* to = p.partial + int64_t(blockIdx.y) * p.m * p.n;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int c = 0; c < COLS; c++)
        if (row[r] < p.m && col[c] < p.n) to[int64_t(row[r]) * p.n + col[c]] = v[r][c];
    return;
  }
  int64_t at[COLS];
  float bias[COLS] = {};
#pragma unroll
  for (int c = 0; c < COLS; c++) at[c] = p.cCol.at(col[c]);
  if (p.bias)
#pragma unroll
    for (int c = 0; c < COLS; c++) bias[c] = col[c] < p.n ? p.bias[col[c]] : 0.f;
  if (p.biasT)
#pragma unroll
    for (int c = 0; c < COLS; c++) bias[c] = col[c] < p.n ? toFloat(p.biasT[col[c]]) : 0.f;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    O* to = p.c + p.cRow.at(row[r]);
#pragma unroll
    for (int c = 0; c < COLS; c++)
      if (row[r] < p.m && col[c] < p.n) to[at[c]] = fromFloat<O>(v[r][c] + bias[c]);
  }
}

// Loads slices of an operand of ROWS rows: L elements at once along k (ALONG_K) or along the rows, held in registers until
// store() puts them into shared memory, at [row][k] or [k][row].
template <class T, int ROWS, int SLICE, int L, bool ALONG_K>
struct SliceLoader {
  static constexpr int kLanes = (ALONG_K ? SLICE : ROWS) / L, kSteps = ROWS * SLICE / L / kPatchThreads;
  static constexpr int kStride = kPatchThreads / kLanes;  // of the other axis from step to step
  static_assert(kPatchThreads % kLanes == 0 && ROWS * SLICE % (L * kPatchThreads) == 0, "a slice is loaded in whole steps");
  RawVector<T, L> value[kSteps];

  // rowOffset: shared memory, of the block's rows. k: the first of the slice.
  __device__ __forceinline__ void load(const T* p, const CutAxis& kAxis, const int64_t* rowOffset, uint32_t rows, uint32_t k,
                                       uint32_t kEnd) {
    const uint32_t along = threadIdx.x % kLanes * L, across = threadIdx.x / kLanes;
    const int64_t fixed = ALONG_K ? kAxis.at(k + along) : rowOffset[along];
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const uint32_t other = across + s * kStride;
      const uint32_t row = ALONG_K ? other : along, at = k + (ALONG_K ? along : other);
      value[s].w[0] = 0;  // the zero of every type
      if (row < rows && at < kEnd) value[s].load(p + fixed + (ALONG_K ? rowOffset[row] : kAxis.at(at)));
    }
  }
  // [row][k] or [k][row] as loaded, rows of `pitch` elements.
  __device__ __forceinline__ void store(T* shared, int pitch) const {
    const int along = threadIdx.x % kLanes * L, across = threadIdx.x / kLanes;
#pragma unroll
    for (int s = 0; s < kSteps; s++) value[s].store(shared + (across + s * kStride) * pitch + along);
  }
  // Always [k][row].
  __device__ __forceinline__ void storeByK(T* shared, int pitch) const {
    static_assert(L == 1, "single elements");
    const int along = threadIdx.x % kLanes, across = threadIdx.x / kLanes;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int other = across + s * kStride;
      value[s].store(shared + (ALONG_K ? along * pitch + other : other * pitch + along));
    }
  }
};

// The block's place: blockIdx.x counts tiles, columns first; blockIdx.y parts of k.
struct ProductTile {
  uint32_t row0, col0, k0, kEnd;

  template <class T, class O>
  __device__ __forceinline__ ProductTile(const PatchProduct<T, O>& p, int64_t* aOffset, int64_t* bOffset) {
    const uint32_t columns = (p.n + kPatchN - 1) / kPatchN, tileRow = blockIdx.x / columns;
    row0 = tileRow * kPatchM, col0 = (blockIdx.x - tileRow * columns) * kPatchN;
    k0 = blockIdx.y * p.perPart;
    kEnd = k0 + p.perPart < p.k ? k0 + p.perPart : p.k;  // below k0 in parts past the end
    for (uint32_t i = threadIdx.x; i < kPatchM + kPatchN; i += kPatchThreads) {
      const bool ofA = i < kPatchM;
      const uint32_t row = ofA ? row0 + i : col0 + i - kPatchM;
      const bool inside = row < (ofA ? p.m : p.n);
      (ofA ? aOffset[i] : bOffset[i - kPatchM]) = inside ? (ofA ? p.aAxis : p.bAxis).row.at(row) : 0;
    }
    __syncthreads();
  }
};

template <class O, bool A_ALONG_K, bool B_ALONG_K>
__global__ void __launch_bounds__(kPatchThreads) patchProductKernel(const __grid_constant__ PatchProduct<float, O> p) {
  constexpr int S = kPatchSlice, kPitchA = kPatchM + 4, kPitchB = kPatchN + 4;
  __shared__ int64_t aOffset[kPatchM], bOffset[kPatchN];
  alignas(16) __shared__ float a[2][S * kPitchA];
  alignas(16) __shared__ float b[2][S * kPitchB];
  const ProductTile tile(p, aOffset, bOffset);
  SliceLoader<float, kPatchM, S, 1, A_ALONG_K> loadA;
  SliceLoader<float, kPatchN, S, 1, B_ALONG_K> loadB;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float acc[8][4] = {};
  const auto load = [&](uint32_t k) {
    loadA.load(p.a, p.aAxis.k, aOffset, p.m - tile.row0, k, tile.kEnd);
    loadB.load(p.b, p.bAxis.k, bOffset, p.n - tile.col0, k, tile.kEnd);
  };
  const auto store = [&](int buffer) {
    loadA.storeByK(a[buffer], kPitchA);
    loadB.storeByK(b[buffer], kPitchB);
  };
  if (tile.k0 < tile.kEnd) load(tile.k0), store(0);
  int buffer = 0;
  for (uint32_t k = tile.k0; k < tile.kEnd; k += S) {
    __syncthreads();
    if (k + S < tile.kEnd) load(k + S);
#pragma unroll
    for (int i = 0; i < S; i++) {
      float x[2][4], y[4];
      loadFloats<4>(&a[buffer][i * kPitchA + ty * 8], x[0]);
      loadFloats<4>(&a[buffer][i * kPitchA + ty * 8 + 4], x[1]);
      loadFloats<4>(&b[buffer][i * kPitchB + tx * 4], y);
#pragma unroll
      for (int r = 0; r < 8; r++)
#pragma unroll
        for (int q = 0; q < 4; q++) acc[r][q] = fmaf(x[r / 4][r % 4], y[q], acc[r][q]);
    }
    buffer ^= 1;
    if (k + S < tile.kEnd) store(buffer);
  }
  uint32_t row[8], col[4];
#pragma unroll
  for (int r = 0; r < 8; r++) row[r] = tile.row0 + ty * 8 + r;
#pragma unroll
  for (int q = 0; q < 4; q++) col[q] = tile.col0 + tx * 4 + q;
  storeProducts(p, row, col, acc);
}

template <class T, class O, bool A_ALONG_K, bool B_ALONG_K, int L>
__global__ void __launch_bounds__(kPatchThreads) patchProductMmaKernel(const __grid_constant__ PatchProduct<T, O> p) {
  constexpr int S = kPatchMmaSlice;
  // rows 16 bytes longer than the data: eight neighbouring ones lie in different banks
  constexpr int kPitchA = (A_ALONG_K ? S : kPatchM) + 8, kPitchB = (B_ALONG_K ? S : kPatchN) + 8;
  constexpr int kSizeA = (A_ALONG_K ? kPatchM : S) * kPitchA, kSizeB = (B_ALONG_K ? kPatchN : S) * kPitchB;
  __shared__ int64_t aOffset[kPatchM], bOffset[kPatchN];
  alignas(16) __shared__ T a[2][kSizeA];
  alignas(16) __shared__ T b[2][kSizeB];
  const ProductTile tile(p, aOffset, bOffset);
  SliceLoader<T, kPatchM, S, L, A_ALONG_K> loadA;
  SliceLoader<T, kPatchN, S, L, B_ALONG_K> loadB;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warpRow = warp / 2 * 32, warpCol = warp % 2 * 32;
  float acc[2][4][4] = {};
  const auto load = [&](uint32_t k) {
    loadA.load(p.a, p.aAxis.k, aOffset, p.m - tile.row0, k, tile.kEnd);
    loadB.load(p.b, p.bAxis.k, bOffset, p.n - tile.col0, k, tile.kEnd);
  };
  const auto store = [&](int buffer) {
    loadA.store(a[buffer], kPitchA);
    loadB.store(b[buffer], kPitchB);
  };
  if (tile.k0 < tile.kEnd) load(tile.k0), store(0);
  int buffer = 0;
  const int matrix = lane / 8, inMatrix = lane % 8;
  for (uint32_t k = tile.k0; k < tile.kEnd; k += S) {
    __syncthreads();
    if (k + S < tile.kEnd) load(k + S);
#pragma unroll
    for (int step = 0; step < S; step += 16) {
      uint32_t x[2][4], y[2][4];  // y: of two 8-wide tiles each
#pragma unroll
      for (int i = 0; i < 2; i++) {
        // matrices of A: rows 0 and 8, then the same 8 further along k
        const int row = warpRow + i * 16 + matrix % 2 * 8, at = step + matrix / 2 * 8;
        if constexpr (A_ALONG_K) ldmatrix4(x[i], sharedAddress(&a[buffer][(row + inMatrix) * kPitchA + at]));
        else ldmatrix4Transposed(x[i], sharedAddress(&a[buffer][(at + inMatrix) * kPitchA + row]));
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        // matrices of B: k 0 and 8 of one tile, then of the next
        const int col = warpCol + j * 16 + matrix / 2 * 8, at = step + matrix % 2 * 8;
        if constexpr (B_ALONG_K) ldmatrix4(y[j], sharedAddress(&b[buffer][(col + inMatrix) * kPitchB + at]));
        else ldmatrix4Transposed(y[j], sharedAddress(&b[buffer][(at + inMatrix) * kPitchB + col]));
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const uint32_t pair[2] = {y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]};
          mma16816<T>(acc[i][j], x[i], pair);
        }
    }
    buffer ^= 1;
    if (k + S < tile.kEnd) store(buffer);
  }
  uint32_t row[4], col[8];
  float v[4][8];
#pragma unroll
  for (int r = 0; r < 4; r++) row[r] = tile.row0 + warpRow + r * 8 + lane / 4;
#pragma unroll
  for (int q = 0; q < 8; q++) col[q] = tile.col0 + warpCol + q / 2 * 8 + lane % 4 * 2 + q % 2;
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int q = 0; q < 8; q++) v[r][q] = acc[r / 2][q / 2][r % 2 * 2 + q % 2];
  storeProducts(p, row, col, v);
}

}  // namespace mm::cuda
