// rope: for every head of a token, y1 = x1 c1 - x2 s1 and y2 = x2 c2 + x1 s2 with the halves x1, x2 of a head and the row
// (c1, c2), (s1, s2) of the tables at the token's position; its transpose (the gradient) is x1 = y1 c1 + y2 s2, x2 = y2 c2 - y1 s1,
// the same with s1 and s2 exchanged and negated. q (B, H, L, D) and k (B, Hk, L, D) of any strides but dense channels are turned
// by one launch. A thread takes the same V channels of both halves of up to 4 heads of one token, neighbouring threads the other
// channels, then the other heads, which find the row of the tables in the first-level cache. Its loads do not wait for each other,
// but for the row, which waits for the position. Positions outside the tables give NaN.
//
// ropeTable: frequencies and angles in f32, operation by operation as the reference; powers, cos and sin in double, rounded once.
#pragma once
#include "cuda/common/rows.cuh"

namespace mm::cuda {

constexpr int kRopeHeads = 4, kRopeRows = 16;

template <class T>
struct RopeOperand {
  const T* x;
  T* y;
  int64_t xStride[3], yStride[3];  // batch, head, token
  int heads;                       // 0: absent
};

struct RopeShape {
  int64_t tokens;          // B * L
  int length, half, rows;  // L, D / 2, rows of the tables
  int groupsOfQ, groups;   // of heads: of q, of both
  bool sharedIds;          // positionIds (1, L), else (B, L)
  float sign;              // of the sines
  bool exchanged;          // s1 and s2
};

// Threads: channels fastest, then groups of H heads of q and of k, then tokens.
template <class T, int V, int H>
__global__ void __launch_bounds__(128) ropeKernel(const RopeOperand<T> q, const RopeOperand<T> k, const RopeShape shape,
    const float* __restrict__ cos, const float* __restrict__ sin, const int32_t* __restrict__ ids) {
  static_assert(V == 1 || V == kVector<T>, "elements or vectors");
  const int vectors = shape.half / V;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, unit = quotient(i, vectors), token = quotient(unit, shape.groups);
  if (token >= shape.tokens) return;
  const int64_t b = quotient(token, shape.length), l = token - b * shape.length;
  const int position = ids[shape.sharedIds ? l : token];
  const int j = int(i - unit * vectors) * V, group = int(unit - token * shape.groups);
  const bool isQ = group < shape.groupsOfQ;
  const int first = (isQ ? group : group - shape.groupsOfQ) * H, heads = min((isQ ? q.heads : k.heads) - first, H);
  const auto offset = [&](const int64_t(&stride)[3]) { return b * stride[0] + first * stride[1] + l * stride[2] + j; };
  const T* x = isQ ? q.x + offset(q.xStride) : k.x + offset(k.xStride);
  T* y = isQ ? q.y + offset(q.yStride) : k.y + offset(k.yStride);
  const int64_t xNext = isQ ? q.xStride[1] : k.xStride[1], yNext = isQ ? q.yStride[1] : k.yStride[1];
  std::conditional_t<V == 1, T, Words<T>> halves[H][2] = {};
#pragma unroll
  for (int h = 0; h < H; h++)
    if (h < heads)
#pragma unroll
      for (int part = 0; part < 2; part++) {
        const T* from = x + h * xNext + part * shape.half;
        if constexpr (V == 1) halves[h][part] = *from;
        else halves[h][part] = loadWords(from);
      }
  float c1[V], c2[V], s1[V], s2[V];
  if (position >= 0 && position < shape.rows) {
    const int64_t row = int64_t(position) * 2 * shape.half + j;
    loadFloats<V>(cos + row, c1);
    loadFloats<V>(cos + row + shape.half, c2);
    loadFloats<V>(sin + row + (shape.exchanged ? shape.half : 0), s1);
    loadFloats<V>(sin + row + (shape.exchanged ? 0 : shape.half), s2);
  } else {
#pragma unroll
    for (int e = 0; e < V; e++) c1[e] = c2[e] = s1[e] = s2[e] = NAN;
  }
#pragma unroll
  for (int e = 0; e < V; e++) s1[e] *= -shape.sign, s2[e] *= shape.sign;
#pragma unroll
  for (int h = 0; h < H; h++)
    if (h < heads) {
      float x1[V], x2[V], y1[V], y2[V];
      if constexpr (V == 1) {
        x1[0] = toFloat(halves[h][0]), x2[0] = toFloat(halves[h][1]);
      } else {
        unpack(halves[h][0], x1);
        unpack(halves[h][1], x2);
      }
#pragma unroll
      for (int e = 0; e < V; e++) {
        y1[e] = fmaf(x2[e], s1[e], x1[e] * c1[e]);
        y2[e] = fmaf(x1[e], s2[e], x2[e] * c2[e]);
      }
      if constexpr (V == 1) {
        y[h * yNext] = fromFloat<T>(y1[0]);
        y[h * yNext + shape.half] = fromFloat<T>(y2[0]);
      } else {
        storeVector(y + h * yNext, y1);
        storeVector(y + h * yNext + shape.half, y2);
      }
    }
}

// A thread fills kRopeRows rows of a column of both halves.
__global__ void __launch_bounds__(128) ropeTableKernel(float* __restrict__ cos, float* __restrict__ sin, int64_t rows, int half, float base,
    float factor, bool linear) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, first = at / half * kRopeRows;
  const int i = int(at % half), dim = 2 * half;
  if (first >= rows) return;
  const float frequency = 1.f / float(pow(double(base), double(float(2 * i) / float(dim))));
  for (int64_t t = first; t < first + kRopeRows && t < rows; t++) {
    const float position = linear ? float(t) / factor : float(t), angle = position * frequency;
    double s, c;
    sincos(double(angle), &s, &c);
    cos[t * dim + i] = cos[t * dim + half + i] = float(c);
    sin[t * dim + i] = sin[t * dim + half + i] = float(s);
  }
}

}  // namespace mm::cuda
