// causalConv1d: y_t = act(b + sum_j w_j x_{t-W+1+j}) for every channel; x (B, D, L) of any strides, weight (D, W), bias (D).
// Before the first input of a sequence lie its initial states (S, D, W-1) or zeros; the final states are its last W-1 inputs.
//
// All of it is memory traffic, so x is read once, in vectors along the axis that is dense, and the W-1 earlier inputs of an
// output come from registers or from the first-level cache:
//   rows      channel-last (memory B, L, D), W 2 to 4. A thread owns V channels and walks `rowsEach` steps with a window of W-1
//             inputs in registers, four rows read ahead. The threads of a block hold 8 or more neighbouring slices of the
//             length, so that the rows shared by two slices are read by one block at about the same time.
//   lines     channel-first (L dense), W 2 to 4, not packed. 1 to 32 lanes own one line (b, d), V neighbouring outputs a lane;
//             the earlier inputs come from the lane before, those of the first lane from the cache.
//   elements  everything else (any width and strides, packed channel-first): one thread an output.
// Vectors are used where addresses and strides allow it, else single elements; this is decided when the call runs.
//
// cuSeqlens is read on the device and cannot be refused there: starts are clamped to [0, L] and a sequence is taken to hold the
// position that was looked up, so that no access leaves the operands whatever the starts say.
#pragma once
#include "cuda/half_math.cuh"

namespace mm::cuda {

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

// A (D, W) or (D) parameter of x's dtype or f32.
struct ConvParameter {
  const void* data;
  bool single;  // f32

  template <class T>
  __device__ __forceinline__ float at(int64_t i) const {
    return single ? static_cast<const float*>(data)[i] : toFloat(static_cast<const T*>(data)[i]);
  }
  // N values from i, in vectors of at most V elements, of which i is a multiple.
  template <class T, int V, int N>
  __device__ __forceinline__ void load(int64_t i, float (&out)[N]) const {
    if (single) chunks<(V < 4 ? V : 4)>(static_cast<const float*>(data) + i, out);
    else chunks<V>(static_cast<const T*>(data) + i, out);
  }

 private:
  template <int C, class P, int N>
  static __device__ __forceinline__ void chunks(const P* p, float (&out)[N]) {
    static_assert(N % C == 0, "whole vectors");
#pragma unroll
    for (int k = 0; k < N; k += C) {
      float part[C];
      loadPacked<C>(p + k, part);
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
  v.weight.template load<T, V>(d * W, flat);
#pragma unroll
  for (int c = 0; c < V; c++)
#pragma unroll
    for (int j = 0; j < W; j++) weights[j][c] = flat[c * W + j];
  if (v.bias.data) v.bias.template load<T, V>(d, bias);
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
#pragma unroll
  for (int k = 0; k < W - 1; k++) {
    const int row = t - (W - 1) + k, slot = row - piece.begin + W - 1;
    if (row >= piece.begin) loadPacked<V>(x + row * v.xTime, window[k]);
    else
#pragma unroll
      for (int c = 0; c < V; c++) window[k][c] = v.states ? toFloat(v.states[piece.states + c * (W - 1) + slot]) : 0.f;
  }
}

constexpr int kConvAhead = 4;   // rows that a thread reads at once
constexpr int kConvVector = 4;  // channels of a thread: with 8 the registers of W = 4 do not suffice

// The next `left` rows, the last one again where there are less than kConvAhead.
template <bool WHOLE, class T, int V>
__device__ __forceinline__ void fetchRows(Pack<T, V> (&rows)[kConvAhead], const T* x, int64_t stride, int left) {
#pragma unroll
  for (int i = 0; i < kConvAhead; i++) rows[i] = *reinterpret_cast<const Pack<T, V>*>(x + (WHOLE || i < left ? i : left - 1) * stride);
}

// ---- forward

// Blocks of (columns of V channels) x (slices); grid: column blocks x groups of slices, columns fastest.
template <class T, int W, int V>
__global__ void __launch_bounds__(256, 3) causalConv1dRowsFwdKernel(const Conv<T> v, T* __restrict__ y, int64_t yBatch, int64_t yTime,
    T* __restrict__ finalStates, unsigned columns, int64_t slices,
    int rowsEach) {
  const unsigned column = blockIdx.x % columns, group = blockIdx.x / columns;
  const int64_t d = (int64_t(column) * blockDim.x + threadIdx.x) * V, slice = int64_t(group) * blockDim.y + threadIdx.y;
  if (d >= v.channels || slice >= v.batch * slices) return;
  const int64_t b = slice / slices;
  int t = int(slice - b * slices) * rowsEach;
  const int last = v.length - t < rowsEach ? int(v.length) : t + rowsEach;
  const T* x = v.x + b * v.xBatch + d;
  y += b * yBatch + d + t * yTime;
  float weights[W][V], bias[V];
  loadTaps<T, W, V>(v, d, weights, bias);
  while (t < last) {
    const ConvPiece piece(v, b, d, t, W - 1);
    const int stop = piece.end < last ? piece.end : last;
    float window[W - 1][V];
    loadWindow<W, V>(v, piece, x, t, window);
    const auto walk = [&](auto whole) {
      constexpr bool WHOLE = decltype(whole)::value;
      Pack<T, V> rows[kConvAhead];
      fetchRows<WHOLE>(rows, x + t * v.xTime, v.xTime, stop - t);
#pragma unroll
      for (int i = 0; i < kConvAhead; i++) {
        if (!WHOLE && t + i >= stop) break;
        float value[V], sum[V];
        unpack(rows[i], value);
#pragma unroll
        for (int c = 0; c < V; c++) {
          sum[c] = bias[c];
#pragma unroll
          for (int j = 0; j < W - 1; j++) sum[c] = fmaf(weights[j][c], window[j][c], sum[c]);
          sum[c] = fmaf(weights[W - 1][c], value[c], sum[c]);
#pragma unroll
          for (int j = 0; j + 1 < W - 1; j++) window[j][c] = window[j + 1][c];
          window[W - 2][c] = value[c];
        }
        if (v.silu)
#pragma unroll
          for (int c = 0; c < V; c++) sum[c] = siluFor<T>(sum[c]);
        storePacked<V>(y, sum);
        y += yTime;
      }
    };
    for (; t + kConvAhead <= stop; t += kConvAhead) walk(std::true_type{});
    if (t < stop) walk(std::false_type{});
    t = stop;
    if (finalStates && t == piece.end)
#pragma unroll
      for (int c = 0; c < V; c++)
#pragma unroll
        for (int k = 0; k < W - 1; k++) finalStates[piece.states + c * (W - 1) + k] = fromFloat<T>(window[k][c]);
  }
}

// A line (b, d) is cut into `runs` of `chunks` chunks of `lanes` vectors; one group of lanes walks a run.
struct ConvLines {
  int64_t runs;
  int32_t lanes, chunks;
  bool vectors;  // whole, aligned vectors; otherwise element by element

  template <class T>
  __host__ __device__ __forceinline__ int64_t steps() const {
    return int64_t(chunks) * lanes * kVector<T>;
  }
};

// Steps from t to the end of a line, between 0 and `most`.
__device__ __forceinline__ int stepsLeft(int64_t t, int64_t length, int most) {
  const int64_t left = length - t;
  return left <= 0 ? 0 : left < most ? int(left) : most;
}

// V steps of a line of which `left` are there; the others are zero.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> loadLine(const T* line, int left, bool vectors) {
  Pack<T, V> pack;
  if (vectors && left > 0) return *reinterpret_cast<const Pack<T, V>*>(line);
#pragma unroll
  for (int i = 0; i < V; i++) pack.v[i] = i < left ? line[i] : fromFloat<T>(0.f);
  return pack;
}
template <int V, class T>
__device__ __forceinline__ void storeLine(T* line, int left, bool vectors, const float (&values)[V]) {
  if (vectors && left > 0) return storePacked<V>(line, values);
#pragma unroll
  for (int i = 0; i < V; i++)
    if (i < left) line[i] = fromFloat<T>(values[i]);
}

// The W-1 inputs before t, which is in the line; state = initial states of the line or null.
template <int W, class T>
__device__ __forceinline__ void loadBefore(const T* line, const T* state, int64_t t, T (&before)[W - 1]) {
#pragma unroll
  for (int k = 0; k < W - 1; k++) {
    const int64_t at = t - (W - 1) + k;
    before[k] = at >= 0 ? line[at] : state ? state[at + W - 1] : fromFloat<T>(0.f);
  }
}

template <class T, int W>
__global__ void __launch_bounds__(128) causalConv1dLinesFwdKernel(const Conv<T> v, T* __restrict__ y, int64_t yBatch, int64_t yChannel,
    T* __restrict__ finalStates, const ConvLines lines) {
  constexpr int V = kVector<T>, H = W - 1;
  const int lane = threadIdx.x & (lines.lanes - 1);
  const int64_t group = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lines.lanes, line = group / lines.runs;
  const int64_t length = line < v.batch * v.channels ? v.length : 0;  // groups behind the last line only shuffle
  const int64_t b = length ? line / v.channels : 0, d = length ? line - b * v.channels : 0;
  const int64_t first = (group - line * lines.runs) * lines.steps<T>() + lane * V;
  const T *x = v.x + b * v.xBatch + d * v.xChannel, *state = v.states ? v.states + (b * v.channels + d) * H : nullptr;
  y += b * yBatch + d * yChannel;
  float weights[W] = {}, bias = 0.f;
  if (length) {
#pragma unroll
    for (int j = 0; j < W; j++) weights[j] = v.weight.template at<T>(d * W + j);
    if (v.bias.data) bias = v.bias.template at<T>(d);
  }
  Pack<T, V> next;
  T nextBefore[H];
  const auto fetch = [&](int64_t t) {
    next = loadLine<V>(x + t, stepsLeft(t, length, V), lines.vectors);
    if (lane == 0 && t < length) loadBefore<W>(x, state, t, nextBefore);
  };
  fetch(first);
  for (int chunk = 0; chunk < lines.chunks; chunk++) {
    const int64_t t = first + int64_t(chunk) * lines.lanes * V;
    float value[H + V], fresh[V];  // value: from step t - H
    unpack(next, fresh);
#pragma unroll
    for (int i = 0; i < V; i++) value[H + i] = fresh[i];
#pragma unroll
    for (int k = 0; k < H; k++) {
      value[k] = __shfl_up_sync(0xffffffffu, value[V + k], 1, lines.lanes);
      if (lane == 0) value[k] = toFloat(nextBefore[k]);
    }
    if (chunk + 1 < lines.chunks) fetch(t + lines.lanes * V);
    float sum[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      sum[i] = bias;
#pragma unroll
      for (int j = 0; j < W; j++) sum[i] = fmaf(weights[j], value[i + j], sum[i]);
      if (v.silu) sum[i] = siluFor<T>(sum[i]);
    }
    const int left = stepsLeft(t, length, V + H);
    storeLine<V>(y + t, left, lines.vectors, sum);
    if (finalStates)
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int slot = i - (left - H);
        if (slot >= 0 && slot < H) finalStates[line * H + slot] = fromFloat<T>(value[H + i]);
      }
  }
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

// By shapes and strides alone. A line must hold the W-1 inputs that its end hands on.
inline ConvPath convPath(const MMTensorView& x, int64_t width, bool packed) {
  if (width < 2 || width > 4 || x.shape[2] > INT32_MAX / 2) return ConvPath::elements;
  if (channelLast(x)) return ConvPath::rows;
  return x.stride[2] == 1 && !packed && x.shape[2] >= width ? ConvPath::lines : ConvPath::elements;
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
  for (int lanes = 32; lanes >= 8; lanes /= 2)
    if (vectors % lanes == 0) return lanes;
  int lanes = 1;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  return lanes;
}

// Lanes that share a line of `vectors` vectors, and its cut into runs that fill the device.
inline ConvLines convLines(int64_t vectors, int64_t count, int multiprocessors, bool whole) {
  ConvLines lines{1, 1, 1, whole};
  while (lines.lanes < 32 && lines.lanes < vectors) lines.lanes *= 2;
  const int64_t chunks = ceilDiv(vectors, lines.lanes), wanted = ceilDiv(int64_t(multiprocessors) * 2048, count > 0 ? count * lines.lanes
      : 1);
  int64_t each = ceilDiv(chunks, wanted);
  if (each > 16) each = 16;
  lines.chunks = int32_t(each);
  lines.runs = ceilDiv(chunks, each);
  return lines;
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
