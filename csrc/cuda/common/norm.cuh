// What rmsNorm, gatedRmsNorm and layerNorm share. Each has kernels whose teams hold rows in registers, and loose ones for any row
// at any address. In the backward every block (registers) or team (loose) writes a partial row of the parameters' gradients.
#pragma once
#include "cuda/common/rows.cuh"

namespace mm::cuda {

// Whether lanes of K vectors have the registers for parameters, and in the backward for the next row.
template <int K>
constexpr bool kNormAhead = K <= 2;
// Most threads of a block and blocks of a multiprocessor.
template <int K>
constexpr int kNormForwardThreads = K <= 2 ? 384 : 512;
template <int K>
constexpr int kNormForwardBlocks = K <= 2 ? 2 : 1;
template <int K>
constexpr int kNormBackwardThreads = K == 1 ? 256 : 512;
template <int K>
constexpr int kNormBackwardBlocks = K == 1 ? 3 : 1;

// Sums over the team that a block is, or over parts of a warp; every lane gets them, N at once. Calls take two areas of shared memory
// in turn, so that each has one barrier, and that is the block's: a kernel that names its barriers at run time (TeamSums) takes all
// 16, and a multiprocessor then holds few of its blocks.
template <int N>
struct BlockSums {
  static constexpr int kFloats = 2 * N * 32;  // of `scratch`
  float* scratch;
  int turn = 0;

  __device__ __forceinline__ explicit BlockSums(float* memory) : scratch(memory) {}
  __device__ __forceinline__ void operator()(float (&v)[N], const Team& team) {
    for (int offset = (team.lanes < 32 ? team.lanes : 32) / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int i = 0; i < N; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
    if (team.lanes <= 32) return;
    float* area = scratch + turn * 32 * N;
    turn ^= 1;
    const int warps = team.lanes / 32;
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < N; i++) area[i * 32 + threadIdx.x / 32] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = area[i * 32];
#pragma unroll 4
    for (int w = 1; w < warps; w++)
#pragma unroll
      for (int i = 0; i < N; i++) v[i] += area[i * 32 + w];
  }
};

// The vectors of a lane of P parameters, of one type, f32 or T; an absent one is 1 if it is the first, else 0. All loads come before
// the first use.
template <class T, int K, int P>
__device__ __forceinline__ void loadParameters(const Weights (&from)[P], int n, const Team& team, float (&to)[P][K][kVector<T>]) {
  const auto as = [&](auto type) {
    using W = decltype(type);
    constexpr int V = kVector<T>, M = V / kVector<W>;
    Words<W> words[P][K][M];
#pragma unroll
    for (int p = 0; p < P; p++)
#pragma unroll
      for (int k = 0; k < K; k++) {
        const int j = (k * team.lanes + team.lane) * V;
#pragma unroll
        for (int m = 0; m < M; m++) {
          words[p][k][m] = {};
          if (from[p].data && j < n) words[p][k][m] = loadWords(static_cast<const W*>(from[p].data) + j + m * kVector<W>);
        }
      }
#pragma unroll
    for (int p = 0; p < P; p++)
#pragma unroll
      for (int k = 0; k < K; k++)
#pragma unroll
        for (int m = 0; m < M; m++) {
          float v[kVector<W>];
          unpack(words[p][k][m], v);
#pragma unroll
          for (int i = 0; i < kVector<W>; i++) to[p][k][m * kVector<W> + i] = from[p].data || p > 0 ? v[i] : 1.f;
        }
  };
  bool single = std::is_same_v<T, float>;
#pragma unroll
  for (int p = 0; p < P; p++) single = single || (from[p].data && from[p].dtype == MM_F32);
  if (single) as(float{});
  else as(T{});
}

// sum[r] = add(... add(add(0, v0), v1) ...) over what a lane has of a row, which is zero past the row's end.
template <class T, int K, int R, class F>
__device__ __forceinline__ void laneSums(Words<T> (&px)[R][K], float (&sum)[R], F&& add) {
  constexpr int V = kVector<T>;
#pragma unroll
  for (int r = 0; r < R; r++) {
    sum[r] = 0.f;
#pragma unroll
    for (int k = 0; k < K; k++) {
      float v[V];
      unpack(px[r][k], v);
#pragma unroll
      for (int i = 0; i < V; i++) sum[r] = add(sum[r], v[i]);
    }
  }
  keepPacked(px);
}
template <class T, int K, int R>
__device__ __forceinline__ void squares(Words<T> (&px)[R][K], float (&sum)[R]) {
  laneSums(px, sum, [](float s, float v) { return fmaf(v, v, s); });
}

// 1 / sqrt(mean of the squares + eps) of the first `end` elements of a row: n, or 0 where the team has none.
template <class T>
__device__ __forceinline__ float looseInverseRms(const T* x, int64_t n, int64_t end, float eps, const Team& team, float* scratch) {
  float sum[1] = {};
  for (int64_t j = team.lane; j < end; j += team.lanes) sum[0] = fmaf(toFloat(x[j]), toFloat(x[j]), sum[0]);
  teamReduce(sum, team.lanes, scratch);
  return rsqrtf(sum[0] / float(n) + eps);
}

// The vectors that a lane holds: one in teams of parts of a warp, more in teams of warps.
inline int forwardVectors(int64_t vectors) {
  return vectors <= 32 ? 1 : vectors <= 2 * kNormForwardThreads<2> ? 2 : vectors <= 2048 ? 4 : 8;
}
// One vector in parts of a warp, two in blocks of up to 512, then more.
inline int wholeRowVectors(int64_t vectors) { return vectors <= 32 ? 1 : vectors <= 1024 ? 2 : vectors <= 2048 ? 4 : 8; }
template <int K>
constexpr int kWholeRowBlocks = K == 2 ? 2 : 1;  // of 512 threads on a multiprocessor
inline int backwardVectors(int64_t vectors) { return vectors <= 32 ? 1 : vectors <= 1024 ? 2 : 4; }

inline TeamPlan wholeRowPlan(int64_t n, int v, int perLane) { return TeamPlan(n, v, perLane, ceilDiv(n / v, perLane) > 32 ? 0 : 256); }
inline TeamPlan forwardPlan(int64_t n, int v) { return TeamPlan(n, v, forwardVectors(n / v), 128); }
inline TeamPlan backwardPlan(int64_t n, int v) {
  const int perLane = backwardVectors(n / v);
  return TeamPlan(n, v, perLane, perLane == 1 ? kNormBackwardThreads<1> : kNormBackwardThreads<2>);
}

inline int vectorOf(const MMTensorView& x) { return x.dtype == MM_F32 ? 4 : 8; }

// Whether the rows are whole vectors, at most `most` of them.
inline bool wholeVectors(const MMTensorView& x, int64_t most) { return lastDim(x) % vectorOf(x) == 0 && lastDim(x) / vectorOf(x) <= most; }

// Blocks of 256 threads of a loose kernel over the rows of x: teams of a few lanes, or of all threads for long rows. Where each
// team writes a partial row of `columns` (0: it does not), all of them together have at most 64 MB, or one row for each team of
// one block.
struct LoosePlan {
  int lanes;
  int64_t blocks;

  LoosePlan(const MMCall* c, const MMTensorView& x, int64_t columns)
      : lanes(lanesOf(lastDim(x))), blocks(ceilDiv(rowCount(x), 256 / lanes)) {
    if (!columns) return;
    const int64_t perBlock = 256 / lanes * columns;
    int64_t most = int64_t(deviceOf(c).multiprocessors) * 4;
    if (most * perBlock > (int64_t(1) << 24)) most = (int64_t(1) << 24) / perBlock;
    if (most < 1) most = 1;
    if (blocks > most) blocks = most;
  }
  int64_t teams() const { return blocks * (256 / lanes); }

  static int lanesOf(int64_t n) {
    for (int lanes = 1; lanes <= 32; lanes *= 2)
      if (n <= lanes * 8) return lanes;
    return n <= 1024 ? 32 : 256;
  }
};

// How many blocks of this kernel the device holds at once.
template <class... P>
int64_t residentBlocks(const MMCall* c, void (*kernel)(P...), int threads, size_t shared) {
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  int blocks = 0;
  const cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared);
  return int64_t(s.device->multiprocessors) * (status == cudaSuccess && blocks > 0 ? blocks : 1);
}

// Blocks of a backward kernel in registers: as many as run at once. floats: the columns that a lane holds.
struct StayingBlocks {
  size_t shared;  // what storeColumnSums needs
  int64_t count;

  template <class... P>
  StayingBlocks(const MMCall* c, void (*kernel)(P...), const TeamPlan& plan, int floats, int64_t rows)
      : shared(plan.teams > 1 ? size_t(plan.threads) * floats * sizeof(float) : 0),
        count(plan.mostBlocks(rows, deviceOf(c).multiprocessors)) {
    const int64_t resident = residentBlocks(c, kernel, plan.threads, shared);
    if (resident < count) count = resident;
  }
};

// Bytes of the partial rows of the loose backward, and of either: the one in registers turns to the loose one by the addresses.
inline uint64_t looseWorkspace(const MMCall* c, const MMTensorView& x, int64_t columns) {
  return columns ? uint64_t(LoosePlan(c, x, columns).teams() * columns) * sizeof(float) : 0;
}
inline uint64_t normWorkspace(const MMCall* c, const MMTensorView& x, int64_t columns) {
  const TeamPlan plan = backwardPlan(lastDim(x), vectorOf(x));
  const uint64_t bytes = uint64_t(plan.mostBlocks(rowCount(x), deviceOf(c).multiprocessors) * columns) * sizeof(float);
  const uint64_t loose = looseWorkspace(c, x, columns);
  return bytes > loose ? bytes : loose;
}

}  // namespace mm::cuda
