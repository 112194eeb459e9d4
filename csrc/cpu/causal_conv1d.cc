// causalConv1d: y_t = act(b + sum_j w_j x_{t-W+1+j}) for every channel; x is (B, D, L) in one of two layouts.
//
// Channel-last (memory B, L, D): vectors run over channels. A block of rows t looks up W row pointers (an earlier row
// of x, a row of the initial states or zeros), so that the inner loop knows no borders. Everything else: vectors run
// along L; a piece of one channel with its W-1 predecessors is staged in f32, which hides borders and strides.
// The backward recomputes the activation's input: g = dY act'(.), dx_t = sum_j w_j g_{t+W-1-j}, dw_j = sum_t g_t
// x_{t-W+1+j}. Weight gradients are summed for blocks of fixed size, and the blocks in order.
#include "ops/causal_conv1d.h"

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

using ops::causal_conv1d::SILU;

// Blocks of the channel-last path: wide, so that memory is read in runs of several KiB.
constexpr int64_t kRows = 32, kChannels = 4096;
constexpr int64_t kPiece = 1024;  // of the other path

// Where things lie; the same for forward and backward, whose first five operands agree.
struct Conv {
  int64_t batch, channels, length, width, sequences;
  const MMTensorView *x, *states;
  const int32_t* starts;  // of packed sequences, null otherwise

  explicit Conv(const MMCall* c) {
    using namespace ops::causal_conv1d;
    x = &in(c, X);
    batch = x->shape[0], channels = x->shape[1], length = x->shape[2], width = in(c, WEIGHT).shape[1];
    states = has(c, INITIAL_STATES) ? &in(c, INITIAL_STATES) : nullptr;
    starts = has(c, CU_SEQLENS) ? data<int32_t>(in(c, CU_SEQLENS)) : nullptr;
    sequences = has(c, CU_SEQLENS) ? in(c, CU_SEQLENS).shape[0] - 1 : batch;
  }
  int64_t perBatch() const { return starts ? sequences : 1; }
  int64_t begin(int64_t s) const { return starts ? starts[s] : 0; }
  int64_t end(int64_t s) const { return starts ? starts[s + 1] : length; }
  int64_t batchOf(int64_t s) const { return starts ? 0 : s; }
  // The sequence of batch b that holds position t.
  int64_t sequenceAt(int64_t b, int64_t t) const {
    if (!starts) return b;
    int64_t low = 0, high = sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (starts[middle] <= t ? low : high) = middle;
    }
    return low;
  }
  int64_t rowBlocks() const { return (length + kRows - 1) / kRows; }
  int64_t channelBlocks() const { return (channels + kChannels - 1) / kChannels; }
};

int32_t checkSequences(const MMCall* c, const Conv& v) {
  if (!v.starts) return MM_OK;
  for (int64_t s = 0; s < v.sequences; s++)
    if (v.starts[s] > v.starts[s + 1])
      return fail(c, "cuSeqlens falls from %d to %d at entry %lld; expected ascending starts", v.starts[s], v.starts[s + 1],
          static_cast<long long>(s));
  if (v.starts[0] != 0 || v.starts[v.sequences] != v.length)
    return fail(c, "cuSeqlens runs from %d to %d; expected from 0 to L = %lld", v.starts[0], v.starts[v.sequences],
        static_cast<long long>(v.length));
  return MM_OK;
}

bool channelLast(const MMTensorView& v) { return v.stride[1] == 1 && v.shape[1] > 1; }

// Element (s, d, position) of a sequence, the initial states before it included.
template <class T>
float inputAt(const Conv& v, int64_t s, int64_t d, int64_t t) {
  const int64_t back = t - v.begin(s);
  if (back >= 0) return toF32(data<T>(*v.x)[v.batchOf(s) * v.x->stride[0] + d * v.x->stride[1] + t * v.x->stride[2]]);
  return v.states ? toF32(data<T>(*v.states)[(s * v.channels + d) * (v.width - 1) + v.width - 1 + back]) : 0.f;
}

// Scratch in the workspace, in this order; every part is a multiple of 64 bytes.
constexpr uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }
struct Scratch {
  char* at;
  uint64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(at + used);
    used += aligned(uint64_t(count) * sizeof(T));
    return p;
  }
};

// Weights as rows over channels, so that both paths find them: taps[j * D + d], then the bias (or zeros).
template <class T>
void prepareTaps(const MMCall* c, const Conv& v, float* taps) {
  using namespace ops::causal_conv1d;
  dispatchFloat(in(c, WEIGHT).dtype, [&](auto t) {
    const auto* w = data<decltype(t)>(in(c, WEIGHT));
    for (int64_t d = 0; d < v.channels; d++)
      for (int64_t j = 0; j < v.width; j++) taps[j * v.channels + d] = toF32(w[d * v.width + j]);
  });
  float* bias = taps + v.width * v.channels;
  std::memset(bias, 0, size_t(v.channels) * sizeof(float));
  if (has(c, BIAS))
    dispatchFloat(in(c, BIAS).dtype, [&](auto t) {
      for (int64_t d = 0; d < v.channels; d++) bias[d] = toF32(data<decltype(t)>(in(c, BIAS))[d]);
    });
}

// (S, D, W-1) as rows (S, W-1, D)
template <class T, class R>
void statesToRows(const MMTensorView& states, int64_t channels, int64_t history, R* rows) {
  parallelFor(states.shape[0], 1, [&](int64_t first, int64_t last, int) {
    for (int64_t s = first; s < last; s++)
      for (int64_t d = 0; d < channels; d++)
        for (int64_t k = 0; k < history; k++) {
          const T value = data<T>(states)[(s * channels + d) * history + k];
          if constexpr (sizeof(R) == sizeof(T)) rows[(s * history + k) * channels + d] = *reinterpret_cast<const R*>(&value);
          else rows[(s * history + k) * channels + d] = toF32(value);
        }
  });
}

// Rows of the channel-last path: the W inputs of position t as pointers.
template <class T>
struct Rows {
  const Conv& v;
  const T *states, *zeros;  // (S, W-1, D) or null; (D)

  void lookUp(int64_t b, int64_t s, int64_t t, const T** taps) const {
    const T* x = data<T>(*v.x) + b * v.x->stride[0];
    const int64_t history = v.width - 1;
    for (int64_t j = 0; j <= history; j++) {
      const int64_t at = t - history + j, back = at - v.begin(s);
      taps[j] = back >= 0 ? x + at * v.x->stride[2] : states ? states + (s * history + history + back) * v.channels : zeros;
    }
  }
};

// f(position, lanes) over vectors of [begin, end): whole ones with a constant number of lanes, so that their loads need
// no test, then the rest.
template <class F>
MM_INLINE void forVectors(int64_t begin, int64_t end, F&& f) {
  for (; begin + VL <= end; begin += VL) f(begin, std::integral_constant<int64_t, VL>{});
  if (begin < end) f(begin, end - begin);
}

// WIDTH 0: any width, read from `width`
template <int WIDTH, class T>
MM_INLINE vf convolve(const T* const* rows, int64_t d, int64_t n, const float* taps, int64_t channels, int64_t width) {
  vf acc = loadUpTo(taps + (WIDTH ? WIDTH : width) * channels + d, n);
  if constexpr (WIDTH > 0) {
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; j++) acc = fma(loadUpTo(taps + j * channels + d, n), loadUpTo(rows[j] + d, n), acc);
  } else {
    for (int64_t j = 0; j < width; j++) acc = fma(loadUpTo(taps + j * channels + d, n), loadUpTo(rows[j] + d, n), acc);
  }
  return acc;
}

template <class F>
void dispatchWidth(int64_t width, F&& f) {
  switch (width) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// ---- forward

template <class T, int WIDTH, bool ACT>
void forwardRows(const Conv& v, const Rows<T>& rows, const float* taps, const MMTensorView& y, const T** pointers) {
  const int64_t width = WIDTH ? WIDTH : v.width, blocks = v.rowBlocks(), columns = v.channelBlocks();
  parallelFor(v.batch * blocks * columns, 1, [&](int64_t first, int64_t last, int worker) {
    const T** tap = pointers + worker * width;
    for (int64_t item = first; item < last; item++) {
      const int64_t b = item / (blocks * columns), t0 = item / columns % blocks * kRows, d0 = item % columns * kChannels;
      const int64_t t1 = t0 + kRows < v.length ? t0 + kRows : v.length,
          d1 = d0 + kChannels < v.channels ? d0 + kChannels : v.channels;
      int64_t s = v.sequenceAt(b, t0);
      for (int64_t t = t0; t < t1; t++) {
        while (t >= v.end(s)) s++;
        rows.lookUp(b, s, t, tap);
        T* to = data<T>(y) + b * y.stride[0] + t * y.stride[2];
        forVectors(d0, d1, [&](int64_t d, auto n) {
          const vf pre = convolve<WIDTH>(tap, d, n, taps, v.channels, width);
          storeUpTo(to + d, ACT ? silu(pre) : pre, n);
        });
      }
    }
  });
}

// Inputs [t - (W-1), t + n) of channel d in f32.
template <class T>
void stage(const Conv& v, int64_t s, int64_t d, int64_t t, int64_t n, float* to) {
  const int64_t history = v.width - 1, step = v.x->stride[2];
  for (int64_t k = 0; k < history; k++) to[k] = inputAt<T>(v, s, d, t - history + k);
  const T* x = data<T>(*v.x) + v.batchOf(s) * v.x->stride[0] + d * v.x->stride[1] + t * step;
  to += history;
  if (step == 1)
    for (int64_t j = 0; j < n; j += VL) storeUpTo(to + j, loadUpTo(x + j, n - j), n - j);
  else
    for (int64_t j = 0; j < n; j++) to[j] = toF32(x[j * step]);
}
template <class T>
void unstage(const float* from, int64_t n, T* to, int64_t step) {
  if (step == 1)
    for (int64_t j = 0; j < n; j += VL) storeUpTo(to + j, loadUpTo(from + j, n - j), n - j);
  else
    for (int64_t j = 0; j < n; j++) to[j * step] = fromF32<T>(from[j]);
}

template <int WIDTH>
MM_INLINE vf convolvePiece(const float* staged, const float* w, float bias, int64_t width, int64_t n) {
  vf acc = splat(bias);
  if constexpr (WIDTH > 0) {
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; j++) acc = fma(splat(w[j]), loadUpTo(staged + j, n), acc);
  } else {
    for (int64_t j = 0; j < width; j++) acc = fma(splat(w[j]), loadUpTo(staged + j, n), acc);
  }
  return acc;
}

// Floats of scratch that one worker of the staged path needs: inputs, gradients and the channel's taps.
int64_t pieceFloats(const Conv& v) { return 2 * (kPiece + v.width) + 3 * v.width + 64; }

template <class T, int WIDTH, bool ACT>
void forwardPieces(const Conv& v, const float* taps, const MMTensorView& y, float* scratch) {
  const int64_t width = WIDTH ? WIDTH : v.width;
  parallelFor(v.batch * v.channels, 1 + 8192 / (v.length + 1), [&](int64_t first, int64_t last, int worker) {
    float *staged = scratch + worker * pieceFloats(v), *result = staged + kPiece + v.width, *w = result + kPiece + v.width;
    for (int64_t item = first; item < last; item++) {
      const int64_t b = item / v.channels, d = item % v.channels;
      for (int64_t j = 0; j < width; j++) w[j] = taps[j * v.channels + d];
      const float bias = taps[width * v.channels + d];
      T* to = data<T>(y) + b * y.stride[0] + d * y.stride[1];
      for (int64_t q = 0; q < v.perBatch(); q++) {
        const int64_t s = v.starts ? q : b, end = v.end(s);
        for (int64_t t = v.begin(s); t < end; t += kPiece) {
          const int64_t n = end - t < kPiece ? end - t : kPiece;
          stage<T>(v, s, d, t, n, staged);
          forVectors(0, n, [&](int64_t j, auto lanes) {
            const vf pre = convolvePiece<WIDTH>(staged + j, w, bias, width, lanes);
            storeUpTo(result + j, ACT ? silu(pre) : pre, lanes);
          });
          unstage(result, n, to + t * y.stride[2], y.stride[2]);
        }
      }
    }
  });
}

template <class T>
void finalStates(const Conv& v, const MMTensorView& states) {
  const int64_t history = v.width - 1;
  parallelFor(v.sequences, 1 + 4096 / (v.channels * history + 1), [&](int64_t first, int64_t last, int) {
    for (int64_t s = first; s < last; s++)
      for (int64_t d = 0; d < v.channels; d++)
        for (int64_t k = 0; k < history; k++)
          data<T>(states)[(s * v.channels + d) * history + k] = fromF32<T>(inputAt<T>(v, s, d, v.end(s) - history + k));
  });
}

template <class T>
struct ForwardScratch {
  float *taps, *pieces;
  T *states, *zeros;
  const T** pointers;
  uint64_t bytes;

  ForwardScratch(const Conv& v, void* workspace) {
    Scratch s{static_cast<char*>(workspace)};
    taps = s.take<float>((v.width + 1) * v.channels);
    pieces = s.take<float>(workerCount() * pieceFloats(v));
    states = s.take<T>(v.states ? v.sequences * (v.width - 1) * v.channels : 0);
    zeros = s.take<T>(v.channels);
    pointers = s.take<const T*>(workerCount() * v.width);
    bytes = s.used;
  }
};

uint64_t conv1dWorkspace(const MMCall* c) {
  return dispatchFloat(in(c, 0).dtype, [&](auto t) { return ForwardScratch<decltype(t)>(Conv(c), nullptr).bytes; });
}

int32_t causalConv1d(const MMCall* c) {
  using namespace ops::causal_conv1d;
  const Conv v(c);
  if (const int32_t status = checkSequences(c, v)) return status;
  const auto& y = out(c, Y);
  const bool act = attrs<Attrs>(c).activation == SILU;
  dispatchFloat(v.x->dtype, [&](auto t) {
    using T = decltype(t);
    const ForwardScratch<T> scratch(v, c->workspace);
    prepareTaps<T>(c, v, scratch.taps);
    finalStates<T>(v, out(c, FINAL_STATES));
    const bool rowwise = channelLast(*v.x) && channelLast(y);
    if (rowwise) {
      std::memset(static_cast<void*>(scratch.zeros), 0, size_t(v.channels) * sizeof(T));
      if (v.states) statesToRows<T>(*v.states, v.channels, v.width - 1, scratch.states);
    }
    const Rows<T> rows{v, v.states ? scratch.states : nullptr, scratch.zeros};
    dispatchWidth(v.width, [&](auto w) {
      constexpr int WIDTH = decltype(w)::value;
      if (rowwise)
        act ? forwardRows<T, WIDTH, true>(v, rows, scratch.taps, y, scratch.pointers)
            : forwardRows<T, WIDTH, false>(v, rows, scratch.taps, y, scratch.pointers);
      else
        act ? forwardPieces<T, WIDTH, true>(v, scratch.taps, y, scratch.pieces)
            : forwardPieces<T, WIDTH, false>(v, scratch.taps, y, scratch.pieces);
    });
  });
  return MM_OK;
}

// ---- backward

// Which gradients are wanted, and where partial weight gradients go: (blocks, W + 1, D), the bias last.
struct Wanted {
  const MMTensorView *dx, *dy;
  bool weights;
  float* partial;
  const float* lastStates;  // (S, W-1, D) gradient of the final states, or null
};

template <class T, int WIDTH, bool ACT>
void backwardRows(const Conv& v, const Rows<T>& rows, const float* taps, const Wanted& want, const T** pointers, float* scratch) {
  const int64_t width = WIDTH ? WIDTH : v.width, history = width - 1, blocks = v.rowBlocks(), columns = v.channelBlocks();
  const auto& dy = *want.dy;
  parallelFor(v.batch * blocks * columns, 1, [&](int64_t first, int64_t last, int worker) {
    const T** tap = pointers + worker * (kRows + width) * width;
    float* g = scratch + worker * (kRows + width) * kChannels;
    for (int64_t item = first; item < last; item++) {
      const int64_t b = item / (blocks * columns), block = item / columns % blocks, t0 = block * kRows,
          d0 = item % columns * kChannels;
      const int64_t t1 = t0 + kRows < v.length ? t0 + kRows : v.length,
          d1 = d0 + kChannels < v.channels ? d0 + kChannels : v.channels;
      // the rows of the block and the next W-1, whose gradients reach back into it
      const int64_t t2 = want.dx ? (t1 + history < v.length ? t1 + history : v.length) : t1;
      int64_t s = v.sequenceAt(b, t0);
      for (int64_t t = t0; t < t2; t++) {
        while (t >= v.end(s)) s++;
        rows.lookUp(b, s, t, tap + (t - t0) * width);
      }
      float* dw = want.partial + (b * blocks + block) * (width + 1) * v.channels;
      forVectors(d0, d1, [&](int64_t d, auto n) {
        vf acc[WIDTH + 1] = {};
        if (WIDTH == 0 && want.weights)
          for (int64_t j = 0; j < width; j++) storeUpTo(dw + j * v.channels + d, vf{}, n);
        for (int64_t t = t0; t < t2; t++) {
          const T* const* row = tap + (t - t0) * width;
          vf gradient = loadUpTo(data<T>(dy) + b * dy.stride[0] + t * dy.stride[2] + d, n);
          if (ACT) gradient *= siluGrad(convolve<WIDTH>(row, d, n, taps, v.channels, width));
          storeUpTo(g + (t - t0) * kChannels + d - d0, gradient, n);
          if (t >= t1) continue;
          if constexpr (WIDTH > 0) {
#pragma GCC unroll 4
            for (int j = 0; j < WIDTH; j++) acc[j] = fma(gradient, loadUpTo(row[j] + d, n), acc[j]);
          } else if (want.weights) {
            for (int64_t j = 0; j < width; j++) {
              float* p = dw + j * v.channels + d;
              storeUpTo(p, fma(gradient, loadUpTo(row[j] + d, n), loadUpTo(p, n)), n);
            }
          }
          acc[WIDTH] += gradient;
        }
        if (want.weights) {
          for (int j = 0; j < WIDTH; j++) storeUpTo(dw + j * v.channels + d, acc[j], n);
          storeUpTo(dw + width * v.channels + d, acc[WIDTH], n);
        }
      });
      if (!want.dx) continue;
      s = v.sequenceAt(b, t0);
      for (int64_t t = t0; t < t1; t++) {
        while (t >= v.end(s)) s++;
        const int64_t reach = v.end(s) - t < width ? v.end(s) - t : width;
        const int64_t slot = t - (v.end(s) - history);  // of the final states, when not negative
        const float* extra = want.lastStates && slot >= 0 ? want.lastStates + (s * history + slot) * v.channels : nullptr;
        T* to = data<T>(*want.dx) + b * want.dx->stride[0] + t * want.dx->stride[2];
        forVectors(d0, d1, [&](int64_t d, auto n) {
          vf dx = extra ? loadUpTo(extra + d, n) : vf{};
          for (int64_t j = 0; j < reach; j++)
            dx = fma(loadUpTo(taps + (history - j) * v.channels + d, n), loadUpTo(g + (t - t0 + j) * kChannels + d - d0, n), dx);
          storeUpTo(to + d, dx, n);
        });
      }
    }
  });
}

template <class T, int WIDTH, bool ACT>
void backwardPieces(const Conv& v, const float* taps, const Wanted& want, float* scratch) {
  const int64_t width = WIDTH ? WIDTH : v.width, history = width - 1;
  const auto& dy = *want.dy;
  parallelFor(v.batch * v.channels, 1 + 8192 / (v.length + 1), [&](int64_t first, int64_t last, int worker) {
    float *staged = scratch + worker * pieceFloats(v), *g = staged + kPiece + v.width, *w = g + kPiece + v.width, *dw = w + width;
    for (int64_t item = first; item < last; item++) {
      const int64_t b = item / v.channels, d = item % v.channels;
      for (int64_t j = 0; j < width; j++) w[j] = taps[j * v.channels + d];
      for (int64_t j = 0; j <= width; j++) dw[j] = 0.f;
      const float bias = taps[width * v.channels + d];
      const T* up = data<T>(dy) + b * dy.stride[0] + d * dy.stride[1];
      for (int64_t q = 0; q < v.perBatch(); q++) {
        const int64_t s = v.starts ? q : b, begin = v.begin(s), end = v.end(s);
        for (int64_t k = 0; k < history; k++) g[kPiece + k] = 0.f;  // nothing comes after the last piece
        for (int64_t piece = (end - begin + kPiece - 1) / kPiece - 1; piece >= 0; piece--) {
          const int64_t t = begin + piece * kPiece, n = end - t < kPiece ? end - t : kPiece;
          stage<T>(v, s, d, t, n, staged);
          if (n < kPiece)  // the last piece: its successors are zero
            for (int64_t k = 0; k < history; k++) g[n + k] = 0.f;
          vf acc[WIDTH + 1] = {};
          forVectors(0, n, [&](int64_t j, auto lanes) {
            vf gradient;
            if (dy.stride[2] == 1) gradient = loadUpTo(up + t + j, lanes);
            else {
              float apart[VL] = {};
              for (int i = 0; i < lanes; i++) apart[i] = toF32(up[(t + j + i) * dy.stride[2]]);
              gradient = load(apart);
            }
            if (ACT) gradient *= siluGrad(convolvePiece<WIDTH>(staged + j, w, bias, width, lanes));
            storeUpTo(g + j, gradient, lanes);
            if constexpr (WIDTH > 0) {
#pragma GCC unroll 4
              for (int k = 0; k < WIDTH; k++) acc[k] = fma(gradient, loadUpTo(staged + j + k, lanes), acc[k]);
            } else {
              for (int64_t k = 0; k < width; k++) dw[k] += sum(gradient * loadUpTo(staged + j + k, lanes));
            }
            acc[WIDTH] += gradient;
          });
          for (int k = 0; k < WIDTH; k++) dw[k] += sum(acc[k]);
          dw[width] += sum(acc[WIDTH]);
          if (want.dx) {  // into the staged inputs, which are not needed any more
            forVectors(0, n, [&](int64_t j, auto lanes) {
              vf dx{};
              for (int64_t k = 0; k < width; k++) dx = fma(splat(w[history - k]), loadUpTo(g + j + k, lanes), dx);
              storeUpTo(staged + j, dx, lanes);
            });
            if (want.lastStates)
              for (int64_t slot = t - (end - history) > 0 ? t - (end - history) : 0; slot < history; slot++) {
                const int64_t at = end - history + slot - t;
                if (at >= 0 && at < n) staged[at] += want.lastStates[(s * history + slot) * v.channels + d];
              }
            const auto& dx = *want.dx;
            unstage(staged, n, data<T>(dx) + b * dx.stride[0] + d * dx.stride[1] + t * dx.stride[2], dx.stride[2]);
          }
          std::memmove(g + kPiece, g, size_t(history) * sizeof(float));  // they overlap where taps reach beyond a piece
        }
      }
      if (want.weights)
        for (int64_t j = 0; j <= width; j++) want.partial[(b * (width + 1) + j) * v.channels + d] = dw[j];
    }
  });
}

// d initialStates[k] = sum_{j <= k} w_j g_{begin+k-j}, and what a short sequence passes on to its final states.
template <class T>
void backwardStates(const Conv& v, const float* taps, bool act, const Wanted& want, const MMTensorView& dStates) {
  const int64_t history = v.width - 1;
  const auto& dy = *want.dy;
  parallelFor(v.sequences * v.channels, 256, [&](int64_t first, int64_t last, int) {
    for (int64_t item = first; item < last; item++) {
      const int64_t s = item / v.channels, d = item % v.channels, begin = v.begin(s), length = v.end(s) - begin;
      for (int64_t k = 0; k < history; k++) {
        float total = want.lastStates && k >= length ? want.lastStates[(s * history + k - length) * v.channels + d] : 0.f;
        for (int64_t j = 0; j <= k; j++) {
          const int64_t t = k - j;  // position in the sequence that reads this slot through tap j
          if (t >= length) continue;
          float g = toF32(data<T>(dy)[v.batchOf(s) * dy.stride[0] + d * dy.stride[1] + (begin + t) * dy.stride[2]]);
          if (act) {
            float pre = taps[v.width * v.channels + d];
            for (int64_t i = 0; i < v.width; i++) pre += taps[i * v.channels + d] * inputAt<T>(v, s, d, begin + t - history + i);
            g *= siluGrad(splat(pre))[0];
          }
          total += taps[j * v.channels + d] * g;
        }
        data<T>(dStates)[item * history + k] = fromF32<T>(total);
      }
    }
  });
}

template <class T>
struct BackwardScratch {
  float *taps, *pieces, *gradients, *partial, *lastStates;
  T *states, *zeros;
  const T** pointers;
  uint64_t bytes;

  BackwardScratch(const Conv& v, bool rowwise, bool last, void* workspace) {
    Scratch s{static_cast<char*>(workspace)};
    const int64_t stateSize = v.sequences * (v.width - 1) * v.channels;
    taps = s.take<float>((v.width + 1) * v.channels);
    pieces = s.take<float>(rowwise ? 0 : workerCount() * pieceFloats(v));
    gradients = s.take<float>(rowwise ? workerCount() * (kRows + v.width) * kChannels : 0);
    partial = s.take<float>(v.batch * (rowwise ? v.rowBlocks() : 1) * (v.width + 1) * v.channels);
    lastStates = s.take<float>(last ? stateSize : 0);
    states = s.take<T>(rowwise && v.states ? stateSize : 0);
    zeros = s.take<T>(v.channels);
    pointers = s.take<const T*>(rowwise ? workerCount() * (kRows + v.width) * v.width : 0);
    bytes = s.used;
  }
};

bool backwardRowwise(const MMCall* c) {
  using namespace ops::causal_conv1d_bwd;
  return channelLast(in(c, X)) && channelLast(in(c, DY)) && (!hasOut(c, DX) || channelLast(out(c, DX)));
}

uint64_t conv1dBackwardWorkspace(const MMCall* c) {
  return dispatchFloat(in(c, 0).dtype, [&](auto t) {
    return BackwardScratch<decltype(t)>(Conv(c), backwardRowwise(c), has(c, ops::causal_conv1d_bwd::DFINAL_STATES),
        nullptr).bytes;
  });
}

int32_t causalConv1dBackward(const MMCall* c) {
  using namespace ops::causal_conv1d_bwd;
  const Conv v(c);
  if (const int32_t status = checkSequences(c, v)) return status;
  const bool act = attrs<Attrs>(c).activation == SILU, rowwise = backwardRowwise(c), last = has(c, DFINAL_STATES);
  dispatchFloat(v.x->dtype, [&](auto t) {
    using T = decltype(t);
    const BackwardScratch<T> scratch(v, rowwise, last, c->workspace);
    prepareTaps<T>(c, v, scratch.taps);
    if (last) statesToRows<T>(in(c, DFINAL_STATES), v.channels, v.width - 1, scratch.lastStates);
    const Wanted want{hasOut(c, DX) ? &out(c, DX) : nullptr, &in(c, DY), hasOut(c, DWEIGHT) || hasOut(c, DBIAS), scratch.partial,
                      last ? scratch.lastStates : nullptr};
    if (rowwise) {
      std::memset(static_cast<void*>(scratch.zeros), 0, size_t(v.channels) * sizeof(T));
      if (v.states) statesToRows<T>(*v.states, v.channels, v.width - 1, scratch.states);
    }
    const Rows<T> rows{v, v.states ? scratch.states : nullptr, scratch.zeros};
    if (want.dx || want.weights)
      dispatchWidth(v.width, [&](auto w) {
        constexpr int WIDTH = decltype(w)::value;
        if (rowwise)
          act ? backwardRows<T, WIDTH, true>(v, rows, scratch.taps, want, scratch.pointers, scratch.gradients)
              : backwardRows<T, WIDTH, false>(v, rows, scratch.taps, want, scratch.pointers, scratch.gradients);
        else
          act ? backwardPieces<T, WIDTH, true>(v, scratch.taps, want, scratch.pieces)
              : backwardPieces<T, WIDTH, false>(v, scratch.taps, want, scratch.pieces);
      });
    if (hasOut(c, DINITIAL_STATES)) backwardStates<T>(v, scratch.taps, act, want, out(c, DINITIAL_STATES));
    const int64_t blocks = v.batch * (rowwise ? v.rowBlocks() : 1), stride = (v.width + 1) * v.channels;
    const auto total = [&](int64_t j, int64_t d) {
      float sum = 0.f;
      for (int64_t b = 0; b < blocks; b++) sum += scratch.partial[b * stride + j * v.channels + d];
      return sum;
    };
    if (want.weights)
      parallelFor(v.channels, 64, [&](int64_t first, int64_t end, int) {
        for (int64_t d = first; d < end; d++) {
          for (int64_t j = 0; j < v.width && hasOut(c, DWEIGHT); j++) data<float>(out(c, DWEIGHT))[d * v.width + j] = total(j, d);
          if (hasOut(c, DBIAS)) data<float>(out(c, DBIAS))[d] = total(v.width, d);
        }
      });
  });
  return MM_OK;
}

// ---- update

// One new token, plain buffer: VL channels at a time. The lanes are gathered, as state and weights lie by channel.
template <class T, class P, int WIDTH, bool ACT>
void updateOne(const T* x, int64_t xStep, T* state, int64_t stateStep, int64_t stateLength, const P* weight, const P* bias, T* y,
               int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; d += VL) {
    const int n = int(end - d < VL ? end - d : VL);
    float taps[WIDTH][VL] = {}, inputs[WIDTH][VL] = {}, offset[VL] = {};
    for (int i = 0; i < n; i++) {
      T* history = state + (d + i) * stateStep;
#pragma GCC unroll 4
      for (int j = 0; j < WIDTH; j++) taps[j][i] = toF32(weight[(d + i) * WIDTH + j]);
#pragma GCC unroll 4
      for (int j = 0; j < WIDTH - 1; j++) inputs[j][i] = toF32(history[stateLength - (WIDTH - 1) + j]);
      inputs[WIDTH - 1][i] = toF32(x[(d + i) * xStep]);
      for (int64_t k = 0; k + 1 < stateLength; k++) history[k] = history[k + 1];
      if (stateLength) history[stateLength - 1] = x[(d + i) * xStep];
      if (bias) offset[i] = toF32(bias[d + i]);
    }
    vf acc = load(offset);
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; j++) acc = fma(load(taps[j]), load(inputs[j]), acc);
    storeUpTo(y + d, ACT ? silu(acc) : acc, n);
  }
}

// Any number of tokens and either kind of buffer, one channel.
template <class T, class P>
void updateChannel(const T* x, int64_t step, int64_t tokens, T* state, int64_t length, int64_t position, bool ring,
                   const P* weight, int64_t width, float bias, bool act, T* y) {
  constexpr int kMaxWidth = 16;  // as infer() demands
  float window[kMaxWidth] = {};
  for (int64_t k = 0; k < width - 1; k++) {
    const int64_t back = width - 1 - k;
    window[k] = toF32(state[ring ? ((position - back) % length + length) % length : length - back]);
  }
  for (int64_t t = 0; t < tokens; t++) {
    window[width - 1] = toF32(x[t * step]);
    float acc = bias;
    for (int64_t j = 0; j < width; j++) acc += toF32(weight[j]) * window[j];
    y[t] = fromF32<T>(act ? silu(acc) : acc);
    for (int64_t j = 0; j + 1 < width; j++) window[j] = window[j + 1];
  }
  if (ring) {
    for (int64_t t = 0; t < tokens; t++) state[(position + t) % length] = x[t * step];
    return;
  }
  const int64_t kept = length > tokens ? length - tokens : 0;
  for (int64_t k = 0; k < kept; k++) state[k] = state[k + tokens];
  for (int64_t k = kept; k < length; k++) state[k] = x[(tokens - length + k) * step];
}

int32_t causalConv1dUpdate(const MMCall* c) {
  using namespace ops::causal_conv1d_update;
  const auto &x = in(c, X), &state = in(c, CONV_STATE), &weight = in(c, WEIGHT), &y = out(c, Y);
  const int64_t batch = x.shape[0], channels = x.shape[1], tokens = x.ndim == 3 ? x.shape[2] : 1,
      step = x.ndim == 3 ? x.stride[2] : 1;
  const int64_t width = weight.shape[1], length = state.shape[2];
  const int32_t* positions = has(c, CACHE_SEQLENS) ? data<int32_t>(in(c, CACHE_SEQLENS)) : nullptr;
  for (int64_t b = 0; positions && b < batch; b++)
    if (positions[b] < 0) return fail(c, "cacheSeqlens[%lld] is %d; expected the number of tokens seen so far",
        static_cast<long long>(b), positions[b]);
  const bool act = attrs<Attrs>(c).activation == SILU;
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto p) {
      using P = decltype(p);
      const P* w = data<P>(weight);
      // a bias of the other dtype than the weights is rare: it takes the channel path
      const bool hasBias = has(c, BIAS), fast = tokens == 1 && !positions && width >= 2 && width <= 4
          && (!hasBias || in(c, BIAS).dtype == weight.dtype);
      constexpr int64_t kBlock = 2048;
      const int64_t blocks = (channels + kBlock - 1) / kBlock;
      parallelFor(batch * blocks, 1 + 4096 / (kBlock * tokens + 1), [&](int64_t first, int64_t last, int) {
        for (int64_t item = first; item < last; item++) {
          const int64_t b = item / blocks, d0 = item % blocks * kBlock, d1 = d0 + kBlock < channels ? d0 + kBlock : channels;
          const T* px = data<T>(x) + b * x.stride[0];
          T *ps = data<T>(state) + b * state.stride[0], *py = data<T>(y) + b * channels * tokens;
          if (fast) {
            const P* bias = hasBias ? data<P>(in(c, BIAS)) : nullptr;
            dispatchWidth(width, [&](auto k) {
              constexpr int WIDTH = decltype(k)::value > 0 ? decltype(k)::value : 2;
              act ? updateOne<T, P, WIDTH, true>(px, x.stride[1], ps, state.stride[1], length, w, bias, py, d0, d1)
                  : updateOne<T, P, WIDTH, false>(px, x.stride[1], ps, state.stride[1], length, w, bias, py, d0, d1);
            });
            continue;
          }
          for (int64_t d = d0; d < d1; d++) {
            float bias = 0.f;
            if (hasBias) bias = in(c, BIAS).dtype == MM_F32 ? data<float>(in(c, BIAS))[d] : toF32(data<T>(in(c, BIAS))[d]);
            updateChannel(px + d * x.stride[1], step, tokens, ps + d * state.stride[1], length, positions ? positions[b] : 0,
                          positions != nullptr, w + d * width, width, bias, act, py + d * tokens);
          }
        }
      });
    };
    if (weight.dtype == MM_F32) run(float{});
    else run(T{});
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(causal_conv1d, {"causalConv1d", "rows or pieces", nullptr, conv1dWorkspace, causalConv1d},
               {"causalConv1dBackward", "rows or pieces", nullptr, conv1dBackwardWorkspace, causalConv1dBackward},
               {"causalConv1dUpdate", "channels", nullptr, nullptr, causalConv1dUpdate})
