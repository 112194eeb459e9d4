// Tiles of the general chunk engine (chunk_scan_general.cuh) in shared memory, their products, and sums over rows and columns.
#pragma once
#include "cuda/chunk_scan.cuh"

namespace mm::cuda::chunk_scan {

constexpr int kGeneralThreads = 256, kGeneralWarps = kGeneralThreads / 32, kSub = 16;

template <int R>
constexpr int kPitch = 16 * R + 1;
template <int R>
constexpr int kTile = 16 * R * kPitch<R>;

// The scalars of a chunk with a decay per head. exp(c_T) is up[C - 1]: steps behind the end do not decay.
template <int C>
struct Steps {
  float raw[C], w[C];   // dt before and after bias and softplus
  float hi[C], lo[C];   // c_t = hi + lo
  float up[C], down[C];  // exp(c_t), exp(c_T - c_t)
};

template <int R>
__device__ __forceinline__ void loadSteps(const Scan& s, const Place& at, int head, Steps<16 * R>& st) {
  if (threadIdx.x >= 32) return;
  constexpr int E = R / 2;
  const LaneSteps<E> lane = scanSteps<E>(s, at, head);
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int t = threadIdx.x * E + e;
    st.raw[t] = lane.raw[e], st.w[t] = lane.w[e];
    st.hi[t] = float(lane.c[e]), st.lo[t] = float(lane.c[e] - double(float(lane.c[e])));
    st.up[t] = expf(float(lane.c[e])), st.down[t] = expf(float(lane.total - lane.c[e]));
  }
}
// exp(c_t - c_u) for u <= t: only differences are exponentiated, so strong decays cannot overflow
template <int C>
__device__ __forceinline__ float decayBetween(const Steps<C>& st, int t, int u) {
  return expf((st.hi[t] - st.hi[u]) + (st.lo[t] - st.lo[u]));
}

// ---- tiles

// tile[r][c] = factor rowScale[r] x[r][c]; zeros from row `rows` and column `cols` on
template <int R, class T>
__device__ __forceinline__ void loadTile(float* tile, const T* x, int64_t stride, int rows, int cols, float factor = 1.f,
                                         const float* rowScale = nullptr) {
  constexpr int C = 16 * R;
  const int col = threadIdx.x % C;
#pragma unroll 8
  for (int i = 0; i < C * C / kGeneralThreads; i++) {
    const int row = threadIdx.x / C + i * (kGeneralThreads / C);
    float v = 0.f;
    if (row < rows && col < cols) v = toFloat(x[row * stride + col]) * factor;
    tile[row * kPitch<R> + col] = rowScale ? v * rowScale[row] : v;
  }
}
template <int R, class T>
__device__ __forceinline__ void loadTile(float* tile, const Operand& x, const Place& at, int head, int col, int cols,
                                         float factor = 1.f, const float* rowScale = nullptr) {
  loadTile<R>(tile, x.at<const T>(at.batch, at.start, head) + col, x.time, at.length, cols - col, factor, rowScale);
}
// dO = dy silu(z) / den
template <int R, class T>
__device__ __forceinline__ void loadUpstream(float* tile, const Scan& s, const Gradient& g, const Place& at, int head, int p0) {
  constexpr int C = 16 * R;
  const int col = threadIdx.x % C;
#pragma unroll 8
  for (int i = 0; i < C * C / kGeneralThreads; i++) {
    const int row = threadIdx.x / C + i * (kGeneralThreads / C);
    float v = 0.f;
    if (g.dy.given && row < at.length && p0 + col < s.p) {
      const int64_t t = at.start + row;
      v = toFloat(g.dy.at<const T>(at.batch, t, head)[p0 + col]);
      if (s.z.given) v *= silu(toFloat(s.z.at<const T>(at.batch, t, head)[p0 + col]));
      if (s.normalized) v *= s.inverse[(at.batch * s.length + t) * s.heads + head];
    }
    tile[row * kPitch<R> + col] = v;
  }
}
// tile[n][p] of a state as it lies in memory
template <int R>
__device__ __forceinline__ void loadState(float* tile, const Scan& s, const float* state, int n0, int p0) {
  constexpr int C = 16 * R;
  const int col = threadIdx.x % C, rows = s.byValue ? s.p - p0 : s.n - n0, cols = s.byValue ? s.n - n0 : s.p - p0;
  state += s.byValue ? int64_t(p0) * s.n + n0 : int64_t(n0) * s.p + p0;
#pragma unroll 8
  for (int i = 0; i < C * C / kGeneralThreads; i++) {
    const int row = threadIdx.x / C + i * (kGeneralThreads / C);
    const float v = row < rows && col < cols ? state[int64_t(row) * (s.byValue ? s.n : s.p) + col] : 0.f;
    tile[s.byValue ? col * kPitch<R> + row : row * kPitch<R> + col] = v;
  }
}

// Which blocks of 16 of the contraction a block of rows takes: all, those up to its own number, or from it on. Triangle: all, but
// only for the blocks of the result on and below the diagonal.
enum class Part { All, Lower, Upper, Triangle };

// acc(i, j) += sum over k of a[i AI + k AK] b[k BK + j BJ]; blocks of 16 k from `count` on are left out
template <Part PART, int R, int AI, int AK, int BK, int BJ>
__device__ __forceinline__ void product(float (&acc)[R][R], const float* a, const float* b, int count) {
  a += int(threadIdx.x / 16) * AI, b += int(threadIdx.x % 16) * BJ;
#pragma unroll
  for (int block = 0; block < R; block++) {
    if (block * 16 >= count) break;
#pragma unroll 4
    for (int k = block * 16; k < block * 16 + 16; k++) {
      float y[R];
#pragma unroll
      for (int j = 0; j < R; j++) y[j] = b[k * BK + j * 16 * BJ];
#pragma unroll
      for (int i = 0; i < R; i++) {
        if ((PART == Part::Lower && block > i) || (PART == Part::Upper && block < i)) continue;
        const float x = a[i * 16 * AI + k * AK];
#pragma unroll
        for (int j = 0; j < R; j++)
          if (PART != Part::Triangle || j <= i) acc[i][j] = fmaf(x, y[j], acc[i][j]);
      }
    }
  }
}
// The orientations in use: rows of a times rows of b, rows times columns, columns times columns
template <Part PART, int R>
__device__ __forceinline__ void productRowsRows(float (&acc)[R][R], const float* a, const float* b, int count) {
  product<PART, R, kPitch<R>, 1, 1, kPitch<R>>(acc, a, b, count);
}
template <Part PART, int R>
__device__ __forceinline__ void productRowsCols(float (&acc)[R][R], const float* a, const float* b, int count) {
  product<PART, R, kPitch<R>, 1, kPitch<R>, 1>(acc, a, b, count);
}
template <Part PART, int R>
__device__ __forceinline__ void productColsCols(float (&acc)[R][R], const float* a, const float* b, int count) {
  product<PART, R, 1, kPitch<R>, kPitch<R>, 1>(acc, a, b, count);
}

// f(i, j, row, column) for the elements of this thread
template <int R, class F>
__device__ __forceinline__ void forTile(F&& f) {
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < R; j++) f(i, j, int(threadIdx.x / 16) + 16 * i, int(threadIdx.x % 16) + 16 * j);
}
template <int R>
__device__ __forceinline__ void scaleRows(float (&acc)[R][R], const float* scale) {
  forTile<R>([&](int i, int j, int row, int) { acc[i][j] *= scale[row]; });
}
template <int R>
__device__ __forceinline__ void multiplyTile(float (&acc)[R][R], const float* tile) {
  forTile<R>([&](int i, int j, int row, int col) { acc[i][j] *= tile[row * kPitch<R> + col]; });
}
// sum over the 16 threads of a row of threads
__device__ __forceinline__ float sumRow(float v) {
#pragma unroll
  for (int d = 8; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}
// column[x] = sum over the rows of threads of their v[j], x = tx + 16 j; parts: kGeneralWarps * C floats
template <int R>
__device__ __forceinline__ void sumColumns(const float (&v)[R], float* parts, float* column) {
  constexpr int C = 16 * R;
#pragma unroll
  for (int j = 0; j < R; j++) {
    const float sum = v[j] + __shfl_xor_sync(kAllLanes, v[j], 16);
    if (threadIdx.x % 32 < 16) parts[threadIdx.x / 32 * C + threadIdx.x % 16 + 16 * j] = sum;
  }
  __syncthreads();
  if (threadIdx.x < C) {
    float sum = 0.f;
    for (int w = 0; w < kGeneralWarps; w++) sum += parts[w * C + threadIdx.x];
    column[threadIdx.x] = sum;
  }
  __syncthreads();
}

}  // namespace mm::cuda::chunk_scan
