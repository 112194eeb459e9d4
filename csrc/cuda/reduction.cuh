// sum, mean, max and their gradients; also the gradients of broadcast operands (elementwise) and of biases (patchEmbed).
//
// A reduction walks a nest of K inputs and one or more targets: an axis in which the first target stands still is reduced. The
// axes are ordered by the strides of one input; two shapes of work follow from the innermost one:
//   inner   it is reduced: a group of 1 to 256 lanes an output goes along it, then shuffles (and shared memory above 32 lanes)
//   kept    it is kept: lanes go along the outputs, the rows of threads of a block along the terms, then shared memory
// Both read 16-byte vectors where strides and addresses allow. Where the outputs alone would not fill the device the terms are
// cut into chunks, by shape alone: partial[output][chunk] in the workspace is added up by a second kernel in a fixed order.
#pragma once
#include "cuda/common/strided.cuh"
#include "ops/reduction.h"

namespace mm::cuda {

constexpr int kReduceThreads = 256;

// R: K inputs of type In, `Targets` target operands, Acc with identity(), combine() (associative up to rounding) and
//   Acc term(const In (&x)[K], int64_t index)    the term of one element; index: its place among the reduced ones
//   void finish(const int64_t (&at)[Targets], Acc total)    the offsets of the target operands
template <class R>
struct ReduceArgs {
  const typename R::In* in[R::K];
  Layout<R::K + R::Targets> kept;  // the innermost axis of `kept` or `reduced` is in units of V elements
  Layout<R::K> reduced;
  int64_t step[R::Targets];            // of the targets along the innermost kept axis
  int64_t firstTerm;                   // of this launch, in elements
  uint32_t outputs, terms, perChunk;   // in units
  uint32_t chunks, firstChunk, allChunks;
  uint32_t still;  // bit k: input k does not move along the innermost axis
  int32_t lanesLog;
  typename R::Acc* partial;
};

// The inputs at U places.
template <class R, int V, int U>
struct ReduceLoad {
  RawVector<typename R::In, V> x[U][R::K];

  __device__ __forceinline__ void load(const ReduceArgs<R>& a, const int64_t (&base)[R::K + R::Targets], const uint32_t (&term)[U]) {
    int64_t offset[U][R::K];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int k = 0; k < R::K; k++) offset[u][k] = base[k];
    a.reduced.add(term, offset);
    loadPlaces(a.in, offset, a.still, x);
  }
  // The terms of place u; element i has index first + i * step.
  __device__ __forceinline__ void terms(const R& r, int u, int64_t first, int step, typename R::Acc (&result)[V]) const {
    typename R::In values[R::K][V];
#pragma unroll
    for (int k = 0; k < R::K; k++) x[u][k].unpack(values[k]);
#pragma unroll
    for (int i = 0; i < V; i++) {
      typename R::In one[R::K];
#pragma unroll
      for (int k = 0; k < R::K; k++) one[k] = values[k][i];
      result[i] = r.term(one, first + i * step);
    }
  }
};

// f(u, terms) for the terms of the places first, first + stride, ... of a chunk, U of which are under way at once. STEP: from one
// of the V terms of a place to the next, 0 where they belong to V outputs.
template <int V, int STEP, int U, class R, class F>
__device__ __forceinline__ void eachPlace(const ReduceArgs<R>& a, const R& r, const int64_t (&base)[R::K + R::Targets], uint32_t chunk,
                                          uint32_t first, uint32_t stride, F&& f) {
  const uint32_t end = (chunk + 1) * a.perChunk, stop = end < a.terms ? end : a.terms;
  for (uint32_t t = chunk * a.perChunk + first; t < stop; t += U * stride) {
    uint32_t at[U];
#pragma unroll
    for (int u = 0; u < U; u++) at[u] = min(t + u * stride, stop - 1);
    ReduceLoad<R, V, U> x;
    x.load(a, base, at);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (t + u * stride >= stop) break;
      typename R::Acc terms[V];
      x.terms(r, u, a.firstTerm + int64_t(at[u]) * (STEP ? V : 1), STEP, terms);
      f(u, terms);
    }
  }
}

// `output` counts elements, at: the offsets of its targets.
template <class R>
__device__ __forceinline__ void emit(const ReduceArgs<R>& a, const R& r, int64_t output, uint32_t chunk, const int64_t (&at)[R::Targets],
                                     typename R::Acc total) {
  if (a.allChunks == 1) r.finish(at, total);
  else a.partial[output * a.allChunks + a.firstChunk + chunk] = total;
}

template <class R>
__device__ __forceinline__ typename R::Acc groupReduce(typename R::Acc v, int lanes) {
  for (int offset = (lanes < 32 ? lanes : 32) / 2; offset > 0; offset /= 2)
    v = R::combine(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

template <class R, int V>
__global__ void __launch_bounds__(kReduceThreads) reduceInnerKernel(const __grid_constant__ ReduceArgs<R> a, const __grid_constant__ R r) {
  constexpr int K = R::K, U = K == 1 ? 4 : 2;
  using Acc = typename R::Acc;
  __shared__ Acc shared[kReduceThreads / 32];
  const uint32_t lanes = 1u << a.lanesLog, lane = threadIdx.x & (lanes - 1);
  const uint32_t block = blockIdx.x / a.chunks, chunk = blockIdx.x - block * a.chunks;
  const uint32_t output = block * (kReduceThreads >> a.lanesLog) + (threadIdx.x >> a.lanesLog);
  int64_t base[K + R::Targets];
  a.kept.at(output < a.outputs ? output : 0, base);
  Acc acc[U];
#pragma unroll
  for (int u = 0; u < U; u++) acc[u] = R::identity();
  if (output < a.outputs)
    eachPlace<V, 1, U>(a, r, base, chunk, lane, lanes, [&](int u, const Acc(&terms)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) acc[u] = R::combine(acc[u], terms[i]);
    });
#pragma unroll
  for (int u = 1; u < U; u++) acc[0] = R::combine(acc[0], acc[u]);
  Acc total = groupReduce<R>(acc[0], lanes);
  if (lanes > 32) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = total;
    __syncthreads();
    if (lane == 0)
      for (uint32_t w = 1; w < lanes / 32; w++) total = R::combine(total, shared[threadIdx.x / 32 + w]);
  }
  if (lane == 0 && output < a.outputs) {
    int64_t at[R::Targets];
#pragma unroll
    for (int i = 0; i < R::Targets; i++) at[i] = base[K + i];
    emit(a, r, output, chunk, at, total);
  }
}

template <class R, int V>
__global__ void __launch_bounds__(kReduceThreads) reduceKeptKernel(const __grid_constant__ ReduceArgs<R> a, const __grid_constant__ R r) {
  constexpr int K = R::K, U = K == 1 ? 4 : 2;
  using Acc = typename R::Acc;
  __shared__ Acc shared[V][kReduceThreads];
  const uint32_t lanes = 1u << a.lanesLog, height = kReduceThreads >> a.lanesLog, y = threadIdx.x >> a.lanesLog;
  const uint32_t block = blockIdx.x / a.chunks, chunk = blockIdx.x - block * a.chunks;
  const uint32_t output = block * lanes + (threadIdx.x & (lanes - 1));
  int64_t base[K + R::Targets];
  a.kept.at(output < a.outputs ? output : 0, base);
  Acc acc[V];
#pragma unroll
  for (int i = 0; i < V; i++) acc[i] = R::identity();
  if (output < a.outputs)
    eachPlace<V, 0, U>(a, r, base, chunk, y, height, [&](int, const Acc(&terms)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) acc[i] = R::combine(acc[i], terms[i]);
    });
#pragma unroll
  for (int i = 0; i < V; i++) shared[i][threadIdx.x] = acc[i];
  for (uint32_t half = height / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half)
#pragma unroll
      for (int i = 0; i < V; i++)
        shared[i][threadIdx.x] = R::combine(shared[i][threadIdx.x], shared[i][threadIdx.x + half * lanes]);
  }
  if (y == 0 && output < a.outputs)
#pragma unroll
    for (int i = 0; i < V; i++) {
      int64_t at[R::Targets];
#pragma unroll
      for (int j = 0; j < R::Targets; j++) at[j] = base[K + j] + i * a.step[j];
      emit(a, r, int64_t(output) * V + i, chunk, at, shared[i][threadIdx.x]);
    }
}

// partial (outputs, chunks): a group of lanes an output.
template <class R>
__global__ void __launch_bounds__(kReduceThreads) reduceFinishKernel(const __grid_constant__ Layout<R::K + R::Targets> kept,
                                                                     const __grid_constant__ R r,
                                                                     const typename R::Acc* __restrict__ partial, uint32_t outputs,
                                                                     uint32_t chunks, int32_t lanesLog) {
  const uint32_t lanes = 1u << lanesLog, lane = threadIdx.x & (lanes - 1);
  const uint32_t output = blockIdx.x * (kReduceThreads >> lanesLog) + (threadIdx.x >> lanesLog);
  typename R::Acc total = R::identity();
  if (output < outputs)
    for (uint32_t i = lane; i < chunks; i += lanes) total = R::combine(total, partial[int64_t(output) * chunks + i]);
  total = groupReduce<R>(total, lanes);
  if (lane == 0 && output < outputs) {
    int64_t base[R::K + R::Targets], at[R::Targets];
    kept.at(output, base);
#pragma unroll
    for (int i = 0; i < R::Targets; i++) at[i] = base[R::K + i];
    r.finish(at, total);
  }
}

inline int32_t ceilLog2(int64_t n) {
  int32_t log = 0;
  while ((int64_t(1) << log) < n) log++;
  return log;
}

// The plan of one reduction; N = R::K + R::Targets operands, the targets last, over the shape before the reduction (not empty).
template <int K, int Targets>
struct Reduction {
  static constexpr int N = K + Targets;
  Nest<N> kept, reduced;
  bool inner;
  int64_t outputs, terms, pieces = 0, chunks;  // chunks: of every piece of the terms

  // `by`: the operand whose strides order the axes; -1 leaves them as they are. `limit`: on the chunks.
  Reduction(Nest<N> nest, int by, int64_t limit = INT64_MAX) {
    if (by >= 0) nest.sortBy(by);
    nest.coalesce();
    const int last = nest.ndim - 1;
    inner = nest.stride[K][last] == 0;
    for (int i = 0; i < nest.ndim; i++) {
      int64_t s[N];
      for (int k = 0; k < N; k++) s[k] = nest.stride[k][i];
      if (s[K] != 0) kept.push(nest.size[i], s);
      else reduced.push(nest.size[i], s);
    }
    outputs = kept.count(kept.ndim), terms = reduced.count(reduced.ndim);
    const int64_t none[N] = {};
    forPieces(reduced, none, 0, [&](const Nest<N>&, const int64_t (&)[N], int64_t) {
      pieces++;
      return int32_t(MM_OK);
    });
    // chunks of at least kLeast elements, no more than give about eight blocks a multiprocessor
    constexpr int64_t kLeast = 4096, kBlocks = 1024;
    const int64_t wide = outputs < 128 ? outputs : 128;
    const int64_t blocks = inner ? outputs : ceilDiv(outputs, 128);
    const int64_t most = ceilDiv(terms, inner ? kLeast : ceilDiv(kLeast, wide)), wanted = ceilDiv(kBlocks, blocks);
    const int64_t all = most < wanted ? most : wanted;
    chunks = ceilDiv(all < limit ? all : limit, pieces);
  }

  int64_t allChunks() const { return chunks * pieces; }
  uint64_t workspace(uint64_t accBytes) const {
    const int64_t most = outputs < kMaxUnits ? outputs : kMaxUnits;
    return allChunks() == 1 ? 0 : uint64_t(most * allChunks()) * accBytes;
  }

  template <class R>
  int32_t run(const MMCall* c, const R& r, const typename R::In* const (&in)[K], void* workspace) const {
    static_assert(R::K == K && R::Targets == Targets, "the plan is for other operands");
    using In = typename R::In;
    constexpr int V = kVector<In>;
    const int64_t none[N] = {};
    return forPieces(kept, none, 0, [&](const Nest<N>& k, const int64_t (&base)[N], int64_t) {
      R at = r;
      const In* from[K];
      for (int i = 0; i < K; i++) from[i] = in[i] + base[i];
      int64_t targets[Targets];
      for (int i = 0; i < Targets; i++) targets[i] = base[K + i];
      at.advance(targets);
      int64_t piece = 0;
      const int32_t status = forPieces(reduced, none, 0, [&](const Nest<N>& t, const int64_t (&offset)[N], int64_t before) {
        const In* p[K];
        for (int i = 0; i < K; i++) p[i] = from[i] + offset[i];
        const int64_t first = piece++ * chunks;
        return vectors(k, t, p, V) ? runPiece<R, V>(c, at, k, t, p, before, first, workspace)
                                   : runPiece<R, 1>(c, at, k, t, p, before, first, workspace);
      });
      if (status != MM_OK || allChunks() == 1) return status;
      const int64_t n = k.count(k.ndim);
      const int32_t log = allChunks() >= 32 ? 5 : ceilLog2(allChunks());
      return launch(c, reduceFinishKernel<R>, dim3(unsigned(ceilDiv(n, kReduceThreads >> log))), dim3(kReduceThreads), 0,
                    layoutOf(k, k.ndim), at, static_cast<const typename R::Acc*>(workspace), uint32_t(n), uint32_t(allChunks()), log);
    });
  }

 private:
  template <class In>
  bool vectors(const Nest<N>& k, const Nest<N>& t, const In* const (&p)[K], int64_t unit) const {
    Nest<N> nest = inner ? k : t;  // all axes, the innermost one last
    const Nest<N>& rest = inner ? t : k;
    for (int i = 0; i < rest.ndim; i++) {
      int64_t s[N];
      for (int j = 0; j < N; j++) s[j] = rest.stride[j][i];
      nest.push(rest.size[i], s);
    }
    bool ok = nest.size[nest.ndim - 1] % unit == 0;
    for (int i = 0; i < K; i++) ok = ok && vectorOperand(nest, i, unit, p[i], sizeof(In));
    return ok;
  }

  template <class R, int V>
  int32_t runPiece(const MMCall* c, const R& r, const Nest<N>& k, const Nest<N>& t, const typename R::In* const (&p)[K], int64_t before,
                   int64_t firstChunk, void* workspace) const {
    ReduceArgs<R> a;
    a.still = 0;
    for (int i = 0; i < K; i++) {
      a.in[i] = p[i];
      const int64_t step = inner ? t.stride[i][t.ndim - 1] : k.stride[i][k.ndim - 1];
      a.still |= uint32_t(step == 0) << i;
    }
    a.kept = layoutOf(k, k.ndim, inner ? 1 : V);
    a.reduced = layoutOf<K>(t, t.ndim, inner ? V : 1);
    for (int i = 0; i < Targets; i++) a.step[i] = k.ndim ? k.stride[K + i][k.ndim - 1] : 0;
    a.firstTerm = before;
    a.outputs = uint32_t(k.count(k.ndim) / (inner ? 1 : V));
    a.terms = uint32_t(t.count(t.ndim) / (inner ? V : 1));
    a.chunks = uint32_t(chunks), a.firstChunk = uint32_t(firstChunk), a.allChunks = uint32_t(allChunks());
    a.perChunk = uint32_t(ceilDiv(a.terms, chunks));
    a.partial = static_cast<typename R::Acc*>(workspace);
    if (inner) {
      const int32_t log = ceilLog2(ceilDiv(a.perChunk, 4));
      a.lanesLog = log < 8 ? log : 8;
      const int64_t blocks = ceilDiv(a.outputs, kReduceThreads >> a.lanesLog) * chunks;
      return launch(c, reduceInnerKernel<R, V>, dim3(unsigned(blocks)), dim3(kReduceThreads), 0, a, r);
    }
    const int32_t log = ceilLog2(a.outputs);
    a.lanesLog = log < 5 ? log : 5;
    const int64_t blocks = ceilDiv(a.outputs, int64_t(1) << a.lanesLog) * chunks;
    return launch(c, reduceKeptKernel<R, V>, dim3(unsigned(blocks)), dim3(kReduceThreads), 0, a, r);
  }
};

// ---- what is reduced
// What reductions in f32 to one target share: all but the terms, which those that derive from it have; a sum unless they say.
template <class T, int INPUTS, class O = T>
struct FloatReduction {
  static constexpr int K = INPUTS, Targets = 1;
  using In = T;
  using Acc = float;
  O* out;

  void advance(const int64_t (&offset)[1]) { out += offset[0]; }
  __device__ __forceinline__ static float identity() { return 0.f; }
  __device__ __forceinline__ static float combine(float a, float b) { return a + b; }
  __device__ __forceinline__ void finish(const int64_t (&at)[1], float total) const { out[at[0]] = fromFloat<O>(total); }
};

// out = factor * sum
template <class T, class O>
struct SumTerms : FloatReduction<T, 1, O> {
  float factor;
  __device__ __forceinline__ float term(const T (&x)[1], int64_t) const { return toFloat(x[0]); }
  __device__ __forceinline__ void finish(const int64_t (&at)[1], float total) const { this->out[at[0]] = fromFloat<O>(total * factor); }
};

// NaN wins.
template <class T>
struct MaxTerms : FloatReduction<T, 1> {
  __device__ __forceinline__ static float identity() { return -INFINITY; }
  __device__ __forceinline__ static float combine(float a, float b) { return b > a || b != b ? b : a; }
  __device__ __forceinline__ float term(const T (&x)[1], int64_t) const { return toFloat(x[0]); }
};

// maxBackward: the place of the first term that equals the maximum (or is NaN); dX, already zero, gets dY there.
template <class T>
struct FirstMaximum {
  static constexpr int K = 2, Targets = 2;  // x, y; dY and dX
  static constexpr int64_t kNone = INT64_MAX;
  using In = T;
  using Acc = int64_t;
  const T* dy;
  T* dx;
  int32_t termAxes;
  int64_t termSize[MM_MAX_DIMS], termStride[MM_MAX_DIMS];  // of dX along the reduced axes, innermost first

  void advance(const int64_t (&offset)[2]) { dy += offset[0], dx += offset[1]; }
  __device__ __forceinline__ static int64_t identity() { return kNone; }
  __device__ __forceinline__ static int64_t combine(int64_t a, int64_t b) { return a < b ? a : b; }
  __device__ __forceinline__ int64_t term(const T (&x)[2], int64_t index) const {
    const float value = toFloat(x[0]);
    return value == toFloat(x[1]) || value != value ? index : kNone;
  }
  __device__ __forceinline__ void finish(const int64_t (&at)[2], int64_t first) const {
    if (first == kNone) return;
    int64_t offset = at[1];
    for (int i = 0; i < termAxes; i++) {
      offset += first % termSize[i] * termStride[i];
      first /= termSize[i];
    }
    dx[offset] = dy[at[0]];
  }
};

// y = factor * x, of the gradients of sum and mean.
template <class T>
struct Scaled {
  static constexpr int K = 1, M = 1;
  using In = T;
  using Out = T;
  float factor;
  template <int V>
  __device__ __forceinline__ void operator()(const T (&x)[1][V], T (&y)[1][V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) y[0][i] = fromFloat<T>(toFloat(x[0][i]) * factor);
  }
};

}  // namespace mm::cuda
