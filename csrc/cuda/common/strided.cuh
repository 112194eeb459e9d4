// Elementwise work on strided and broadcast operands.
//
// The host builds a Nest (abi/nest.h): axes of size 1 dropped, neighbours that all operands walk as one merged, so that dense
// operands become one long axis. The kernels get it by value as a Layout, innermost axis first, and turn a flat 32-bit index
// into one 64-bit offset an operand by multiply-shift divisions (none for a single axis). Tensors of more than kMaxUnits
// elements are cut along their outermost axis into several launches. Three ways to walk, chosen by strides and addresses:
//   vectors   every operand dense or standing still in the innermost axis, rows and addresses multiples of 16 bytes
//   tiles     the result dense in the innermost axis, an input dense in another one: that input goes through a 64 x 64 tile
//             of shared memory, so that both sides are touched in whole sectors
//   elements  anything else, one by one
#pragma once
#include "cuda/kernel.cuh"  // first: it names the namespace

#include "abi/nest.h"

namespace mm::cuda {

constexpr int kMapThreads = 256, kMapTile = 64, kMinTiledAxis = 16, kMinTiled = 8192;
constexpr int64_t kMaxUnits = int64_t(1) << 30;  // of one launch: flat indices stay below 2^31

// Division by a number that the host knows: n / d = (mulhi(n, magic) + n) >> shift for n < 2^31.
struct FastDiv {
  uint32_t divisor = 1, magic = 1, shift = 0;

  FastDiv() = default;
  explicit FastDiv(int64_t d) : divisor(d > 0 ? uint32_t(d) : 1) {
    while ((uint64_t(1) << shift) < divisor) shift++;
    magic = uint32_t((((uint64_t(1) << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t div(uint32_t n) const {
    return (uint32_t((uint64_t(n) * magic) >> 32) + n) >> shift;
  }
};

// K operands walked together, innermost axis first.
template <int K>
struct Layout {
  int32_t ndim;
  FastDiv size[MM_MAX_DIMS];
  int64_t stride[MM_MAX_DIMS][K];

  // Adds the operands' offsets at U flat indices.
  template <int U>
  __device__ __forceinline__ void add(const uint32_t (&index)[U], int64_t (&offset)[U][K]) const {
    uint32_t rest[U];
#pragma unroll
    for (int u = 0; u < U; u++) rest[u] = index[u];
#pragma unroll
    for (int i = 0; i < MM_MAX_DIMS; i++) {
      const bool last = i + 1 >= ndim;
#pragma unroll
      for (int u = 0; u < U; u++) {
        uint32_t digit = rest[u];
        if (!last) {
          rest[u] = size[i].div(digit);
          digit -= rest[u] * size[i].divisor;
        }
#pragma unroll
        for (int k = 0; k < K; k++) offset[u][k] += int64_t(digit) * stride[i][k];
      }
      if (last) break;
    }
  }
  template <int U>
  __device__ __forceinline__ void at(const uint32_t (&index)[U], int64_t (&offset)[U][K]) const {
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int k = 0; k < K; k++) offset[u][k] = 0;
    add(index, offset);
  }
  __device__ __forceinline__ void at(uint32_t index, int64_t (&offset)[K]) const {
    const uint32_t one[1] = {index};
    int64_t result[1][K];
    at(one, result);
#pragma unroll
    for (int k = 0; k < K; k++) offset[k] = result[0][k];
  }
};

// The first `axes` axes and the first L operands (0: all) of a nest; the innermost axis in units of `unit` elements.
template <int L = 0, int K>
Layout<L ? L : K> layoutOf(const Nest<K>& nest, int axes, int64_t unit = 1) {
  constexpr int kOperands = L ? L : K;
  Layout<kOperands> l;
  l.ndim = axes ? axes : 1;
  for (int k = 0; k < kOperands; k++) l.stride[0][k] = 0;
  for (int i = 0; i < axes; i++) {
    const int from = axes - 1 - i;
    const int64_t step = i == 0 ? unit : 1;
    l.size[i] = FastDiv(nest.size[from] / step);
    for (int k = 0; k < kOperands; k++) l.stride[i][k] = nest.stride[k][from] * step;
  }
  return l;
}

// The strides of `v` aligned with `shape` at the last axis; 0 where v is broadcast.
inline void broadcastStrides(const MMTensorView& v, const MMTensorView& shape, int64_t* strides) {
  for (int i = 0; i < shape.ndim; i++) {
    const int j = i - (shape.ndim - v.ndim);
    strides[i] = j < 0 || (v.shape[j] == 1 && shape.shape[i] != 1) ? 0 : v.stride[j];
  }
}

// The nest of K operands broadcast to `shape`, without axes of size 1; not merged.
template <int K>
Nest<K> nestOf(const MMTensorView* const (&views)[K], const MMTensorView& shape) {
  int64_t all[K][MM_MAX_DIMS];
  for (int k = 0; k < K; k++) broadcastStrides(*views[k], shape, all[k]);
  Nest<K> nest;
  for (int i = 0; i < shape.ndim; i++) {
    if (shape.shape[i] == 1) continue;
    int64_t strides[K];
    for (int k = 0; k < K; k++) strides[k] = all[k][i];
    nest.push(shape.shape[i], strides);
  }
  return nest;
}

// f(piece, offsets of the K operands, elements before the piece) over pieces of at most kMaxUnits elements, in order.
template <int K, class F>
int32_t forPieces(Nest<K> nest, const int64_t (&base)[K], int64_t before, F&& f) {
  const int64_t count = nest.count(nest.ndim);
  if (count <= kMaxUnits) return f(nest, base, before);
  while (nest.size[0] == 1) {
    for (int i = 1; i < nest.ndim; i++) nest.swap(i - 1, i);
    nest.ndim--;
  }
  const int64_t size = nest.size[0], half = nest.ndim == 1 ? size / 2 / 64 * 64 : size / 2;
  nest.size[0] = half;
  const int32_t status = forPieces(nest, base, before, f);
  if (status != MM_OK) return status;
  int64_t second[K];
  for (int k = 0; k < K; k++) second[k] = base[k] + half * nest.stride[k][0];
  nest.size[0] = size - half;
  return forPieces(nest, second, before + count / size * half, f);
}

// ---- map: M results of one layout from K inputs
// F: K, M, In, Out and operator()(const In (&x)[K][V], Out (&y)[M][V]) const for any V.
template <class F>
constexpr int mapVector() {
  return 16 / int(sizeof(typename F::In) > sizeof(typename F::Out) ? sizeof(typename F::In) : sizeof(typename F::Out));
}

template <class F>
struct MapPointers {
  const typename F::In* in[F::K];
  typename F::Out* out[F::M];
};

// V elements of T as they lie in memory. Loaded elements are kept as words until they are used: as single 16-bit values they
// would be unpacked, and waited for, right behind each load, so that only one load of a thread would be under way.
template <class T, int V>
struct RawVector {
  static constexpr int kBytes = V * int(sizeof(T)), kWords = (kBytes + 3) / 4;
  uint32_t w[kWords];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (kBytes == 1) {
      w[0] = *reinterpret_cast<const uint8_t*>(p);
    } else if constexpr (kBytes == 2) {
      w[0] = *reinterpret_cast<const uint16_t*>(p);
    } else if constexpr (kBytes == 4) {
      w[0] = *reinterpret_cast<const uint32_t*>(p);
    } else if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      w[0] = v.x, w[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 v = *reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(p) + i);
        w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
      }
    }
  }
  __device__ __forceinline__ void store(T* p) const {  // of at most 4 bytes
    static_assert(kBytes == 2 || kBytes == 4, "one store");
    if constexpr (kBytes == 2) *reinterpret_cast<uint16_t*>(p) = uint16_t(w[0]);
    else *reinterpret_cast<uint32_t*>(p) = w[0];
  }
  // One element; spread() makes it V of them.
  __device__ __forceinline__ void loadOne(const T* p) {
    RawVector<T, 1> one;
    one.load(p);
    w[0] = one.w[0];
  }
  __device__ __forceinline__ void spread() {
    const uint32_t word = sizeof(T) == 4 ? w[0] : sizeof(T) == 2 ? w[0] * 0x10001u : w[0] * 0x1010101u;
#pragma unroll
    for (int i = 0; i < kWords; i++) w[i] = word;
  }
  __device__ __forceinline__ void unpack(T (&x)[V]) const { memcpy(x, w, kBytes); }
};

// Vectors of K inputs at U places, all under way at once. Bit k of `still`: input k does not move along the innermost axis.
template <int V, int U, int K, class T, int N>
__device__ __forceinline__ void loadPlaces(const T* const (&in)[K], const int64_t (&offset)[U][N], uint32_t still, RawVector<T, V> (&x)[U][K]) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    if (V > 1 && still >> k & 1) {
#pragma unroll
      for (int u = 0; u < U; u++) x[u][k].loadOne(in[k] + offset[u][k]);
    } else {
#pragma unroll
      for (int u = 0; u < U; u++) x[u][k].load(in[k] + offset[u][k]);
    }
  }
#pragma unroll
  for (int k = 0; k < K; k++)
    if (V > 1 && still >> k & 1)
#pragma unroll
      for (int u = 0; u < U; u++) x[u][k].spread();
}

// `units` vectors of V elements, then `tail` single elements (only of one long axis).
template <class F, int V>
__global__ void __launch_bounds__(kMapThreads) mapKernel(const __grid_constant__ Layout<F::K + 1> layout, const MapPointers<F> p,
                                                         uint32_t units, uint32_t tail, uint32_t still, const F f) {
  constexpr int K = F::K, M = F::M, U = K == 1 ? 4 : 2;
  using In = typename F::In;
  using Out = typename F::Out;
  const uint32_t first = blockIdx.x * (kMapThreads * U) + threadIdx.x;
  if (first < units) {
    uint32_t index[U];
#pragma unroll
    for (int u = 0; u < U; u++) index[u] = min(first + u * kMapThreads, units - 1);
    int64_t offset[U][K + 1];
    layout.at(index, offset);
    RawVector<In, V> x[U][K];
    loadPlaces(p.in, offset, still, x);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (first + u * kMapThreads >= units) break;
      In values[K][V];
      Out results[M][V];
#pragma unroll
      for (int k = 0; k < K; k++) x[u][k].unpack(values[k]);
      f(values, results);
#pragma unroll
      for (int m = 0; m < M; m++) {
        Pack<Out, V> y;
#pragma unroll
        for (int i = 0; i < V; i++) y.v[i] = results[m][i];
        *reinterpret_cast<Pack<Out, V>*>(p.out[m] + offset[u][K]) = y;
      }
    }
  }
  if (V > 1 && blockIdx.x == 0 && threadIdx.x < tail) {
    const int64_t i = int64_t(units) * V + threadIdx.x;
    In value[K][1];
    Out result[M][1];
#pragma unroll
    for (int k = 0; k < K; k++) value[k][0] = p.in[k][still >> k & 1 ? 0 : i];
    f(value, result);
#pragma unroll
    for (int m = 0; m < M; m++) p.out[m][i] = result[m][0];
  }
}

// A plane of rows x cols with the cols innermost, for every index of the axes outside of it.
template <int K>
struct TileShape {
  uint32_t rows, cols;
  FastDiv rowTiles, colTiles;
  int64_t rowStride[K], colStride[K];
  uint32_t turned;  // bit k: input k is dense along the rows and goes through shared memory
};

template <class F>
__global__ void __launch_bounds__(kMapThreads) mapTileKernel(const __grid_constant__ Layout<F::K + 1> outer,
                                                             const __grid_constant__ TileShape<F::K + 1> s,
                                                             const MapPointers<F> p, const F f) {
  constexpr int K = F::K, M = F::M, T = kMapTile, kRows = kMapThreads / 32, kSteps = T / kRows;
  using In = typename F::In;
  __shared__ In tile[T][T + 4 / int(sizeof(In))];  // an odd number of words a row: columns lie in different banks
  const uint32_t withoutCols = s.colTiles.div(blockIdx.x), plane = s.rowTiles.div(withoutCols);
  const uint32_t row0 = (withoutCols - plane * s.rowTiles.divisor) * T;
  const uint32_t col0 = (blockIdx.x - withoutCols * s.colTiles.divisor) * T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t base[K + 1];
  outer.at(plane, base);
#pragma unroll
  for (int k = 0; k <= K; k++) base[k] += row0 * s.rowStride[k] + col0 * s.colStride[k];
  const int rows = int(s.rows - row0), cols = int(s.cols - col0);

  In x[K][kSteps][2];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const In* from = p.in[k] + base[k];
    const bool turned = s.turned >> k & 1;
    // lanes along the axis in which the input is dense
    const int lanes = turned ? rows : cols, steps = turned ? cols : rows;
    const int64_t laneStride = turned ? s.rowStride[k] : s.colStride[k], stepStride = turned ? s.colStride[k] : s.rowStride[k];
#pragma unroll
    for (int i = 0; i < kSteps; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int a = warp + i * kRows, b = lane + h * 32;
        x[k][i][h] = a < steps && b < lanes ? from[a * stepStride + b * laneStride] : In{};
      }
    if (!turned) continue;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSteps; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) tile[warp + i * kRows][lane + h * 32] = x[k][i][h];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSteps; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) x[k][i][h] = tile[lane + h * 32][warp + i * kRows];
  }
#pragma unroll
  for (int i = 0; i < kSteps; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = warp + i * kRows, col = lane + h * 32;
      if (row >= rows || col >= cols) continue;
      In value[K][1];
      typename F::Out result[M][1];
#pragma unroll
      for (int k = 0; k < K; k++) value[k][0] = x[k][i][h];
      f(value, result);
#pragma unroll
      for (int m = 0; m < M; m++) p.out[m][base[K] + row * s.rowStride[K] + col * s.colStride[K]] = result[m][0];
    }
}

// Whether operand k can go along the innermost axis in vectors of `unit` elements: it stands still there, or is dense and its
// rows keep the alignment of `p`.
template <int K>
bool vectorOperand(const Nest<K>& nest, int k, int64_t unit, const void* p, int64_t bytes) {
  const int last = nest.ndim - 1;
  if (nest.stride[k][last] == 0) return true;
  bool ok = nest.stride[k][last] == 1 && reinterpret_cast<uintptr_t>(p) % uint64_t(unit * bytes) == 0;
  for (int i = 0; i < last; i++) ok = ok && nest.stride[k][i] % unit == 0;
  return ok;
}

// The axis in which some input is dense although it is not in the innermost one, where tiles pay; else -1. The last operand is
// the result.
template <int K>
int tiledAxis(const Nest<K>& nest) {
  const int last = nest.ndim - 1;
  if (nest.stride[K - 1][last] != 1 || nest.size[last] < kMinTiledAxis || nest.count(nest.ndim) < kMinTiled) return -1;
  for (int k = 0; k + 1 < K; k++) {
    if (nest.stride[k][last] == 0 || nest.stride[k][last] == 1) continue;
    for (int i = 0; i < last; i++)
      if (nest.stride[k][i] == 1 && nest.size[i] >= kMinTiledAxis) return i;
  }
  return -1;
}

template <class F>
int32_t mapTiles(const MMCall* c, Nest<F::K + 1> nest, int axis, const MapPointers<F>& p, const F& f) {
  constexpr int K = F::K;
  const int last = nest.ndim - 1;
  nest.swap(axis, last - 1);
  TileShape<K + 1> s;
  s.rows = uint32_t(nest.size[last - 1]), s.cols = uint32_t(nest.size[last]), s.turned = 0;
  s.rowTiles = FastDiv(ceilDiv(s.rows, kMapTile)), s.colTiles = FastDiv(ceilDiv(s.cols, kMapTile));
  for (int k = 0; k <= K; k++) {
    s.rowStride[k] = nest.stride[k][last - 1], s.colStride[k] = nest.stride[k][last];
    if (k < K && s.rowStride[k] == 1 && s.colStride[k] != 0 && s.colStride[k] != 1) s.turned |= 1u << k;
  }
  const int64_t tiles = nest.count(last - 1) * s.rowTiles.divisor * s.colTiles.divisor;
  return launch(c, mapTileKernel<F>, dim3(unsigned(tiles)), dim3(kMapThreads), 0, layoutOf(nest, last - 1), s, p, f);
}

template <class F, int V>
int32_t mapVectors(const MMCall* c, const Nest<F::K + 1>& nest, const MapPointers<F>& p, const F& f) {
  constexpr int64_t kBlock = kMapThreads * (F::K == 1 ? 4 : 2);
  const int last = nest.ndim - 1;
  const int64_t units = nest.count(nest.ndim) / V, tail = V > 1 && last == 0 ? nest.size[0] % V : 0;
  uint32_t still = 0;
  for (int k = 0; k < F::K; k++) still |= uint32_t(nest.stride[k][last] == 0) << k;
  const int64_t blocks = units ? ceilDiv(units, kBlock) : 1;
  return launch(c, mapKernel<F, V>, dim3(unsigned(blocks)), dim3(kMapThreads), 0, layoutOf(nest, nest.ndim, V), p, uint32_t(units),
                uint32_t(tail), still, f);
}

// out[m] = f(inputs) over `shape`, to which the views are broadcast; the last view says how every result is laid out.
template <class F>
int32_t map(const MMCall* c, const F& f, const MMTensorView* const (&views)[F::K + 1], const MMTensorView& shape,
            typename F::Out* const (&out)[F::M]) {
  using In = typename F::In;
  using Out = typename F::Out;
  constexpr int K = F::K, V = mapVector<F>();
  if (!numel(shape)) return MM_OK;
  Nest<K + 1> all = nestOf<K + 1>(views, shape);
  all.sortBy(K);
  all.coalesce();
  const int64_t none[K + 1] = {};
  return forPieces(all, none, 0, [&](const Nest<K + 1>& nest, const int64_t (&base)[K + 1], int64_t) {
    MapPointers<F> p;
    for (int k = 0; k < K; k++) p.in[k] = data<const In>(*views[k]) + base[k];
    for (int m = 0; m < F::M; m++) p.out[m] = out[m] + base[K];
    const int last = nest.ndim - 1;
    bool vectors = nest.stride[K][last] == 1 && (last == 0 || nest.size[last] % V == 0);
    for (int k = 0; k < K; k++) vectors = vectors && vectorOperand(nest, k, V, p.in[k], sizeof(In));
    for (int m = 0; m < F::M; m++) vectors = vectors && vectorOperand(nest, K, V, p.out[m], sizeof(Out));
    if (vectors) return mapVectors<F, V>(c, nest, p, f);
    const int axis = tiledAxis(nest);
    if (axis >= 0) return mapTiles(c, nest, axis, p, f);
    return mapVectors<F, 1>(c, nest, p, f);
  });
}

// Sets bytes of device memory to one value.
inline int32_t setBytes(const MMCall* c, void* p, int value, int64_t bytes) {
  if (!bytes) return MM_OK;
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  return checked(s, cudaMemsetAsync(p, value, size_t(bytes), s.handle), c->error, c->error_size);
}

}  // namespace mm::cuda
