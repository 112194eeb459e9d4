// The general attention kernels compute in f32 on the ordinary cores: a block holds tiles of rows in shared memory, converted from
// whatever dtype they have, and each thread a few rows times a few columns of every product in registers. Rows of a thread are
// TY apart and columns TX apart, so that the lanes of a warp read neighbouring rows of a tile; rows are padded by 4 floats, which
// spreads them over the banks. A row of scores belongs to TX neighbouring lanes, so that a softmax needs no block barrier.
#pragma once
#include "cuda/attention.cuh"

namespace mm::cuda {

// Calls f(T{}) with T of a float dtype, on the device.
template <class F>
__device__ __forceinline__ void withFloat(int dtype, F&& f) {
  if (dtype == MM_F32) f(float{});
  else if (dtype == MM_BF16) f(bf16{});
  else f(f16{});
}

// How the elements of all operands of a call are stored; `vectors`: 4 at once are aligned everywhere.
struct Storage {
  int dtype;
  bool vectors;
};
using AnyView = HeadView<char>;  // strides in elements
template <class T>
__device__ __forceinline__ T* rowsOf(const AnyView& x, int b, int l, int h) {
  return HeadView<T>{reinterpret_cast<T*>(x.data), x.batch, x.row, x.head}.at(b, l, h);
}
template <class... V>
Storage storageOf(const MMTensorView& q, const V&... views) {
  const uint64_t bytes = q.dtype == MM_F32 ? 16 : 8;
  return {q.dtype, q.shape[3] % 4 == 0 && rowsAlign(q, 4) && (... && rowsAlign(views, 4)) && aligned(bytes, q.data) &&
                       (... && aligned(bytes, views.data))};
}

// ROWS x D tiles of TY x TX threads against COLS x D tiles.
template <int DIM, int ROWS, int COLS, int TYS, int TXS>
struct FloatTile {
  static constexpr int dim = DIM, rows = ROWS, cols = COLS, TY = TYS, TX = TXS, threads = TY * TX;
  static constexpr int ld = dim + 4, lds = cols + 4;          // floats of a row of operands and of scores
  static constexpr int RM = rows / TY, CN = cols / TX;        // scores of a thread: RM x CN
  static constexpr int width = dim / TX < 4 ? dim / TX : 4;   // neighbouring channels of a thread
  static constexpr int NV = dim / TX / width;                 // such groups of a thread
  static_assert(32 % TX == 0 && threads % 32 == 0 && cols % 4 == 0, "rows of scores lie within warps");
};

// Rows [0, rows) of an operand times a factor; zeros behind them and behind its channels.
template <class Tile, int ROWS>
__device__ __forceinline__ void loadFloatRows(float* tile, Storage storage, const AnyView& x, int b, int l, int h, int rows, int dim,
                                              float factor) {
  withFloat(storage.dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = rowsOf<const T>(x, b, l, h);
    for (int i = threadIdx.x; i < ROWS * Tile::dim / 4; i += Tile::threads) {
      const int r = i / (Tile::dim / 4), j = i % (Tile::dim / 4) * 4;
      float v[4] = {};
      if (r < rows && j < dim) {
        const T* at = from + r * x.row + j;
        if (storage.vectors) loadFloats<4>(at, v);
        else {
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (j + e < dim) v[e] = toFloat(at[e]);
        }
      }
      *reinterpret_cast<float4*>(tile + r * Tile::ld + j) = make_float4(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor);
    }
  });
}

// s[i][j] = <a[ty + TY i], b[tx + TX j]>
template <class Tile>
__device__ __forceinline__ void dotRows(float (&s)[Tile::RM][Tile::CN], const float* a, const float* b, int ty, int tx) {
#pragma unroll
  for (int i = 0; i < Tile::RM; i++)
#pragma unroll
    for (int j = 0; j < Tile::CN; j++) s[i][j] = 0.f;
#pragma unroll 4
  for (int d = 0; d < Tile::dim; d += 4) {
    float4 x[Tile::RM], y[Tile::CN];
#pragma unroll
    for (int i = 0; i < Tile::RM; i++) x[i] = *reinterpret_cast<const float4*>(a + (ty + Tile::TY * i) * Tile::ld + d);
#pragma unroll
    for (int j = 0; j < Tile::CN; j++) y[j] = *reinterpret_cast<const float4*>(b + (tx + Tile::TX * j) * Tile::ld + d);
#pragma unroll
    for (int i = 0; i < Tile::RM; i++)
#pragma unroll
      for (int j = 0; j < Tile::CN; j++)
        s[i][j] = fmaf(x[i].w, y[j].w, fmaf(x[i].z, y[j].z, fmaf(x[i].y, y[j].y, fmaf(x[i].x, y[j].x, s[i][j]))));
  }
}

// acc[i] (channels of the thread) += sum over c of w[ty + TY i][c] b[c]; w has rows of lds floats.
template <class Tile>
__device__ __forceinline__ void addWeighted(float (&acc)[Tile::RM][Tile::NV][Tile::width], const float* w, const float* b, int ty, int tx) {
#pragma unroll 2
  for (int c = 0; c < Tile::cols; c += 4) {
    float4 x[Tile::RM];
#pragma unroll
    for (int i = 0; i < Tile::RM; i++) x[i] = *reinterpret_cast<const float4*>(w + (ty + Tile::TY * i) * Tile::lds + c);
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int v = 0; v < Tile::NV; v++) {
        const auto y = *reinterpret_cast<const Pack<float, Tile::width>*>(b + (c + k) * Tile::ld + (tx + Tile::TX * v) * Tile::width);
#pragma unroll
        for (int i = 0; i < Tile::RM; i++)
#pragma unroll
          for (int e = 0; e < Tile::width; e++)
            acc[i][v][e] = fmaf(k == 0 ? x[i].x : k == 1 ? x[i].y : k == 2 ? x[i].z : x[i].w, y.v[e], acc[i][v][e]);
      }
  }
}

// Writes row i of acc times factor[i] where ty + TY i < rows.
template <class Tile>
__device__ __forceinline__ void storeFloatRows(const float (&acc)[Tile::RM][Tile::NV][Tile::width], const float (&factor)[Tile::RM],
                                               Storage storage, const AnyView& x, int b, int l, int h, int rows, int dim, int ty, int tx) {
  withFloat(storage.dtype, [&](auto type) {
    using T = decltype(type);
    T* to = rowsOf<T>(x, b, l, h);
#pragma unroll
    for (int i = 0; i < Tile::RM; i++) {
      const int r = ty + Tile::TY * i;
      if (r >= rows) continue;
#pragma unroll
      for (int v = 0; v < Tile::NV; v++) {
        const int j = (tx + Tile::TX * v) * Tile::width;
        float y[Tile::width];
#pragma unroll
        for (int e = 0; e < Tile::width; e++) y[e] = acc[i][v][e] * factor[i];
        if (storage.vectors && j + Tile::width <= dim) storeFloats<Tile::width>(to + r * x.row + j, y);
        else {
#pragma unroll
          for (int e = 0; e < Tile::width; e++)
            if (j + e < dim) to[r * x.row + j + e] = fromFloat<T>(y[e]);
        }
      }
    }
  });
}

// Sum or maximum over the lanes of a row of scores.
template <class Tile, class Op>
__device__ __forceinline__ float rowReduce(float v, Op op) {
#pragma unroll
  for (int offset = Tile::TX / 2; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

}  // namespace mm::cuda
