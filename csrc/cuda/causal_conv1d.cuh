// causalConv1d: y_t = act(b + sum_j w_j x_{t-W+1+j}) for every channel; x (B, D, L) of any strides, weight (D, W), bias (D).
// Before the first input of a sequence lie its initial states (S, D, W-1) or zeros; the final states are its last W-1 inputs.
//
// All of it is memory traffic, so x is read once, in vectors along the axis that is dense, all of a thread's vectors before the
// first of them is used; the W-1 earlier inputs of an output come from registers or from the first-level cache:
//   rows      channel-last (memory B, L, D), W 2 to 4. A thread owns V channels of a tile of R steps and the W-1 rows before it.
//             The threads of a block hold neighbouring tiles, so that the rows shared by two of them are read by one block at
//             about the same time.
//   lines     channel-first (L dense), W 2 to 4, not packed. 1 to 32 lanes own a segment of one line (b, d): U chunks of V
//             neighbouring outputs a lane. The earlier inputs come from the lane before, those of the first lane from the last
//             lane's chunk before or, at the begin of a segment, from memory.
//   elements  everything else (any width and strides, packed channel-first): one thread an output.
// bf16 on an H100, W = 4, of the copy rate: rows, V x R: 4 x 8 and 4 x 16 98 %, 4 x 4 89 %, 2 x 8 93 %, 8 x 8, short of registers, 84 %;
// lines: U = 2 to 8 98 %, 1 96 %.
// Vectors are used where addresses and strides allow it, else single elements; this is decided when the call runs.
//
// cuSeqlens is read on the device and cannot be refused there: starts are clamped to [0, L] and a sequence is taken to hold the
// position that was looked up, so that no access leaves the operands whatever the starts say.
#pragma once
#include "cuda/common/mma.cuh"
#include "cuda/half_math.cuh"

namespace mm::cuda {

constexpr int kConvRowsThreads = 128, kConvRowsLanes = 32, kConvLinesThreads = 128;
constexpr int kConvTile = 8;    // R
constexpr int kConvChunks = 4;  // U
template <class T>
constexpr int kConvVector = 8 / int(sizeof(T));  // V of rows: with 16 bytes the registers of W = 4 do not suffice
constexpr int kConvSlice = 4;  // steps that a slice or a segment has at least

// The steps of one sequence.
struct ConvSpan {
  int64_t sequence, begin, end;
};

struct ConvSequences {
  const int32_t* starts;  // of packed sequences; null: every batch is one
  int64_t count, length;

  __host__ __device__ __forceinline__ int64_t start(int64_t s) const {
    const int64_t at = starts[s];
    return at < 0 ? 0 : at > length ? length : at;
  }
  // The sequence that holds step t of batch b.
  __host__ __device__ __forceinline__ ConvSpan at(int64_t b, int64_t t) const {
    if (!starts) return {b, 0, length};
    int64_t low = 0, high = count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (starts[middle] <= t ? low : high) = middle;
    }
    const int64_t begin = start(low), end = low + 1 == count ? length : start(low + 1);
    return {low, begin < t ? begin : t, end > t ? end : t + 1};
  }
  // Sequence s, which may be empty.
  __host__ __device__ __forceinline__ ConvSpan of(int64_t s) const {
    if (!starts) return {s, 0, length};
    const int64_t begin = start(s), end = s + 1 == count ? length : start(s + 1);
    return {s, begin, end > begin ? end : begin};
  }
};

// N elements as they lie in memory. Loaded elements stay words until they are used: as single 16-bit values they would be
// unpacked, and waited for, right behind their load, and stored one by one.
template <class T, int N>
struct ConvWords {
  static constexpr int kBytes = N * int(sizeof(T)), kWords = (kBytes + 3) / 4;
  uint32_t w[kWords];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (kBytes == 2) {
      w[0] = *reinterpret_cast<const uint16_t*>(p);
    } else if constexpr (kBytes == 4) {
      w[0] = *reinterpret_cast<const uint32_t*>(p);
    } else if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      w[0] = v.x, w[1] = v.y;
    } else {
      static_assert(kBytes == 16, "one load");
      const uint4 v = *reinterpret_cast<const uint4*>(p);
      w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    }
  }
  __device__ __forceinline__ void store(T* p) const {
    if constexpr (kBytes == 2) *reinterpret_cast<uint16_t*>(p) = uint16_t(w[0]);
    else if constexpr (kBytes == 4) *reinterpret_cast<uint32_t*>(p) = w[0];
    else if constexpr (kBytes == 8) *reinterpret_cast<uint64_t*>(p) = uint64_t(w[1]) << 32 | w[0];  // a uint2 would be split
    else *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
  }
  // Element i becomes *p; before, it was zero.
  __device__ __forceinline__ void insert(int i, const T* p) {
    if constexpr (sizeof(T) == 4) w[i] = *reinterpret_cast<const uint32_t*>(p);
    else w[i / 2] |= uint32_t(*reinterpret_cast<const uint16_t*>(p)) << (i % 2 * 16);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; i++) w[i] = 0;
  }
  __device__ __forceinline__ void unpack(float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < kWords; i++) {
      if constexpr (sizeof(T) == 4) {
        out[i] = __uint_as_float(w[i]);
      } else {
        float low, high;
        if constexpr (std::is_same_v<T, bf16>) {
          low = __uint_as_float(w[i] << 16), high = __uint_as_float(w[i] & 0xffff0000u);
        } else {
          const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&w[i]));
          low = both.x, high = both.y;
        }
        out[2 * i] = low;
        if (2 * i + 1 < N) out[2 * i + 1] = high;
      }
    }
  }
  __device__ __forceinline__ static ConvWords of(const float (&in)[N]) {
    ConvWords words;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < N; i++) words.w[i] = __float_as_uint(in[i]);
    } else if constexpr (N == 1) {
      const T value = fromFloat<T>(in[0]);
      words.w[0] = *reinterpret_cast<const uint16_t*>(&value);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i++) words.w[i] = pack2<T>(in[2 * i], in[2 * i + 1]);
    }
    return words;
  }
};

// A (D, W) or (D) parameter of x's dtype or f32.
struct ConvParameter {
  const void* data;
  bool single;  // f32

  template <class T>
  __device__ __forceinline__ float at(int64_t i) const {
    return single ? static_cast<const float*>(data)[i] : toFloat(static_cast<const T*>(data)[i]);
  }
  // N values from i, a multiple of N, in vectors where these are allowed.
  template <class T, bool VECTORS, int N>
  __device__ __forceinline__ void load(int64_t i, float (&out)[N]) const {
    constexpr int kEven = N & -N;
    if (single) chunks<!VECTORS ? 1 : kEven < 4 ? kEven : 4>(static_cast<const float*>(data) + i, out);
    else chunks<!VECTORS ? 1 : kEven < kVector<T> ? kEven : kVector<T>>(static_cast<const T*>(data) + i, out);
  }

 private:
  template <int C, class P, int N>
  static __device__ __forceinline__ void chunks(const P* p, float (&out)[N]) {
    static_assert(N % C == 0, "whole vectors");
#pragma unroll
    for (int k = 0; k < N; k += C) {
      float part[C];
      ConvWords<P, C> words;
      words.load(p + k);
      words.unpack(part);
#pragma unroll
      for (int i = 0; i < C; i++) out[k + i] = part[i];
    }
  }
};

template <class T>
struct Conv {
  const T* x;
  int64_t xBatch, xChannel, xTime;  // strides
  ConvParameter weight, bias;       // bias.data may be null
  const T* states;                  // initial ones (S, D, W-1) or null
  ConvSequences sequences;
  int64_t batch, channels, length;
  int32_t width;
  bool silu;
};

// weights[j][c] of channel d + c and their biases
template <class T, int W, int V>
__device__ __forceinline__ void loadTaps(const Conv<T>& v, int64_t d, float (&weights)[W][V], float (&bias)[V]) {
  float flat[V * W];
  v.weight.template load<T, (V > 1)>(d * W, flat);
#pragma unroll
  for (int c = 0; c < V; c++)
#pragma unroll
    for (int j = 0; j < W; j++) weights[j][c] = flat[c * W + j];
  if (v.bias.data) v.bias.template load<T, (V > 1)>(d, bias);
  else
#pragma unroll
    for (int c = 0; c < V; c++) bias[c] = 0.f;
}

// The steps of a sequence where their number fits in 32 bits; channel d of its states (S, D, W-1).
struct ConvPiece {
  int32_t begin, end;
  int64_t states;

  template <class T>
  __device__ __forceinline__ ConvPiece(const Conv<T>& v, int64_t b, int64_t d, int t, int history) {
    const ConvSpan span = v.sequences.at(b, t);
    begin = int32_t(span.begin), end = int32_t(span.end);
    states = (span.sequence * v.channels + d) * history;
  }
};

// The W-1 inputs before step t of V channels, of which x is step 0: of the sequence, else its initial states.
template <int W, int V, class T>
__device__ __forceinline__ void loadWindow(const Conv<T>& v, const ConvPiece& piece, const T* x, int t, float (&window)[W - 1][V]) {
  ConvWords<T, V> rows[W - 1];
#pragma unroll
  for (int k = 0; k < W - 1; k++) {
    rows[k].clear();
    if (t - (W - 1) + k >= piece.begin) rows[k].load(x + (t - (W - 1) + k) * v.xTime);
  }
#pragma unroll
  for (int k = 0; k < W - 1; k++) {
    rows[k].unpack(window[k]);
    const int slot = t + k - piece.begin;
    if (slot < W - 1 && v.states)
#pragma unroll
      for (int c = 0; c < V; c++) window[k][c] = toFloat(v.states[piece.states + c * (W - 1) + slot]);
  }
}

// ---- forward

// Threads as (columns of V channels) x (tiles of R steps); grid: column blocks x groups of tiles, columns fastest.
template <class T, int W, int V, int R>
__global__ void __launch_bounds__(kConvRowsThreads) causalConv1dRowsFwdKernel(const Conv<T> v, T* __restrict__ y, int64_t yBatch,
    int64_t yTime, T* __restrict__ finalStates, unsigned columns, unsigned tilesEach, unsigned tiles) {
  constexpr int H = W - 1, G = 4;  // outputs of G rows are worked on together
  static_assert(R % G == 0, "whole groups");
  const unsigned group = blockIdx.x / columns, column = blockIdx.x - group * columns;
  const unsigned tile = group * blockDim.y + threadIdx.y;
  const int64_t d = (int64_t(column) * blockDim.x + threadIdx.x) * V;
  if (d >= v.channels || tile >= tiles) return;
  const unsigned b = tile / tilesEach;
  const int t = int(tile - b * tilesEach) * R, left = min(int(v.length) - t, R);
  const T* x = v.x + b * v.xBatch + d;
  y += b * yBatch + d + t * yTime;
  ConvWords<T, V> rows[R];
  const T* from = x + t * v.xTime;
  if (left == R) {
#pragma unroll
    for (int i = 0; i < R; i++, from += v.xTime) rows[i].load(from);
  } else {
#pragma unroll
    for (int i = 0; i < R; i++, from += v.xTime)
      if (i < left) rows[i].load(from);
  }
  ConvPiece piece(v, b, d, t, H);
  float window[H][V], weights[W][V], bias[V];
  loadWindow<W, V>(v, piece, x, t, window);
  loadTaps<T, W, V>(v, d, weights, bias);
  const auto row = [&](const ConvWords<T, V>& words, float(&sum)[V]) {  // the pre-activations of the next row
    float value[V];
    words.unpack(value);
#pragma unroll
    for (int c = 0; c < V; c++) {
      sum[c] = bias[c];
#pragma unroll
      for (int j = 0; j < H; j++) sum[c] = fmaf(weights[j][c], window[j][c], sum[c]);
      sum[c] = fmaf(weights[H][c], value[c], sum[c]);
#pragma unroll
      for (int j = 0; j + 1 < H; j++) window[j][c] = window[j + 1][c];
      window[H - 1][c] = value[c];
    }
  };
  if (left == R && piece.end - t >= R) {
#pragma unroll
    for (int g = 0; g < R; g += G) {
      float sum[G][V];
#pragma unroll
      for (int i = 0; i < G; i++) row(rows[g + i], sum[i]);
      if (v.silu)
#pragma unroll
        for (int i = 0; i < G; i++)
#pragma unroll
          for (int c = 0; c < V; c++) sum[i][c] = siluFor<T>(sum[i][c]);
#pragma unroll
      for (int i = 0; i < G; i++, y += yTime) ConvWords<T, V>::of(sum[i]).store(y);
    }
  } else {
    // Where the tile is not whole or sequences meet: row by row, out of the cache.
    from = x + t * v.xTime;
#pragma unroll 1
    for (int i = 0; i < left; i++, from += v.xTime, y += yTime) {
      if (t + i == piece.end) {
        piece = ConvPiece(v, b, d, t + i, H);
        loadWindow<W, V>(v, piece, x, t + i, window);
      }
      ConvWords<T, V> words;
      words.load(from);
      float sum[V];
      row(words, sum);
      if (v.silu)
#pragma unroll
        for (int c = 0; c < V; c++) sum[c] = siluFor<T>(sum[c]);
      ConvWords<T, V>::of(sum).store(y);
    }
  }
  if (finalStates && t + left == v.length)
#pragma unroll
    for (int c = 0; c < V; c++)
#pragma unroll
      for (int k = 0; k < H; k++) finalStates[piece.states + c * H + k] = fromFloat<T>(window[k][c]);
}

// A chunk of a line: V steps, of which the ones from `left` on lie behind its end and are zero.
template <bool WHOLE, class T, int V>
__device__ __forceinline__ void loadChunk(ConvWords<T, V>& words, const T* line, int left) {
  words.clear();
  if constexpr (WHOLE) {
    if (left > 0) words.load(line);
  } else {
#pragma unroll
    for (int i = 0; i < V; i++)
      if (i < left) words.insert(i, line + i);
  }
}
template <bool WHOLE, class T, int V>
__device__ __forceinline__ void storeChunk(T* line, int left, const float (&values)[V]) {
  if constexpr (WHOLE) {
    if (left > 0) ConvWords<T, V>::of(values).store(line);
  } else {
#pragma unroll
    for (int i = 0; i < V; i++)
      if (i < left) line[i] = fromFloat<T>(values[i]);
  }
}

// The last words of a chunk hold the W-1 inputs before the next one.
template <class T, int W>
constexpr int kConvEdge = ((W - 1) * int(sizeof(T)) + 3) / 4;

// The edge before step t, which begins a segment of a line; state: the line's initial states or null.
template <int W, bool WHOLE, class T>
__device__ __forceinline__ void loadEdge(const T* line, const T* state, int t, uint32_t (&edge)[kConvEdge<T, W>]) {
  constexpr int V = kVector<T>, H = W - 1, E = kConvEdge<T, W>;
  ConvWords<T, V> words;
  words.clear();
  if (WHOLE && t > 0) {
    words.load(line + t - V);
  } else if (t > 0 || state) {
    const T* from = t > 0 ? line + t - H : state;
#pragma unroll
    for (int k = 0; k < H; k++) words.insert(V - H + k, from + k);
  }
#pragma unroll
  for (int i = 0; i < E; i++) edge[i] = words.w[words.kWords - E + i];
}

// The edge of the lane before; the first lane gets `first`, and in it the last lane's edge takes its place.
template <class T, int W>
__device__ __forceinline__ void turnEdge(const ConvWords<T, kVector<T>>& words, int lane, int lanes, uint32_t (&first)[kConvEdge<T, W>],
    uint32_t (&edge)[kConvEdge<T, W>]) {
  constexpr int E = kConvEdge<T, W>;
#pragma unroll
  for (int i = 0; i < E; i++) {
    const uint32_t turned = __shfl_sync(0xffffffffu, words.w[words.kWords - E + i], (lane + lanes - 1) & (lanes - 1), lanes);
    edge[i] = lane == 0 ? first[i] : turned;
    first[i] = turned;
  }
}

// The inputs from step t - W + 1 on of a chunk at t.
template <int W, class T, int V>
__device__ __forceinline__ void chunkInputs(const uint32_t (&edge)[kConvEdge<T, W>], const ConvWords<T, V>& words,
    float (&values)[W - 1 + V]) {
  constexpr int E = kConvEdge<T, W>, N = E * 4 / int(sizeof(T));
  ConvWords<T, N> before;
#pragma unroll
  for (int i = 0; i < E; i++) before.w[i] = edge[i];
  float head[N], own[V];
  before.unpack(head);
  words.unpack(own);
#pragma unroll
  for (int k = 0; k < W - 1; k++) values[k] = head[N - W + 1 + k];
#pragma unroll
  for (int i = 0; i < V; i++) values[W - 1 + i] = own[i];
}

// Groups of 2^shift lanes take the segments of the lines in order.
template <class T, int W, int U, bool WHOLE>
__global__ void __launch_bounds__(kConvLinesThreads) causalConv1dLinesFwdKernel(const Conv<T> v, T* __restrict__ y, int64_t yBatch,
    int64_t yChannel, T* __restrict__ finalStates, unsigned segments, unsigned lines, int shift) {
  constexpr int V = kVector<T>, H = W - 1, E = kConvEdge<T, W>;
  const int lanes = 1 << shift, lane = threadIdx.x & (lanes - 1), step = lanes * V;
  const unsigned group = blockIdx.x * (kConvLinesThreads >> shift) + (threadIdx.x >> shift), line = group / segments;
  const int length = line < lines ? int(v.length) : 0;  // groups behind the last line only shuffle
  const int segment = length ? int(group - line * segments) : 0, first = segment * step * U, t = first + lane * V;
  const unsigned b = length ? line / unsigned(v.channels) : 0, d = length ? line - b * unsigned(v.channels) : 0;
  const T* x = v.x + b * v.xBatch + d * v.xChannel;
  y += b * yBatch + d * yChannel + t;
  ConvWords<T, V> words[U];
#pragma unroll
  for (int u = 0; u < U; u++) loadChunk<WHOLE>(words[u], x + t + u * step, length - t - u * step);
  uint32_t turning[E] = {};
  float weights[W] = {}, bias = 0.f;
  if (length) {
    loadEdge<W, WHOLE>(x, v.states ? v.states + int64_t(line) * H : nullptr, first, turning);
#pragma unroll
    for (int j = 0; j < W; j++) weights[j] = v.weight.template at<T>(int64_t(d) * W + j);
    if (v.bias.data) bias = v.bias.template at<T>(d);
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    uint32_t edge[E];
    turnEdge<T, W>(words[u], lane, lanes, turning, edge);
    float value[H + V], sum[V];
    chunkInputs<W>(edge, words[u], value);
#pragma unroll
    for (int i = 0; i < V; i++) {
      sum[i] = bias;
#pragma unroll
      for (int j = 0; j < W; j++) sum[i] = fmaf(weights[j], value[i + j], sum[i]);
    }
    if (v.silu)
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] = siluFor<T>(sum[i]);
    storeChunk<WHOLE>(y + u * step, length - t - u * step, sum);
  }
  if (finalStates && length && segment + 1 == int(segments))
    for (int k = lane; k < H; k += lanes) finalStates[int64_t(line) * H + k] = x[length - H + k];
}

// Position of element i of (B, D, L), its channels or its steps fastest.
struct ConvElement {
  int64_t b, d, t;

  __device__ __forceinline__ ConvElement(int64_t i, int64_t channels, int64_t length, bool channelFastest) {
    const int64_t inner = channelFastest ? channels : length, rest = i / inner, fast = i - rest * inner;
    const int64_t middle = channelFastest ? length : channels;
    b = rest / middle;
    const int64_t slow = rest - b * middle;
    d = channelFastest ? fast : slow, t = channelFastest ? slow : fast;
  }
};

// Input `row` of a sequence, which may lie up to W-1 steps before its begin.
template <class T>
__device__ __forceinline__ float convInput(const Conv<T>& v, const ConvSpan& span, int64_t b, int64_t d, int64_t row) {
  if (row >= span.begin) return toFloat(v.x[b * v.xBatch + d * v.xChannel + row * v.xTime]);
  return v.states ? toFloat(v.states[(span.sequence * v.channels + d) * (v.width - 1) + row - span.begin + v.width - 1]) : 0.f;
}
template <class T>
__device__ __forceinline__ float convSum(const Conv<T>& v, const ConvSpan& span, int64_t b, int64_t d, int64_t t) {
  float sum = v.bias.data ? v.bias.template at<T>(d) : 0.f;
  for (int j = 0; j < v.width; j++) sum = fmaf(v.weight.template at<T>(d * v.width + j), convInput(v, span, b, d, t - v.width + 1 + j),
      sum);
  return sum;
}

template <class T>
__global__ void __launch_bounds__(256) causalConv1dElementsFwdKernel(const Conv<T> v, T* __restrict__ y, int64_t yBatch, int64_t yChannel,
    int64_t yTime, bool channelFastest) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.batch * v.channels * v.length) return;
  const ConvElement at(i, v.channels, v.length, channelFastest);
  const float sum = convSum(v, v.sequences.at(at.b, at.t), at.b, at.d, at.t);
  y[at.b * yBatch + at.d * yChannel + at.t * yTime] = fromFloat<T>(v.silu ? siluFor<T>(sum) : sum);
}

// (S, D, W-1), an element a thread
template <class T>
__global__ void __launch_bounds__(256) causalConv1dFinalStatesKernel(const Conv<T> v, T* __restrict__ finalStates) {
  const int64_t history = v.width - 1, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= v.sequences.count * v.channels * history) return;
  const int64_t row = i / history, k = i - row * history, s = row / v.channels, d = row - s * v.channels;
  const ConvSpan span = v.sequences.of(s);
  finalStates[i] = fromFloat<T>(convInput(v, span, v.sequences.starts ? 0 : s, d, span.end - history + k));
}

// ---- host: what forward and backward share; their first five operands agree

enum class ConvPath { rows, lines, elements };

inline bool channelLast(const MMTensorView& v) { return v.stride[1] == 1 && v.shape[1] > 1; }
// The same layout as x's, as far as the path needs it.
inline bool followsPath(ConvPath path, const MMTensorView& v) {
  return path == ConvPath::elements || (path == ConvPath::rows ? v.stride[1] == 1 : v.stride[2] == 1);
}

// By shapes and strides alone. A line must hold the W-1 inputs that its end hands on; pieces are counted in 32 bits.
inline ConvPath convPath(const MMTensorView& x, int64_t width, bool packed) {
  const int64_t batch = x.shape[0], channels = x.shape[1], length = x.shape[2], most = INT32_MAX / 2;
  if (width < 2 || width > 4 || length > most) return ConvPath::elements;
  const bool last = channelLast(x);
  if ((last ? batch : batch * channels) * ceilDiv(length, kConvSlice) > most) return ConvPath::elements;
  if (last) return ConvPath::rows;
  return x.stride[2] == 1 && !packed && length >= width ? ConvPath::lines : ConvPath::elements;
}

// Whether vectors of V elements may be read along axis `axis` (1 or 2), the other one's rows included.
template <class T>
bool convVectors(const MMTensorView& v, int axis, int V) {
  const int other = 3 - axis;
  return v.shape[axis] % V == 0 && (v.shape[0] <= 1 || v.stride[0] % V == 0) && (v.shape[other] <= 1 || v.stride[other] % V == 0) &&
      aligned(V * sizeof(T), data<T>(v));
}

template <class T>
Conv<T> convOf(const MMTensorView& x, const MMTensorView& weight, const MMTensorView* bias, const MMTensorView* states,
    const MMTensorView* starts, bool silu) {
  Conv<T> v;
  v.x = data<const T>(x);
  v.xBatch = x.stride[0], v.xChannel = x.stride[1], v.xTime = x.stride[2];
  v.weight = {weight.data, weight.dtype == MM_F32};
  v.bias = bias ? ConvParameter{bias->data, bias->dtype == MM_F32} : ConvParameter{};
  v.states = states ? data<const T>(*states) : nullptr;
  v.batch = x.shape[0], v.channels = x.shape[1], v.length = x.shape[2];
  v.sequences = {starts ? data<const int32_t>(*starts) : nullptr, starts ? starts->shape[0] - 1 : v.batch, v.length};
  v.width = int32_t(weight.shape[1]);
  v.silu = silu;
  return v;
}

// Columns of threads of a rows block: as many lanes as divide the vectors of a row.
inline int convColumns(int64_t vectors) {
  for (int lanes = kConvRowsLanes; lanes >= 8; lanes /= 2)
    if (vectors % lanes == 0) return lanes;
  int lanes = 1;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  return lanes;
}

// Binary logarithm of the lanes that share a line of `chunks` chunks.
inline int convLanes(int64_t chunks) {
  int shift = 0;
  while (shift < 5 && (1 << shift) < chunks) shift++;
  return shift;
}

template <class F>
int32_t dispatchTaps(int64_t width, F&& f) {
  switch (width) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, 4>{});
  }
}

inline dim3 convGrid(int64_t threads, int block) { return dim3(unsigned(ceilDiv(threads, block))); }

}  // namespace mm::cuda
