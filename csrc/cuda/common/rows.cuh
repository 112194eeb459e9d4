// Norms, losses and their relatives work on rows: tensors as (rows, columns). A team of threads shares a row: a power of two up
// to a warp, several teams side by side in a block, or the whole block. Team t of all takes the rows t, t + teams, ...
//
// Gradients of a weight are sums over rows: every team adds its own rows in registers, every block writes one partial row, and
// a second kernel adds the partial rows in order.
#pragma once
#include "cuda/kernel.cuh"

#include "abi/nest.h"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda {

// ---- where rows begin

// The axes before the last one of K operands of one shape.
template <int K>
Nest<K> rowNest(const MMTensorView* const (&views)[K]) {
  Nest<K> nest;
  for (int i = 0; i + 1 < views[0]->ndim; i++) {
    int64_t strides[K];
    for (int k = 0; k < K; k++) strides[k] = views[k]->stride[i];
    nest.push(views[0]->shape[i], strides);
  }
  nest.coalesce();
  return nest;
}

// Division of numbers that are not negative; 64-bit division only where it is needed.
__host__ __device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// Offsets of row `row` of the first `dims` axes of a nest.
template <int K>
__host__ __device__ __forceinline__ void rowOffsets(const Nest<K>& nest, int dims, int64_t row, int64_t (&offset)[K]) {
  for (int k = 0; k < K; k++) offset[k] = 0;
  for (int i = dims - 1; i > 0; i--) {
    const int64_t outer = quotient(row, nest.size[i]), index = row - outer * nest.size[i];
    for (int k = 0; k < K; k++) offset[k] += index * nest.stride[k][i];
    row = outer;
  }
  for (int k = 0; k < K; k++) offset[k] += row * nest.stride[k][0];
}

// ---- teams

// `lanes` threads of a block, side by side: a power of two up to 32, or whole warps.
struct Team {
  int lanes, lane, index, count;  // lane in the team, team in the block, teams of the block

  __device__ __forceinline__ explicit Team(int n) : lanes(n), lane(threadIdx.x), index(0), count(1) {
    if (n == int(blockDim.x)) return;
    index = threadIdx.x / unsigned(n);
    lane = threadIdx.x - index * n;
    count = blockDim.x / unsigned(n);
  }
  __device__ __forceinline__ int64_t all() const { return int64_t(gridDim.x) * count; }
  // The threads of the team wait for each other; teams of whole warps.
  __device__ __forceinline__ void sync() const { asm volatile("bar.sync %0, %1;" ::"r"(index + 1), "r"(lanes) : "memory"); }
};

// Sums over teams, N at once, for every lane: of teams of whole WARPS, or of parts of a warp. Teams need not call together, and
// calls take two areas of shared memory in turn, so that each has one barrier.
template <int N, bool WARPS>
struct TeamSums {
  static constexpr int kFloats = WARPS ? 2 * 32 * N : 1;  // of `scratch`
  float* scratch;
  int spread = 1;  // power of two, at least the warps of a team
  int turn = 0;

  __device__ __forceinline__ TeamSums(float* memory, const Team& team) : scratch(memory) {
    while (spread * 32 < team.lanes) spread *= 2;
  }
  template <int M>
  __device__ __forceinline__ void operator()(float (&v)[M], const Team& team) {
    static_assert(M <= N, "an area");
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      if (WARPS || offset < team.lanes)
#pragma unroll
        for (int i = 0; i < M; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
    if (!WARPS || team.lanes == 32) return;
    float* area = scratch + turn * 32 * N;
    turn ^= 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = team.lanes / 32, other = lane & (spread - 1);
    if (lane == 0)
#pragma unroll
      for (int i = 0; i < M; i++) area[i * 32 + warp] = v[i];
    team.sync();
#pragma unroll
    for (int i = 0; i < M; i++) v[i] = other < warps ? area[i * 32 + team.index * warps + other] : 0.f;
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2)
      if (offset < spread)
#pragma unroll
        for (int i = 0; i < M; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  }
};

// Every lane of a team gets the reductions of N values. Called by all threads of the block together, whose teams are parts of a
// warp or the whole block. `scratch`: 32 N floats.
template <class Op = Add, int N>
__device__ __forceinline__ void teamReduce(float (&v)[N], int lanes, float* scratch, Op op = {}) {
  for (int offset = (lanes < 32 ? lanes : 32) / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = op(v[i], __shfl_xor_sync(0xffffffffu, v[i], offset));
  if (lanes <= 32) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < N; i++) scratch[i * 32 + warp] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = warpReduce(lane * 32 < lanes ? scratch[i * 32 + lane] : Op::identity, op);
  __syncthreads();
}

// The sum over a block of whole warps, for thread 0. `scratch`: 32 doubles.
__device__ __forceinline__ double blockSum(double v, double* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += scratch[i];
  __syncthreads();
  return sum;
}

// ---- 16 bytes as they lie in memory; as Pack, 16-bit elements would take a register each

template <class T>
struct Words {
  uint32_t w[4];
};

template <class T>
__device__ __forceinline__ Words<T> loadWords(const T* p) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
template <class T>
__device__ __forceinline__ void unpack(const Words<T>& words, float (&v)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t w = words.w[i];
    if constexpr (std::is_same_v<T, float>) {
      v[i] = __uint_as_float(w);
    } else if constexpr (std::is_same_v<T, bf16>) {
      v[2 * i] = __uint_as_float(w << 16);
      v[2 * i + 1] = __uint_as_float(w & 0xffff0000u);
    } else {
      const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&w));
      v[2 * i] = f.x;
      v[2 * i + 1] = f.y;
    }
  }
}
// One store of 16 bytes, said outright: left to the compiler, some kernels got four of 4 bytes. Nothing may read the address in
// the same kernel.
template <class T>
__device__ __forceinline__ void storeVector(T* p, const float (&v)[kVector<T>]) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (std::is_same_v<T, float>) w[i] = __float_as_uint(v[i]);
    else w[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
  }
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]));
}

// Makes the compiler unpack again after a reduction; it would keep all floats of the pass before, at twice the registers.
template <class T, int R, int K>
__device__ __forceinline__ void keepPacked(Words<T> (&words)[R][K]) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) asm volatile("" : "+r"(words[r][k].w[i]));
}

// ---- rows in registers: lane l of a team holds the vectors l, l + lanes, ... of a row

// The rest of a row of n columns, a multiple of the vector, is zero; so is all of it where n is 0.
template <class T, int K>
__device__ __forceinline__ void loadRow(const T* row, int n, const Team& team, Words<T> (&x)[K]) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = (k * team.lanes + team.lane) * kVector<T>;
    x[k] = {};
    if (j < n) x[k] = loadWords(row + j);
  }
}

// f(k, j) for the vectors of a lane, which begin in column j
template <int V, int K, class F>
__device__ __forceinline__ void eachVector(int n, const Team& team, F&& f) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = (k * team.lanes + team.lane) * V;
    if (j < n) f(k, j);
  }
}

// V values that no thread writes while the kernel runs, so that their loads may pass stores.
template <int V, class T>
__device__ __forceinline__ void loadConstants(const T* p, float (&to)[V]) {
  if constexpr (V % kVector<T> == 0) {
#pragma unroll
    for (int h = 0; h < V / kVector<T>; h++) {
      const uint4 w = __ldg(reinterpret_cast<const uint4*>(p) + h);
      float v[kVector<T>];
      unpack(Words<T>{{w.x, w.y, w.z, w.w}}, v);
#pragma unroll
      for (int i = 0; i < kVector<T>; i++) to[h * kVector<T> + i] = v[i];
    }
  } else {
    loadFloats<V>(p, to);
  }
}

// A vector of parameters of any float dtype; absent: null.
struct Weights {
  const void* data = nullptr;
  int32_t dtype = MM_F32;

  Weights() = default;
  explicit Weights(const MMTensorView& v) : data(v.data), dtype(v.dtype) {}

  template <int V>
  __device__ __forceinline__ void load(int64_t j, float (&to)[V], float absent = 1.f) const {
    if (!data) {
#pragma unroll
      for (int i = 0; i < V; i++) to[i] = absent;
    } else if (dtype == MM_BF16) {
      loadConstants(static_cast<const bf16*>(data) + j, to);
    } else if (dtype == MM_F16) {
      loadConstants(static_cast<const f16*>(data) + j, to);
    } else {
      loadConstants(static_cast<const float*>(data) + j, to);
    }
  }
  __device__ __forceinline__ float at(int64_t j, float absent = 1.f) const {
    float v[1];
    load<1>(j, v, absent);
    return v[0];
  }
  bool vectors(int v) const { return reinterpret_cast<uintptr_t>(data) % (uint64_t(v) * (dtype == MM_F32 ? 4 : 2)) == 0; }
};

// Adds what the block's teams hold of the columns, in the order of the teams, and writes `to` (n). `shared`: floats for K
// vectors of V a thread, where the block has several teams.
template <int V, int K>
__device__ __forceinline__ void storeColumnSums(const float (&v)[K][V], int n, const Team& team, float* shared, float* to) {
  if (team.count == 1) {
    eachVector<V, K>(n, team, [&](int k, int j) { storeFloats<V>(to + j, v[k]); });
    return;
  }
  const int span = K * V * team.lanes;
  eachVector<V, K>(n, team, [&](int k, int j) { storeFloats<V>(shared + team.index * span + j, v[k]); });
  __syncthreads();
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    float sum = 0.f;
    for (int t = 0; t < team.count; t++) sum += shared[t * span + j];
    to[j] = sum;
  }
  __syncthreads();
}

// How rows of n columns, in vectors of v, are cut: `perLane` vectors a lane; blocks of about `size` threads.
struct TeamPlan {
  int lanes, threads, teams;  // of a block

  TeamPlan(int64_t n, int v, int perLane, int size) {
    const int64_t needed = ceilDiv(ceilDiv(n, v), perLane);
    for (lanes = 1; lanes < needed && lanes < 32;) lanes *= 2;
    if (needed > 32) lanes = int(ceilDiv(needed, 32) * 32);
    teams = size > lanes ? size / lanes : 1;
    threads = teams * lanes;
  }
  // Blocks for a kernel whose teams take several rows at once: less of them where there are enough rows for all.
  int64_t blocks(int64_t rows, int rowsAtOnce, int multiprocessors) const {
    const int64_t apiece = ceilDiv(rows, teams), enough = int64_t(multiprocessors) * (2048 / threads);
    const int64_t few = ceilDiv(rows, int64_t(teams) * rowsAtOnce);
    return few > enough ? few : apiece < enough ? apiece : enough;
  }
  // Bound of the blocks that run at once, each of which walks over many rows and writes one partial row.
  int64_t mostBlocks(int64_t rows, int multiprocessors) const {
    const int64_t apiece = ceilDiv(rows, teams), resident = int64_t(multiprocessors) * (2048 / threads);
    return apiece < resident ? apiece : resident;
  }
};

// ---- rows of any address, such as logits of an odd vocabulary

// f(j, v) with float v[K][N], N neighbours from column j of K rows, N = 1 or a whole vector: all columns j < n, in ascending
// order for each lane. U vectors are under way at once. The rows are read as vectors where all of them, and `target`, which f
// writes, lie alike against 16 bytes; the first and last few elements of a row come one by one.
template <int U, int K, class T, class F>
__device__ __forceinline__ void walkRows(const T* const (&rows)[K], const T* target, int64_t n, int lane, int lanes, F&& f) {
  constexpr int V = kVector<T>;
  const auto place = [](const T* p) { return uint32_t(reinterpret_cast<uintptr_t>(p)) % 16; };
  bool alike = !target || place(target) == place(rows[0]);
#pragma unroll
  for (int k = 1; k < K; k++) alike = alike && place(rows[k]) == place(rows[0]);
  int64_t head = (16 - place(rows[0])) % 16 / sizeof(T);
  if (!alike || head > n) head = n;
  const int64_t vectors = (n - head) / V;
  const auto single = [&](int64_t j) {
    float v[K][1];
#pragma unroll
    for (int k = 0; k < K; k++) v[k][0] = toFloat(rows[k][j]);
    f(j, v);
  };
  for (int64_t j = lane; j < head; j += lanes) single(j);
  for (int64_t first = lane; first < vectors; first += int64_t(lanes) * U) {
    Words<T> words[U][K];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (first + int64_t(u) * lanes < vectors)
#pragma unroll
        for (int k = 0; k < K; k++) words[u][k] = loadWords(rows[k] + head + (first + int64_t(u) * lanes) * V);
#pragma unroll
    for (int u = 0; u < U; u++)
      if (first + int64_t(u) * lanes < vectors) {
        float v[K][V];
#pragma unroll
        for (int k = 0; k < K; k++) unpack(words[u][k], v[k]);
        f(head + (first + int64_t(u) * lanes) * V, v);
      }
  }
  for (int64_t j = head + vectors * V + lane; j < n; j += lanes) single(j);
}

// Threads for rows of n columns under walkRows: a warp, or a block.
inline int walkLanes(int64_t n, int64_t rows, int multiprocessors) {
  if (n <= 1024) return 32;
  if (n <= 8192) return 256;
  return rows <= multiprocessors * 2 ? 1024 : 512;
}

// ---- partial rows

// partial (parts, columns) f32 -> the sum over the parts: the columns before `split` to out, the others to rest. TURNS threads a
// column take the parts by turns.
template <class T, int TURNS>
__global__ void __launch_bounds__(32 * TURNS) addPartialsKernel(const float* __restrict__ partial, T* __restrict__ out, T* __restrict__ rest,
    int64_t parts, int64_t columns, int64_t split) {
  __shared__ float sums[32][TURNS + 1];
  const int lane = threadIdx.x % 32, turn = threadIdx.x / 32;
  const int64_t j = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0.f;
  awaitEarlierKernels();
  if (j < columns)
    for (int64_t first = turn; first < parts; first += 8 * TURNS) {
      float v[8];
#pragma unroll
      for (int u = 0; u < 8; u++) {
        const int64_t i = first + u * TURNS;
        v[u] = i < parts ? partial[i * columns + j] : 0.f;
      }
#pragma unroll
      for (int u = 0; u < 8; u++) sum += v[u];
    }
  sums[lane][turn] = sum;
  __syncthreads();
  const auto write = [&](int64_t column, float total) {
    if (column < columns) (column < split ? out[column] : rest[column - split]) = fromFloat<T>(total);
  };
  if constexpr (TURNS == 32) {
    const float total = warpReduce(sums[turn][lane]);
    if (lane == 0) write(int64_t(blockIdx.x) * 32 + turn, total);
  } else {
    if (turn > 0) return;
    for (int i = 1; i < TURNS; i++) sum += sums[lane][i];
    write(j, sum);
  }
}

template <class T>
int32_t addPartials(const MMCall* c, const float* partial, T* out, T* rest, int64_t parts, int64_t columns, int64_t split) {
  const dim3 grid(unsigned(ceilDiv(columns, 32)));
  if (parts <= 64) return launchOverlapping(c, addPartialsKernel<T, 8>, grid, dim3(256), 0, partial, out, rest, parts, columns, split);
  return launchOverlapping(c, addPartialsKernel<T, 32>, grid, dim3(1024), 0, partial, out, rest, parts, columns, split);
}
template <class T>
int32_t addPartials(const MMCall* c, const float* partial, T* out, int64_t parts, int64_t columns) {
  return addPartials<T>(c, partial, out, static_cast<T*>(nullptr), parts, columns, columns);
}

}  // namespace mm::cuda
