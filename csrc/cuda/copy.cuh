// copy, copyInto, cast, fill: y = x over any layouts. Copies know bytes, not dtypes: one launch moves up to kCopyParts parts
// (the tensors of concat, the zeros and the gradient of sliceBackward), each with its own layout, in units of the largest
// power of two up to 16 bytes that all rows, strides and addresses are multiples of; what is left of one long dense axis goes
// byte by byte. A part without a source is filled with a pattern. Transposing copies take the tiles of common/strided.cuh.
#pragma once
#include <vector>

#include "cuda/common/strided.cuh"

namespace mm::cuda {

constexpr int kCopyParts = 16, kCopyUnroll = 4;  // 16 parts are 3.3 KB of the 4 KB of kernel parameters

struct CopyPart {
  const char* src;  // null: the pattern
  char* dst;
  uint32_t units, tail;  // tail: bytes behind the units
  uint32_t firstBlock;
  Layout<2> layout;  // source, target
};

template <int N>
struct CopyParts {
  int32_t count;
  CopyPart part[N];
};

template <class E, int N>
__global__ void __launch_bounds__(kMapThreads) copyKernel(const __grid_constant__ CopyParts<N> parts,
                                                          const __grid_constant__ uint4 pattern) {
  int which = 0;
  if constexpr (N > 1)
    while (which + 1 < parts.count && blockIdx.x >= parts.part[which + 1].firstBlock) which++;
  const CopyPart& part = parts.part[which];
  const uint32_t block = blockIdx.x - part.firstBlock, first = block * (kMapThreads * kCopyUnroll) + threadIdx.x;
  const E* src = reinterpret_cast<const E*>(part.src);
  E* dst = reinterpret_cast<E*>(part.dst);
  if (first < part.units) {
    uint32_t index[kCopyUnroll];
#pragma unroll
    for (int u = 0; u < kCopyUnroll; u++) index[u] = min(first + u * kMapThreads, part.units - 1);
    int64_t offset[kCopyUnroll][2];
    part.layout.at(index, offset);
    E x[kCopyUnroll];
#pragma unroll
    for (int u = 0; u < kCopyUnroll; u++) x[u] = src ? src[offset[u][0]] : *reinterpret_cast<const E*>(&pattern);
#pragma unroll
    for (int u = 0; u < kCopyUnroll; u++)
      if (first + u * kMapThreads < part.units) dst[offset[u][1]] = x[u];
  }
  if (block == 0 && threadIdx.x < part.tail) {
    const int64_t i = int64_t(part.units) * sizeof(E) + threadIdx.x;
    part.dst[i] = part.src ? part.src[i] : reinterpret_cast<const char*>(&pattern)[i % sizeof(uint4)];
  }
}

// Single elements through tiles.
template <class E>
struct CopyElement {
  static constexpr int K = 1, M = 1;
  using In = E;
  using Out = E;
  template <int V>
  __device__ __forceinline__ void operator()(const E (&x)[1][V], E (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) y[0][i] = x[0][i];
  }
};


// The element of `dtype` (and of `size` bytes) as often as 16 bytes hold it.
inline uint4 patternOf(const void* element, int64_t size) {
  uint4 pattern;
  for (int64_t i = 0; i < 16; i++) reinterpret_cast<char*>(&pattern)[i] = static_cast<const char*>(element)[i % size];
  return pattern;
}
inline uint4 zeroPattern() { return {0, 0, 0, 0}; }
inline uint4 nanPattern(int32_t dtype) {
  const uint32_t word = dtype == MM_F32 ? 0x7fc00000u : dtype == MM_BF16 ? 0x7fc07fc0u : 0x7e007e00u;
  return {word, word, word, word};
}

// Copies to be done together; all of one element size. Targets must not overlap sources or each other. In copy.cu, so that other
// files do not compile the kernels again.
class Copies {
 public:
  explicit Copies(const MMCall* c, int64_t elementBytes, uint4 pattern = zeroPattern())
      : call_(c), size_(elementBytes), pattern_(pattern) {}

  // dst = src, or the pattern where src is null; dst.shape is what counts.
  int32_t add(const MMTensorView* src, const MMTensorView& dst);
  // Launches what is left; call once, after the last add().
  int32_t run() const;

 private:
  struct Part {
    Nest<2> nest;
    const char* src;
    char* dst;
  };

  bool fits(const Part& p, int64_t bytes) const;
  template <class E>
  int32_t tiles(const Nest<2>& nest, int axis, const char* from, char* to) const;
  template <int N>
  int32_t runParts(const Part* parts, int count) const;

  const MMCall* call_;
  int64_t size_;
  uint4 pattern_;
  std::vector<Part> parts_;
};

// dst = src over dst's shape; of one element size.
int32_t copyView(const MMCall* c, const MMTensorView& src, const MMTensorView& dst);
// Every element of dst = the pattern.
int32_t fillView(const MMCall* c, const MMTensorView& dst, uint4 pattern);

// ---- cast
template <class D>
__device__ __forceinline__ D fromNumber(float x) {
  if constexpr (std::is_same_v<D, int32_t>) return __float2int_rz(x);  // saturates, NaN -> 0
  else if constexpr (std::is_same_v<D, uint8_t>) return uint8_t(min(max(__float2int_rz(x), 0), 255));
  else return fromFloat<D>(x);
}

template <class S, class D>
__device__ __forceinline__ D convert(S x) {
  if constexpr (std::is_same_v<S, int32_t> && std::is_same_v<D, uint8_t>) return uint8_t(min(max(x, 0), 255));
  else if constexpr (std::is_integral_v<S> && std::is_integral_v<D>) return D(x);
  else if constexpr (std::is_integral_v<S>) return fromNumber<D>(float(x));
  else return fromNumber<D>(toFloat(x));
}

template <class S, class D>
struct Cast {
  static constexpr int K = 1, M = 1;
  using In = S;
  using Out = D;
  template <int V>
  __device__ __forceinline__ void operator()(const S (&x)[1][V], D (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) y[0][i] = convert<S, D>(x[0][i]);
  }
};

}  // namespace mm::cuda
