// The chunk engine (chunk_scan.cuh has the formulas) for any shape and dtype, with f32 products on the CUDA cores.
//
// A block of 256 threads works on tiles of C x C, C = 16 R: the chunk is C steps long and key and value channels are taken in
// slices of C. R = 4 in general, R = 2 where N and P are at most 32, so that small heads do not multiply zeros. Thread
// (tx, ty) holds the elements (ty + 16 i, tx + 16 j), so that register (i, j) is one 16 x 16 block of the tile: blocks above
// the diagonal are left out at compile time, and with a decay per channel a block is a pair of sub-chunks. Tiles in shared
// memory have rows of C + 1 floats: rows and columns are both read without bank conflicts, so no operand is ever transposed.
// A kernel needs at most five tiles, 83 KB, which fits every device from sm_80 on.
//
// The chunks' states are computed in parallel, passed on in a short sequential scan and read by the chunks' outputs. Where no
// sequence is longer than a chunk, the first kernel writes the final states itself and there is no scan.
//
// A decay per channel (gla) cannot be split off the products as a mask. Within sub-chunks of 16 steps the decay is multiplied
// up step by step on k (never divided); between sub-chunks r > c the products are
// (q_t prod_{start of r..t} e^g) . (k_s prod_{s+1..end of c} e^g) prod_{c<m<r} (decay of m): all factors are at most 1.
#pragma once
#include "cuda/chunk_scan.cuh"
#include "cuda/common/reduce.cuh"

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

// ---- decay per channel: factors of a slice of C channels. Thread (n, sub) has channel n of one sub-chunk.
//
// Loops over a sub-chunk count from 0 to kSub and are unrolled. Written as t = sub * kSub; t < (sub + 1) * kSub, ptxas 13.0 (sm_90a)
// made 16 rounds of some, and then a loop of 21 more that it enters without asking whether any is left.

template <int R>
struct ChannelThread {
  int n = threadIdx.x % (16 * R), sub = threadIdx.x / (16 * R);
  __device__ bool works() const { return sub < R; }
};

// eg[t][n] = exp(gk), 1 behind the end; total[sub][n] = decay of a sub-chunk, (R, C). Ends with a barrier.
template <int R, class T>
__device__ __forceinline__ void loadDecay(float* eg, float* total, const Scan& s, const Place& at, int head, int n0) {
  constexpr int C = 16 * R;
  const int col = threadIdx.x % C;
#pragma unroll 8
  for (int i = 0; i < C * C / kGeneralThreads; i++) {
    const int row = threadIdx.x / C + i * (kGeneralThreads / C);
    float v = 1.f;
    if (row < at.length && n0 + col < s.n) {
      const int64_t t = at.start + row;
      v = expf(s.gate.dtype == MM_F32 ? s.gate.at<const float>(at.batch, t, head)[n0 + col]
                                      : toFloat(s.gate.at<const T>(at.batch, t, head)[n0 + col]));
    }
    eg[row * kPitch<R> + col] = v;
  }
  __syncthreads();
  const ChannelThread<R> me;
  if (me.works()) {
    const float* steps = eg + me.sub * kSub * kPitch<R> + me.n;
    float run = 1.f;
#pragma unroll
    for (int t = 0; t < kSub; t++) run *= steps[t * kPitch<R>];
    total[me.sub * C + me.n] = run;
  }
  __syncthreads();
}

enum class From { Chunk, Sub };  // what a factor is counted from: the ends of the chunk or those of the sub-chunk

// f(t, prod of e^g from the start to t) for the steps of this thread
template <int R, From FROM, class F>
__device__ __forceinline__ void forUp(const float* eg, const float* total, F&& f) {
  const ChannelThread<R> me;
  if (!me.works()) return;
  float run = 1.f;
  if (FROM == From::Chunk)
    for (int m = 0; m < me.sub; m++) run *= total[m * 16 * R + me.n];
  int at = me.sub * kSub * kPitch<R> + me.n;
#pragma unroll
  for (int m = 0; m < kSub; m++, at += kPitch<R>) {
    run *= eg[at];
    f(at, run);
  }
}
// f(s, prod of e^g behind s up to the end)
template <int R, From FROM, class F>
__device__ __forceinline__ void forDown(const float* eg, const float* total, F&& f) {
  const ChannelThread<R> me;
  if (!me.works()) return;
  float run = 1.f;
  if (FROM == From::Chunk)
    for (int m = R - 1; m > me.sub; m--) run *= total[m * 16 * R + me.n];
  int at = ((me.sub + 1) * kSub - 1) * kPitch<R> + me.n;
#pragma unroll
  for (int m = 0; m < kSub; m++, at -= kPitch<R>) {
    f(at, run);
    run *= eg[at];
  }
}

// att += the decayed triangle of one slice of channels; q and k are left decayed within their sub-chunks. `off` keeps the
// blocks below the diagonal across slices, att the blocks on it.
template <int R>
__device__ __forceinline__ void channelScores(float* att, float (&off)[R][R], float* q, float* k, const float* eg,
                                              const float* total, int channels, bool firstSlice) {
  // on the diagonal: thread (u, lane) takes key u of a sub-chunk and every 16th channel
  const int u = threadIdx.x / 16, lane = threadIdx.x % 16;
#pragma unroll 1
  for (int sub = 0; sub < R; sub++) {
    float acc[kSub] = {};
    for (int n = lane; n < channels; n += 16) {
      const float key = k[(sub * kSub + u) * kPitch<R> + n];
      float x = 0.f;
#pragma unroll
      for (int t = 0; t < kSub; t++) {
        const int at = (sub * kSub + t) * kPitch<R> + n;
        x = t > u ? x * eg[at] : t == u ? key : 0.f;
        acc[t] = fmaf(q[at], x, acc[t]);
      }
    }
    // lane t gets the sum over the lanes of acc[t]: halves are exchanged. All indices of acc must be known when compiled, also of what
    // is chosen between, or it lies in memory.
#pragma unroll
    for (int d = kSub / 2; d > 0; d /= 2)
#pragma unroll
      for (int t = 0; t < kSub / 2; t++) {
        if (t >= d) continue;
        const bool upper = lane & d;
        const float low = acc[t], high = acc[t + d];
        acc[t] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, d);
      }
    float* to = att + (sub * kSub + lane) * kPitch<R> + sub * kSub + u;
    *to = firstSlice ? acc[0] : *to + acc[0];
  }
  __syncthreads();
  forUp<R, From::Sub>(eg, total, [&](int at, float f) { q[at] *= f; });
  forDown<R, From::Sub>(eg, total, [&](int at, float f) { k[at] *= f; });
  __syncthreads();
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  for (int n = 0; n < channels; n++) {
    float x[R];
#pragma unroll
    for (int c = 0; c < R - 1; c++) x[c] = k[(tx + 16 * c) * kPitch<R> + n];
#pragma unroll
    for (int r = 1; r < R; r++) {
      const float y = q[(ty + 16 * r) * kPitch<R> + n], passed = total[r * 16 * R + n];
#pragma unroll
      for (int c = 0; c < r; c++) {
        off[r][c] = fmaf(y, x[c], off[r][c]);
        x[c] *= passed;
      }
    }
  }
}

// The decayed triangle of q and k in att (C, C); blocks above the diagonal are not written. a, b: tiles; more: for a decay per
// channel one tile and R * C floats. eachSlice(n0) sees the tiles of q and k of every slice of channels, and with a decay per channel
// its factors. Begins and ends with a barrier.
template <class T, int R, Decay KIND, class EachSlice>
__device__ __forceinline__ void scores(float* att, float* a, float* b, float* more, const Scan& s, const Place& at, int head,
                                       const Steps<16 * R>* st, float (&raw)[R][R], EachSlice&& eachSlice) {
  const int group = head / s.share();
  for (int n0 = 0; n0 < s.n; n0 += 16 * R) {
    __syncthreads();
    loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
    loadTile<R, T>(b, s.k, at, group, n0, s.n);
    if (KIND == Decay::Channel) {
      loadDecay<R, T>(more, more + kTile<R>, s, at, head, n0);
      eachSlice(n0);
      channelScores<R>(att, raw, a, b, more, more + kTile<R>, min(16 * R, s.n - n0), n0 == 0);
    } else {
      __syncthreads();
      eachSlice(n0);
      productRowsRows<Part::Triangle, R>(raw, a, b, s.n - n0);
    }
  }
  forTile<R>([&](int i, int j, int t, int u) {
    if (KIND == Decay::Channel) {
      if (j < i) att[t * kPitch<R> + u] = raw[i][j];
    } else if (j <= i) att[t * kPitch<R> + u] = u <= t ? raw[i][j] * decayBetween(*st, t, u) : 0.f;
  });
  __syncthreads();
}
template <class T, int R, Decay KIND>
__device__ __forceinline__ void scores(float* att, float* a, float* b, float* more, const Scan& s, const Place& at, int head,
                                       const Steps<16 * R>* st) {
  float raw[R][R] = {};
  scores<T, R, KIND>(att, a, b, more, s, at, head, st, raw, [](int) {});
}

// ---- kernels. Blocks are numbered slot by slot, heads and then slices innermost.

struct Task {
  float *states = nullptr, *dstates = nullptr;  // (slots, heads, size) before and behind a chunk; null when `single`
  float* totals = nullptr;                      // (slots, heads), or (slots, heads, N)
  bool single = false;                          // no sequence is longer than a chunk: states are those of the call
  int valueTiles = 1;                           // slices of value channels that a block takes one after the other
  // channelKeysKernel, where the tensor cores went before: R (chunks, heads, C, C), dO S_in^T and v dS_out^T (B, L, heads, N), and
  // <S_in, dS_out> by channel (chunks, heads, N)
  const float *r = nullptr, *dq = nullptr, *dk = nullptr, *through = nullptr;
};

// The state before a chunk (behind it, of the gradient), null when it is zero.
__device__ __forceinline__ const float* stateBefore(const Scan& s, const Task& task, const Place& at, int head, int64_t index) {
  if (at.first && !s.hasInitial) return nullptr;
  return task.single ? s.initial + (int64_t(at.sequence) * s.heads + head) * s.stateSize() : task.states + index * s.stateSize();
}
__device__ __forceinline__ const float* gradientBehind(const Scan& s, const Gradient& g, const Task& task, const Place& at, int head,
                                                       int64_t index) {
  if (at.last && !g.hasFinal) return nullptr;
  return task.single ? g.dFinal + (int64_t(at.sequence) * s.heads + head) * s.stateSize() : task.dstates + index * s.stateSize();
}

// What a chunk adds to the state behind it, or (blockIdx.y + direction = 1) to the gradient of the state before it. A block makes
// one tile, laid out as the states of the call.
template <class T, int R, Decay KIND>
__global__ void __launch_bounds__(kGeneralThreads)
chunkStatesKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task, int direction) {
  constexpr int C = 16 * R;
  float* keys = reinterpret_cast<float*>(chunkScanShared);
  float *values = keys + kTile<R>, *factor = values + kTile<R>, *more = factor + C;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(more);
  const bool backwards = blockIdx.y + direction;
  const int rowTiles = ((s.byValue ? s.p : s.n) + C - 1) / C, colTiles = ((s.byValue ? s.n : s.p) + C - 1) / C;
  const int tile = blockIdx.x % (rowTiles * colTiles);
  const int64_t index = blockIdx.x / (rowTiles * colTiles), slot = index / s.heads;
  const int head = int(index % s.heads), row0 = tile / colTiles * C, col0 = tile % colTiles * C;
  const int n0 = s.byValue ? col0 : row0, p0 = s.byValue ? row0 : col0;
  const Place at = locate(s, slot, C);
  if (!at.valid) return;

  if (KIND == Decay::Head) {
    loadSteps<R>(s, at, head, st);
    __syncthreads();
    if (threadIdx.x < C) factor[threadIdx.x] = backwards ? st.up[threadIdx.x] : st.down[threadIdx.x] * st.w[threadIdx.x];
    __syncthreads();
  }
  const float* rowScale = KIND == Decay::Head ? factor : nullptr;
  if (backwards) {
    loadTile<R, T>(keys, s.q, at, head / s.share(), n0, s.n, s.scale, rowScale);
    loadUpstream<R, T>(values, s, g, at, head, p0);
  } else {
    loadTile<R, T>(keys, s.k, at, head / s.share(), n0, s.n, 1.f, rowScale);
    loadTile<R, T>(values, s.v, at, head, p0, s.p);
  }
  float* subTotal = more + kTile<R>;
  if (KIND == Decay::Channel) {
    loadDecay<R, T>(more, subTotal, s, at, head, n0);
    if (backwards) forUp<R, From::Chunk>(more, subTotal, [&](int i, float f) { keys[i] *= f; });
    else forDown<R, From::Chunk>(more, subTotal, [&](int i, float f) { keys[i] *= f; });
  }
  __syncthreads();
  const auto total = [&](int n) {
    if (KIND == Decay::Head) return st.up[C - 1];
    float all = 1.f;
    for (int r = 0; r < R; r++) all *= subTotal[r * C + n - n0];
    return all;
  };

  float acc[R][R] = {};
  if (s.byValue) productColsCols<Part::All, R>(acc, values, keys, at.length);
  else productColsCols<Part::All, R>(acc, keys, values, at.length);
  const int64_t pair = int64_t(at.sequence) * s.heads + head;
  float* to = task.single ? (backwards ? g.dInitial : s.final) + pair * s.stateSize()
                          : (backwards ? task.dstates : task.states) + index * s.stateSize();
  const float* from = nullptr;
  if (task.single && (backwards ? g.hasFinal : s.hasInitial)) from = (backwards ? g.dFinal : s.initial) + pair * s.stateSize();
  forTile<R>([&](int i, int j, int r, int c) {
    const int row = row0 + r, col = col0 + c, rows = s.byValue ? s.p : s.n, cols = s.byValue ? s.n : s.p;
    if (row >= rows || col >= cols) return;
    const int64_t offset = int64_t(row) * cols + col;
    to[offset] = from ? fmaf(total(s.byValue ? col : row), from[offset], acc[i][j]) : acc[i][j];
  });
  if (task.single || backwards || p0) return;
  if (KIND == Decay::Head) {
    if (n0 == 0 && threadIdx.x == 0) task.totals[index] = st.up[C - 1];
  } else if (threadIdx.x < C && n0 + int(threadIdx.x) < s.n) task.totals[index * s.n + n0 + threadIdx.x] = total(n0 + threadIdx.x);
}
template <int R, Decay KIND>
constexpr size_t statesShared() {
  return sizeof(float) * (2 * kTile<R> + 16 * R + (KIND == Decay::Head ? 6 * 16 * R : kTile<R> + R * 16 * R));
}

// The outputs of a chunk for some slices of value channels.
template <class T, int R, Decay KIND>
__global__ void __launch_bounds__(kGeneralThreads)
chunkOutputKernel(const __grid_constant__ Scan s, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *a = att + kTile<R>, *b = a + kTile<R>, *more = b + kTile<R>;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(more);
  const int width = task.valueTiles * C, blocks = (s.p + width - 1) / width, first = int(blockIdx.x % blocks) * width;
  const int64_t index = blockIdx.x / blocks, slot = index / s.heads;
  const int head = int(index % s.heads);
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;
  if (KIND == Decay::Head) loadSteps<R>(s, at, head, st);
  scores<T, R, KIND>(att, a, b, more, s, at, head, &st);
  const float* state = stateBefore(s, task, at, head, index);
  for (int p0 = first; p0 < min(s.p, first + width); p0 += C) {
    float acc[R][R] = {};
    if (state)
      for (int n0 = 0; n0 < s.n; n0 += C) {
        __syncthreads();
        loadTile<R, T>(a, s.q, at, head / s.share(), n0, s.n, s.scale, KIND == Decay::Head ? st.up : nullptr);
        loadState<R>(b, s, state, n0, p0);
        if (KIND == Decay::Channel) {
          loadDecay<R, T>(more, more + kTile<R>, s, at, head, n0);
          forUp<R, From::Chunk>(more, more + kTile<R>, [&](int i, float f) { a[i] *= f; });
        }
        __syncthreads();
        productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
      }
    __syncthreads();
    loadTile<R, T>(b, s.v, at, head, p0, s.p, 1.f, KIND == Decay::Head ? st.w : nullptr);
    __syncthreads();
    productRowsCols<Part::Lower, R>(acc, att, b, at.length);

    forTile<R>([&](int i, int j, int row, int col) {
      const int p = p0 + col;
      if (row >= at.length || p >= s.p) return;
      const int64_t t = at.start + row;
      float o = acc[i][j];
      if (s.normalized) o *= s.inverse[(at.batch * s.length + t) * s.heads + head];
      if (s.skip.given)
        o = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head),
                 toFloat(s.v.at<const T>(at.batch, t, head)[p]), o);
      if (s.z.given) o *= silu(toFloat(s.z.at<const T>(at.batch, t, head)[p]));
      s.y.at<T>(at.batch, t, head)[p] = fromFloat<T>(o);
    });
  }
}
template <int R, Decay KIND>
constexpr size_t outputShared() {
  return sizeof(float) * (3 * kTile<R> + (KIND == Decay::Head ? 6 * 16 * R : kTile<R> + R * 16 * R));
}

// dq or dk of the rows of this thread, into the gradient or into the part of its head.
template <class T, int R>
__device__ __forceinline__ void storeKeys(const float (&acc)[R][R], const Scan& s, const Gradient& g, const Place& at, int head, int n0,
                                          const Operand& result, float* heads, float factor) {
  forTile<R>([&](int i, int j, int row, int col) {
    const int n = n0 + col;
    if (row >= at.length || n >= s.n) return;
    const int64_t t = at.start + row;
    const float x = acc[i][j] * factor;
    if (g.sharers > 1) heads[((at.batch * s.length + t) * s.heads + head) * s.n + n] = x;
    else result.at<T>(at.batch, t, head)[n] = fromFloat<T>(x);
  });
}

// All gradients of one chunk and head but those of the initial states, with a decay per head.
template <class T, int R>
__global__ void __launch_bounds__(kGeneralThreads, 2)
chunkGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *r = att + kTile<R>, *a = r + kTile<R>, *b = a + kTile<R>;
  Steps<C>& st = *reinterpret_cast<Steps<C>*>(b + kTile<R>);
  float *crossing = b + kTile<R> + 6 * C, *carried = crossing + C, *direct = carried + C, *column = direct + C, *parts = column + C;
  const int64_t index = blockIdx.x, slot = index / s.heads;
  const int head = int(index % s.heads), group = head / s.share(), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const Place at = locate(s, slot, C);
  const int skipWidth = s.skip.wide ? s.p : 1;
  if (!at.valid || !at.length) {
    if (g.wantsSkip)
      for (int p = threadIdx.x; p < skipWidth; p += kGeneralThreads) g.skipParts[index * skipWidth + p] = 0.f;
    if (threadIdx.x == 0 && g.wantsRate) g.rateParts[index] = 0.f;
    if (threadIdx.x == 0 && g.wantsBias) g.biasParts[index] = 0.f;
    return;
  }
  const float *state = stateBefore(s, task, at, head, index), *dstate = gradientBehind(s, g, task, at, head, index);
  const bool decay = g.wantsDecay();
  const int64_t firstStep = (at.batch * s.length + at.start) * s.heads + head;
  loadSteps<R>(s, at, head, st);
  if (threadIdx.x < C) carried[threadIdx.x] = 0.f;
  scores<T, R, Decay::Head>(att, a, b, nullptr, s, at, head, &st);

  {  // R, and the sums over rows and columns of what passes through the decay mask
    float acc[R][R] = {}, columns[R] = {};
    for (int p0 = 0; p0 < s.p; p0 += C) {
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      __syncthreads();
      productRowsRows<Part::Triangle, R>(acc, a, b, s.p - p0);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
      const int t = ty + 16 * i;
      const float dden = g.dden && t < at.length ? g.dden[firstStep + int64_t(t) * s.heads] : 0.f;
      float row = 0.f;
#pragma unroll
      for (int j = 0; j <= i; j++) {
        const int u = tx + 16 * j;
        acc[i][j] += dden;
        const float e = acc[i][j] * att[t * kPitch<R> + u];  // att is 0 above the diagonal
        r[t * kPitch<R> + u] = u <= t ? acc[i][j] * decayBetween(st, t, u) * st.w[u] : 0.f;
        if (u < t) row = fmaf(st.w[u], e, row), columns[j] += e;
        if (u == t) direct[t] = e;
      }
      row = sumRow(row);
      if (tx == 0) crossing[t] = row;
    }
    sumColumns<R>(columns, parts, column);
    if (threadIdx.x < C) crossing[threadIdx.x] -= st.w[threadIdx.x] * column[threadIdx.x], direct[threadIdx.x] += column[threadIdx.x];
  }

  const bool carries = decay && dstate;
  float skipSum = 0.f;
  if (g.dv.given || g.wantsSkip || g.dz.given || carries)
    for (int p0 = 0; p0 < s.p; p0 += C) {
      float acc[R][R] = {};  // gradient of w v
      if (dstate) {
        for (int n0 = 0; n0 < s.n; n0 += C) {
          __syncthreads();
          loadTile<R, T>(a, s.k, at, group, n0, s.n);
          loadState<R>(b, s, dstate, n0, p0);
          __syncthreads();
          productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
        }
        scaleRows<R>(acc, st.down);
      }
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      __syncthreads();
      if (carries)
#pragma unroll
        for (int i = 0; i < R; i++) {
          const int t = ty + 16 * i;
          float row = 0.f;
#pragma unroll
          for (int j = 0; j < R; j++) row = fmaf(b[t * kPitch<R> + tx + 16 * j], acc[i][j], row);
          row = sumRow(row);
          if (tx == 0) carried[t] += row;
        }
      if (g.dv.given) {
        productColsCols<Part::Upper, R>(acc, att, a, at.length);
        forTile<R>([&](int i, int j, int t, int col) {
          const int p = p0 + col;
          if (t >= at.length || p >= s.p) return;
          float x = acc[i][j] * st.w[t];
          if (s.skip.given)
            x = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head), a[t * kPitch<R> + col], x);
          g.dv.at<T>(at.batch, at.start + t, head)[p] = fromFloat<T>(x);
        });
      }
      if (g.wantsSkip) {
        float columns[R] = {};
        forTile<R>([&](int, int j, int t, int col) { columns[j] = fmaf(a[t * kPitch<R> + col], b[t * kPitch<R> + col], columns[j]); });
        if (s.skip.wide) {
          sumColumns<R>(columns, parts, column);
          if (threadIdx.x < C && p0 + int(threadIdx.x) < s.p) g.skipParts[index * s.p + p0 + threadIdx.x] = column[threadIdx.x];
        } else {
#pragma unroll
          for (int j = 0; j < R; j++) skipSum += columns[j];
        }
      }
      if (g.dz.given) {
        float o[R][R] = {};  // y before the gate
        if (state)
          for (int n0 = 0; n0 < s.n; n0 += C) {
            __syncthreads();
            loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale, st.up);
            loadState<R>(b, s, state, n0, p0);
            __syncthreads();
            productRowsCols<Part::All, R>(o, a, b, s.n - n0);
          }
        __syncthreads();
        loadTile<R, T>(b, s.v, at, head, p0, s.p, 1.f, st.w);
        __syncthreads();
        productRowsCols<Part::Lower, R>(o, att, b, at.length);
        forTile<R>([&](int i, int j, int row, int col) {
          const int p = p0 + col;
          if (row >= at.length || p >= s.p) return;
          const int64_t t = at.start + row;
          float x = o[i][j];
          if (s.skip.given)
            x = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? int64_t(head) * s.p + p : head),
                     toFloat(s.v.at<const T>(at.batch, t, head)[p]), x);
          const float dy = g.dy.given ? toFloat(g.dy.at<const T>(at.batch, t, head)[p]) : 0.f;
          g.dz.at<T>(at.batch, t, head)[p] = fromFloat<T>(dy * x * siluSlope(toFloat(s.z.at<const T>(at.batch, t, head)[p])));
        });
      }
    }
  if (g.wantsSkip && !s.skip.wide) {
    __syncthreads();
    skipSum = blockReduce(skipSum, parts);
    if (threadIdx.x == 0) g.skipParts[index] = skipSum;
  }

  for (int n0 = 0; n0 < s.n; n0 += C) {
    if (g.dq.given || (decay && state)) {
      float acc[R][R] = {};
      if (state) {
        for (int p0 = 0; p0 < s.p; p0 += C) {
          __syncthreads();
          loadUpstream<R, T>(a, s, g, at, head, p0);
          loadState<R>(b, s, state, n0, p0);
          __syncthreads();
          productRowsRows<Part::All, R>(acc, a, b, s.p - p0);
        }
        scaleRows<R>(acc, st.up);
      }
      __syncthreads();
      loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
      loadTile<R, T>(b, s.k, at, group, n0, s.n);
      __syncthreads();
      if (decay && state)
#pragma unroll
        for (int i = 0; i < R; i++) {
          const int t = ty + 16 * i;
          float row = 0.f;
#pragma unroll
          for (int j = 0; j < R; j++) row = fmaf(a[t * kPitch<R> + tx + 16 * j], acc[i][j], row);
          row = sumRow(row);
          if (tx == 0) crossing[t] += row;
        }
      if (g.dq.given) {
        productRowsCols<Part::Lower, R>(acc, r, b, at.length);
        if (g.before)
          forTile<R>([&](int i, int j, int t, int col) {
            if (t < at.length && n0 + col < s.n)
              acc[i][j] = fmaf(g.dden[firstStep + int64_t(t) * s.heads], g.before[index * s.n + n0 + col], acc[i][j]);
          });
        storeKeys<T, R>(acc, s, g, at, head, n0, g.dq, g.dqHeads, s.scale);
      }
    }
    if (g.dk.given) {
      float acc[R][R] = {};
      if (dstate) {
        for (int p0 = 0; p0 < s.p; p0 += C) {
          __syncthreads();
          loadTile<R, T>(a, s.v, at, head, p0, s.p, 1.f, st.w);
          loadState<R>(b, s, dstate, n0, p0);
          __syncthreads();
          productRowsRows<Part::All, R>(acc, a, b, s.p - p0);
        }
        scaleRows<R>(acc, st.down);
      }
      __syncthreads();
      loadTile<R, T>(a, s.q, at, group, n0, s.n, s.scale);
      __syncthreads();
      productColsCols<Part::Upper, R>(acc, r, a, at.length);
      if (g.behind)
        forTile<R>([&](int i, int j, int, int col) {
          if (n0 + col < s.n) acc[i][j] += g.behind[index * s.n + n0 + col];
        });
      storeKeys<T, R>(acc, s, g, at, head, n0, g.dk, g.dkHeads, 1.f);
    }
  }
  if (!decay) return;

  float through = 0.f;
  if (state && dstate)
    for (int64_t i = threadIdx.x; i < s.stateSize(); i += kGeneralThreads) through = fmaf(state[i], dstate[i], through);
  __syncthreads();
  through = blockReduce(through, parts) * st.up[C - 1];
  if (threadIdx.x >= 32) return;
  constexpr int E = R / 2;
  LaneSteps<E> lane;
  float c[E], k[E], d[E];
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int t = threadIdx.x * E + e;
    lane.raw[e] = st.raw[t], lane.w[e] = st.w[t];
    c[e] = crossing[t], k[e] = carried[t], d[e] = direct[t] + carried[t];
  }
  decayGradient<E>(s, g, at, head, index, lane, c, k, d, through);
}
template <int R>
constexpr size_t gradientShared() {
  return sizeof(float) * (4 * kTile<R> + (6 + 4 + kGeneralWarps) * 16 * R);
}

// Decay per channel: dv of a chunk for some slices of value channels.
template <class T, int R>
__global__ void __launch_bounds__(kGeneralThreads)
channelValuesKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R;
  float* att = reinterpret_cast<float*>(chunkScanShared);
  float *a = att + kTile<R>, *b = a + kTile<R>, *eg = b + kTile<R>, *total = eg + kTile<R>;
  const int width = task.valueTiles * C, blocks = (s.p + width - 1) / width, first = int(blockIdx.x % blocks) * width;
  const int64_t index = blockIdx.x / blocks, slot = index / s.heads;
  const int head = int(index % s.heads);
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;
  scores<T, R, Decay::Channel>(att, a, b, eg, s, at, head, nullptr);
  const float* dstate = gradientBehind(s, g, task, at, head, index);
  for (int p0 = first; p0 < min(s.p, first + width); p0 += C) {
    float acc[R][R] = {};
    if (dstate)
      for (int n0 = 0; n0 < s.n; n0 += C) {
        __syncthreads();
        loadTile<R, T>(a, s.k, at, head / s.share(), n0, s.n);
        loadState<R>(b, s, dstate, n0, p0);
        loadDecay<R, T>(eg, total, s, at, head, n0);
        forDown<R, From::Chunk>(eg, total, [&](int i, float f) { a[i] *= f; });
        __syncthreads();
        productRowsCols<Part::All, R>(acc, a, b, s.n - n0);
      }
    __syncthreads();
    loadUpstream<R, T>(a, s, g, at, head, p0);
    __syncthreads();
    productColsCols<Part::Upper, R>(acc, att, a, at.length);
    forTile<R>([&](int i, int j, int row, int col) {
      if (row < at.length && p0 + col < s.p) g.dv.at<T>(at.batch, at.start + row, head)[p0 + col] = fromFloat<T>(acc[i][j]);
    });
  }
}

// Decay per channel: dq, dk and the gradient of the log-decays of a chunk for one slice of key channels. R is kept whole; its
// diagonal, which no decay touches, is added last. LOADED: what needs the value channels is there already.
template <class T, int R, bool LOADED>
__global__ void __launch_bounds__(kGeneralThreads)
channelKeysKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Task task) {
  constexpr int C = 16 * R, P = kPitch<R>;
  float* r = reinterpret_cast<float*>(chunkScanShared);
  float *q = r + kTile<R>, *k = q + kTile<R>, *eg = k + kTile<R>, *x = eg + kTile<R>, *total = x + kTile<R>;
  const int tiles = (s.n + C - 1) / C, n0 = int(blockIdx.x % tiles) * C;
  const int64_t index = blockIdx.x / tiles, slot = index / s.heads;
  const int head = int(index % s.heads), group = head / s.share(), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const Place at = locate(s, slot, C);
  if (!at.valid || !at.length) return;

  float dq[R][R] = {}, dk[R][R] = {}, through = 0.f;  // parts through the states; <S_in, dS_out> of channel threadIdx.x
  if (LOADED) {
    loadTile<R>(r, task.r + index * (C * C), C, C, C);
    forTile<R>([&](int i, int j, int t, int n) {
      if (t >= at.length || n0 + n >= s.n) return;
      const int64_t offset = ((at.batch * s.length + at.start + t) * s.heads + head) * s.n + n0 + n;
      dq[i][j] = task.dq[offset], dk[i][j] = task.dk[offset];
    });
    if (threadIdx.x < C && n0 + int(threadIdx.x) < s.n) through = task.through[index * s.n + n0 + threadIdx.x];
  } else {
    const float *state = stateBefore(s, task, at, head, index), *dstate = gradientBehind(s, g, task, at, head, index);
    float *a = q, *b = k;
    float acc[R][R] = {};
    for (int p0 = 0; p0 < s.p; p0 += C) {
      __syncthreads();
      loadUpstream<R, T>(a, s, g, at, head, p0);
      loadTile<R, T>(b, s.v, at, head, p0, s.p);
      if (state) loadState<R>(eg, s, state, n0, p0);
      if (dstate) loadState<R>(x, s, dstate, n0, p0);
      __syncthreads();
      productRowsRows<Part::Triangle, R>(acc, a, b, s.p - p0);
      if (state) productRowsRows<Part::All, R>(dq, a, eg, s.p - p0);
      if (dstate) productRowsRows<Part::All, R>(dk, b, x, s.p - p0);
      if (state && dstate && threadIdx.x < C)
        for (int p = 0; p < C; p++) through = fmaf(eg[threadIdx.x * P + p], x[threadIdx.x * P + p], through);
    }
    forTile<R>([&](int i, int j, int t, int u) {
      if (j <= i) r[t * P + u] = u <= t ? acc[i][j] : 0.f;
    });
  }
  __syncthreads();
  loadTile<R, T>(q, s.q, at, group, n0, s.n, s.scale);
  loadTile<R, T>(k, s.k, at, group, n0, s.n);
  loadDecay<R, T>(eg, total, s, at, head, n0);

  float crossing[R][R], carried[R][R];
  forUp<R, From::Chunk>(eg, total, [&](int i, float f) { x[i] = f; });
  __syncthreads();
  multiplyTile<R>(dq, x);
  __syncthreads();
  forDown<R, From::Chunk>(eg, total, [&](int i, float f) { x[i] = f; });
  __syncthreads();
  multiplyTile<R>(dk, x);
  forTile<R>([&](int i, int j, int t, int n) { crossing[i][j] = q[t * P + n] * dq[i][j], carried[i][j] = k[t * P + n] * dk[i][j]; });
  const auto addToQ = [&](int i, int j, int t, int n, float d) { dq[i][j] += d, crossing[i][j] = fmaf(q[t * P + n], d, crossing[i][j]); };
  const auto addToK = [&](int i, int j, int t, int n, float d) { dk[i][j] += d, crossing[i][j] = fmaf(-k[t * P + n], d, crossing[i][j]); };
  const ChannelThread<R> me;
  __syncthreads();

  if (me.works()) {  // within sub-chunks: keys before, decayed up to step t
    float walk[kSub];
#pragma unroll
    for (int t = 0; t < kSub; t++) {
      const int row = me.sub * kSub + t;
      const float e = eg[row * P + me.n];
      float sum = 0.f;
#pragma unroll
      for (int u = 0; u < t; u++) {
        walk[u] *= e;
        sum = fmaf(r[row * P + me.sub * kSub + u], walk[u], sum);
      }
      x[row * P + me.n] = sum;
      walk[t] = k[row * P + me.n];
    }
  }
  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { addToQ(i, j, t, n, x[t * P + n]); });
  __syncthreads();
  if (me.works()) {  // queries behind, decayed back to step u
    float walk[kSub];
#pragma unroll
    for (int u = kSub - 1; u >= 0; u--) {
      const int row = me.sub * kSub + u;
      const float e = u + 1 < kSub ? eg[(row + 1) * P + me.n] : 1.f;
      float sum = 0.f;
#pragma unroll
      for (int t = u + 1; t < kSub; t++) {
        walk[t] *= e;
        sum = fmaf(r[(me.sub * kSub + t) * P + row], walk[t], sum);
      }
      x[row * P + me.n] = sum;
      walk[u] = q[row * P + me.n];
    }
  }
  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { addToK(i, j, t, n, x[t * P + n]); });

  // between sub-chunks
  float passed[R][R];
#pragma unroll
  for (int m = 0; m < R; m++)
#pragma unroll
    for (int j = 0; j < R; j++) passed[m][j] = total[m * C + tx + 16 * j];
  {
    __syncthreads();
    forDown<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = k[i] * f; });
    __syncthreads();
    float acc[R][R] = {};
#pragma unroll
    for (int c = 0; c < R - 1; c++)
#pragma unroll 4
      for (int u = 16 * c; u < 16 * c + 16; u++) {
        float key[R];
#pragma unroll
        for (int j = 0; j < R; j++) key[j] = x[u * P + tx + 16 * j];
#pragma unroll
        for (int i = c + 1; i < R; i++) {
          const float f = r[(ty + 16 * i) * P + u];
#pragma unroll
          for (int j = 0; j < R; j++) acc[i][j] = fmaf(f, key[j], acc[i][j]), key[j] *= passed[i][j];
        }
      }
    __syncthreads();
    forUp<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = f; });
    __syncthreads();
    forTile<R>([&](int i, int j, int t, int n) { addToQ(i, j, t, n, acc[i][j] * x[t * P + n]); });
  }
  {
    __syncthreads();
    forUp<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = q[i] * f; });
    __syncthreads();
    float acc[R][R] = {};
#pragma unroll
    for (int c = 1; c < R; c++)
#pragma unroll 4
      for (int t = 16 * c; t < 16 * c + 16; t++) {
        float query[R];
#pragma unroll
        for (int j = 0; j < R; j++) query[j] = x[t * P + tx + 16 * j];
#pragma unroll
        for (int i = c - 1; i >= 0; i--) {
          const float f = r[t * P + ty + 16 * i];
#pragma unroll
          for (int j = 0; j < R; j++) acc[i][j] = fmaf(f, query[j], acc[i][j]), query[j] *= passed[i][j];
        }
      }
    __syncthreads();
    forDown<R, From::Sub>(eg, total, [&](int i, float f) { x[i] = f; });
    __syncthreads();
    forTile<R>([&](int i, int j, int t, int n) { addToK(i, j, t, n, acc[i][j] * x[t * P + n]); });
  }

  forTile<R>([&](int i, int j, int t, int n) {
    const float d = r[t * P + t];
    dq[i][j] = fmaf(d, k[t * P + n], dq[i][j]), dk[i][j] = fmaf(d, q[t * P + n], dk[i][j]);
  });
  if (g.dq.given) storeKeys<T, R>(dq, s, g, at, head, n0, g.dq, g.dqHeads, s.scale);
  if (g.dk.given) storeKeys<T, R>(dk, s, g, at, head, n0, g.dk, g.dkHeads, 1.f);
  if (!g.dgate.given) return;

  __syncthreads();
  forTile<R>([&](int i, int j, int t, int n) { x[t * P + n] = crossing[i][j], eg[t * P + n] = carried[i][j]; });
  __syncthreads();
  const int n = threadIdx.x;
  if (n >= C || n0 + n >= s.n) return;
  float run = 0.f;
  for (int t = at.length - 1; t >= 0; t--) x[t * P + n] = run += x[t * P + n];
  run = through;
  for (int m = 0; m < R; m++) run *= total[m * C + n];
  for (int t = 0; t < at.length; t++) {
    const float d = x[t * P + n] + run;
    if (g.dgate.dtype == MM_F32) g.dgate.at<float>(at.batch, at.start + t, head)[n0 + n] = d;
    else g.dgate.at<T>(at.batch, at.start + t, head)[n0 + n] = fromFloat<T>(d);
    run += eg[t * P + n];
  }
}
template <int R>
constexpr size_t channelShared(int tiles) {
  return sizeof(float) * (tiles * kTile<R> + R * 16 * R);
}

}  // namespace mm::cuda::chunk_scan
