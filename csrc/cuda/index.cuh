// Rows by index: gatherRows, scatterRows, scatterAddRows and their gradients; also embedding. Rows are moved as bytes, in units
// of up to 16, by groups of lanes as wide as a row and four rows a group at once.
//
// Out-of-range indices cannot throw here: gathered rows become NaN (0 in integer tensors), scattered ones are skipped.
//
// Sums of rows with the same index (scatterAddRows, gatherRowsBackward, embeddingBackward) first sort the pairs (index, place in
// the list), which are unique, so that the result does not depend on timing: a block sorts kSortChunk pairs in shared memory
// (bitonic), and where there are several chunks every pair finds its final place by searching the other chunks. Then a warp adds
// up to kShortRun rows of one index in the order of the list; longer runs (padding, image tokens) take a block, whose 16 rows of
// threads add every 16th row and then one another, in a fixed order. Rows that no index names are copied or zeroed beforehand.
#pragma once
#include <cstring>

#include "cuda/copy.cuh"

namespace mm::cuda {

constexpr int kRowsUnroll = 4, kSortChunk = 4096, kSortThreads = 1024, kShortRun = 32;

// ---- moving rows
// Where row m of the result comes from.
enum class Pick : int32_t {
  Gather,    // base[index[m]], else `missing`
  Replace,   // other[last[m]], where an index named row m, else base[m]
  Kept,      // base[m], or zeros where an index named row m
  Replaced,  // base[index[m]] for the last index of that row, else zeros
};

template <class E>
struct RowSource {
  Pick pick;
  const E *base, *other;
  const int32_t *index, *last;
  int64_t rows;  // of base
  E missing;
};

template <class E>
__global__ void __launch_bounds__(kMapThreads) moveRowsKernel(const __grid_constant__ RowSource<E> s, E* __restrict__ y, int64_t count,
                                                              int64_t units, int32_t lanesLog) {
  constexpr int Q = kRowsUnroll;
  const int lanes = 1 << lanesLog, height = kMapThreads >> lanesLog;
  const int64_t first = int64_t(blockIdx.x) * height * Q + (threadIdx.x >> lanesLog);
  const bool byIndex = s.pick == Pick::Gather || s.pick == Pick::Replaced;
  int32_t row[Q], owner[Q];
#pragma unroll
  for (int q = 0; q < Q; q++) {
    const int64_t m = first + q * height < count ? first + q * height : count - 1;
    row[q] = (byIndex ? s.index : s.last)[m];
  }
  if (byIndex) {
#pragma unroll
    for (int q = 0; q < Q; q++)
      if (row[q] >= s.rows) row[q] = -1;
    if (s.pick == Pick::Replaced) {
#pragma unroll
      for (int q = 0; q < Q; q++) owner[q] = row[q] < 0 ? -1 : s.last[row[q]];
#pragma unroll
      for (int q = 0; q < Q; q++)
        if (owner[q] != first + q * height) row[q] = -1;
    }
  }
  const E* from[Q];
#pragma unroll
  for (int q = 0; q < Q; q++) {
    const int64_t m = first + q * height;
    if (byIndex) from[q] = row[q] < 0 ? nullptr : s.base + row[q] * units;
    else if (row[q] < 0) from[q] = s.base + m * units;
    else from[q] = s.pick == Pick::Replace ? s.other + row[q] * units : nullptr;
    if (m >= count) from[q] = nullptr;
  }
#pragma unroll 1
  for (int64_t j = int64_t(blockIdx.y) * lanes + (threadIdx.x & (lanes - 1)); j < units; j += int64_t(gridDim.y) * lanes) {
    E x[Q];
#pragma unroll
    for (int q = 0; q < Q; q++) x[q] = from[q] ? from[q][j] : s.missing;
#pragma unroll
    for (int q = 0; q < Q; q++)
      if (first + q * height < count) y[(first + q * height) * units + j] = x[q];
  }
}

struct RowMove {
  Pick pick;
  const void *base, *other;
  const int32_t *index, *last;
  int64_t rows;     // of base
  int64_t count;    // of y
  int64_t rowBytes;
  void* y;
  uint4 missing;
};

template <class E>
int32_t moveRowsAs(const MMCall* c, const RowMove& r) {
  RowSource<E> s{r.pick, static_cast<const E*>(r.base), static_cast<const E*>(r.other), r.index, r.last, r.rows, E{}};
  std::memcpy(&s.missing, &r.missing, sizeof(E));
  const int64_t units = r.rowBytes / int64_t(sizeof(E));
  int32_t log = 0;
  while (log < 8 && (1 << log) < units) log++;
  const int64_t strips = ceilDiv(units, int64_t(kRowsUnroll) << log);
  const dim3 grid(unsigned(ceilDiv(r.count, int64_t(kRowsUnroll) * (kMapThreads >> log))), unsigned(strips < 1024 ? strips : 1024));
  return launch(c, moveRowsKernel<E>, grid, dim3(kMapThreads), 0, s, static_cast<E*>(r.y), r.count, units, log);
}

inline int32_t moveRows(const MMCall* c, const RowMove& r) {
  if (!r.count || !r.rowBytes) return MM_OK;
  const auto fits = [&](int64_t bytes) {
    return r.rowBytes % bytes == 0 && aligned(uint64_t(bytes), static_cast<const char*>(r.base), static_cast<const char*>(r.y)) &&
           (!r.other || aligned(uint64_t(bytes), static_cast<const char*>(r.other)));
  };
  if (fits(16)) return moveRowsAs<uint4>(c, r);
  if (fits(8)) return moveRowsAs<uint2>(c, r);
  if (fits(4)) return moveRowsAs<uint32_t>(c, r);
  if (fits(2)) return moveRowsAs<uint16_t>(c, r);
  return moveRowsAs<uint8_t>(c, r);
}

// ---- sums of rows
// Keys: index in the high word (0xffffffff where it is out of range), place in the list in the low one.
static __global__ void __launch_bounds__(kSortThreads) sortChunkKernel(const int32_t* __restrict__ index, int64_t entries, int64_t rows,
                                                                      uint64_t* __restrict__ sorted, uint32_t padded) {
  __shared__ uint64_t key[kSortChunk];
  const int64_t first = int64_t(blockIdx.x) * kSortChunk;
  for (uint32_t i = threadIdx.x; i < padded; i += kSortThreads) {
    const int64_t m = first + i;
    uint64_t k = ~uint64_t(0);
    if (m < entries) {
      const int32_t row = index[m];
      k = uint64_t(row >= 0 && row < rows ? uint32_t(row) : ~0u) << 32 | uint32_t(m);
    }
    key[i] = k;
  }
  for (uint32_t size = 2; size <= padded; size *= 2)
    for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (uint32_t t = threadIdx.x; t < padded / 2; t += kSortThreads) {
        const uint32_t i = 2 * t - (t & (stride - 1)), j = i + stride;
        const uint64_t a = key[i], b = key[j];
        if ((a > b) == ((i & size) == 0)) key[i] = b, key[j] = a;
      }
    }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < padded; i += kSortThreads)
    if (first + i < entries) sorted[first + i] = key[i];
}

// The first place in the sorted keys [begin, end) that is not below `key`.
__device__ __forceinline__ int64_t lowerBound(const uint64_t* __restrict__ keys, int64_t begin, int64_t end, uint64_t key) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (keys[middle] < key) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

static __global__ void mergeChunksKernel(const uint64_t* __restrict__ chunks, uint64_t* __restrict__ sorted, int64_t entries) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= entries) return;
  const uint64_t key = chunks[i];
  const int64_t own = i / kSortChunk;
  int64_t place = i - own * kSortChunk;
  for (int64_t chunk = 0; chunk * kSortChunk < entries; chunk++) {
    if (chunk == own) continue;
    const int64_t begin = chunk * kSortChunk, end = begin + kSortChunk < entries ? begin + kSortChunk : entries;
    place += lowerBound(chunks, begin, end, key) - begin;
  }
  sorted[place] = key;
}

template <class T, class O>
struct RowSum {
  const uint64_t* keys;
  int64_t entries, rows, columns;
  const T* src;
  const O* base;  // null: zeros
  O* out;
  int64_t units, strips, wideStrips;  // vectors of a row; groups of 32 and of 16 of them
  uint32_t shortBlocks;
};

template <class T, int V>
__device__ __forceinline__ void addVector(float (&acc)[V], const RawVector<T, V>& x) {
  T values[V];
  x.unpack(values);
#pragma unroll
  for (int i = 0; i < V; i++) acc[i] += toFloat(values[i]);
}

constexpr int kSumHeight = 16, kSumWidth = kMapThreads / kSumHeight;

template <class T, class O, int V>
__global__ void __launch_bounds__(kMapThreads) sumRowsKernel(const __grid_constant__ RowSum<T, O> a) {
  __shared__ float shared[V][kMapThreads];
  const auto rowOf = [&](int64_t place) { return uint32_t(a.keys[place] >> 32); };
  const auto start = [&](float (&acc)[V], int64_t at) {
    if (a.base) return loadFloats<V>(a.base + at, acc);
#pragma unroll
    for (int i = 0; i < V; i++) acc[i] = 0.f;
  };
  if (blockIdx.x < a.shortBlocks) {
    const int64_t item = int64_t(blockIdx.x) * (kMapThreads / 32) + threadIdx.x / 32, place = item / a.strips;
    const int lane = threadIdx.x % 32;
    if (place >= a.entries) return;
    const uint32_t row = rowOf(place);
    if (row >= a.rows || (place > 0 && rowOf(place - 1) == row)) return;
    const uint64_t key = place + lane < a.entries ? a.keys[place + lane] : ~uint64_t(0);
    const int run = __popc(__ballot_sync(0xffffffffu, uint32_t(key >> 32) == row));
    if (run == kShortRun && place + kShortRun < a.entries && rowOf(place + kShortRun) == row) return;
    const int64_t unit = (item - place * a.strips) * 32 + lane, column = unit * V;
    const bool active = unit < a.units;
    float acc[V];
    if (active) start(acc, row * a.columns + column);
    constexpr int U = 4;
    for (int i = 0; i < run; i += U) {
      RawVector<T, V> x[U];
#pragma unroll
      for (int u = 0; u < U; u++) {
        const uint32_t m = __shfl_sync(0xffffffffu, uint32_t(key), i + u < run ? i + u : run - 1);
        if (active) x[u].load(a.src + m * a.columns + column);
      }
#pragma unroll
      for (int u = 0; u < U; u++)
        if (active && i + u < run) addVector(acc, x[u]);
    }
    if (active) storeFloats<V>(a.out + row * a.columns + column, acc);
    return;
  }
  // A run longer than kShortRun holds a multiple of kShortRun: the first one works for it.
  const int64_t item = blockIdx.x - a.shortBlocks, window = item / a.wideStrips, place = window * kShortRun;
  const uint32_t row = rowOf(place);
  if (row >= a.rows || (place > 0 && rowOf(place - kShortRun) == row)) return;
  const uint64_t lowest = uint64_t(row) << 32;
  const int64_t begin = lowerBound(a.keys, place > 0 ? place - kShortRun + 1 : 0, place, lowest);
  const int64_t end = lowerBound(a.keys, place, a.entries, lowest + (uint64_t(1) << 32));
  if (end - begin <= kShortRun) return;
  const int x = threadIdx.x % kSumWidth, y = threadIdx.x / kSumWidth;
  const int64_t unit = (item - window * a.wideStrips) * kSumWidth + x, column = unit * V;
  float acc[V];
#pragma unroll
  for (int v = 0; v < V; v++) acc[v] = 0.f;
  if (unit < a.units) {
    constexpr int U = 8;
    for (int64_t i = begin + y; i < end; i += U * kSumHeight) {
      RawVector<T, V> x[U];
#pragma unroll
      for (int u = 0; u < U; u++) {
        const int64_t place = i + u * kSumHeight < end ? i + u * kSumHeight : end - 1;
        x[u].load(a.src + uint32_t(a.keys[place]) * a.columns + column);
      }
#pragma unroll
      for (int u = 0; u < U; u++)
        if (i + u * kSumHeight < end) addVector(acc, x[u]);
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) shared[v][threadIdx.x] = acc[v];
  for (int half = kSumHeight / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half)
#pragma unroll
      for (int v = 0; v < V; v++) shared[v][threadIdx.x] += shared[v][threadIdx.x + half * kSumWidth];
  }
  if (y == 0 && unit < a.units) {
    start(acc, row * a.columns + column);
#pragma unroll
    for (int v = 0; v < V; v++) acc[v] += shared[v][threadIdx.x];
    storeFloats<V>(a.out + row * a.columns + column, acc);
  }
}

inline uint64_t sumRowsWorkspace(int64_t entries) {
  Scratch s;
  s.take<uint64_t>(entries);
  if (entries > kSortChunk) s.take<uint64_t>(entries);
  return s.bytes();
}

// out[r] = base[r] (null: 0) + the sum of src[m] with index[m] = r, for the rows that index names; the others are left alone.
template <class T, class O>
int32_t sumRows(const MMCall* c, const int32_t* index, int64_t entries, int64_t rows, int64_t columns, const T* src, const O* base,
                O* out) {
  if (!entries || !rows || !columns) return MM_OK;
  Scratch s(c);
  uint64_t *chunks = s.take<uint64_t>(entries), *keys = entries > kSortChunk ? s.take<uint64_t>(entries) : chunks;
  uint32_t padded = 1;
  while (padded < kSortChunk && padded < entries) padded *= 2;
  int32_t status = launch(c, sortChunkKernel, dim3(unsigned(ceilDiv(entries, kSortChunk))), dim3(kSortThreads), 0, index, entries, rows,
                          chunks, padded);
  if (status == MM_OK && keys != chunks)
    status = launch(c, mergeChunksKernel, dim3(unsigned(ceilDiv(entries, 256))), dim3(256), 0, chunks, keys, entries);
  if (status != MM_OK) return status;
  RowSum<T, O> a{keys, entries, rows, columns, src, base, out, 0, 0, 0, 0};
  const auto add = [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    a.units = columns / V, a.strips = ceilDiv(a.units, 32), a.wideStrips = ceilDiv(a.units, kSumWidth);
    a.shortBlocks = uint32_t(ceilDiv(entries * a.strips, kMapThreads / 32));
    const int64_t wide = entries > kShortRun ? ceilDiv(entries, kShortRun) * a.wideStrips : 0;
    return launch(c, sumRowsKernel<T, O, V>, dim3(unsigned(a.shortBlocks + wide)), dim3(kMapThreads), 0, a);
  };
  constexpr int V = kVector<T>;
  const bool vectors = columns % V == 0 && aligned(16, src) && aligned(V * sizeof(O), out, base ? base : out);
  return vectors ? add(std::integral_constant<int, V>{}) : add(std::integral_constant<int, 1>{});
}

}  // namespace mm::cuda
