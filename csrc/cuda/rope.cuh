// rope: for every head of a token, y1 = x1 c1 - x2 s1 and y2 = x2 c2 + x1 s2 with the halves x1, x2 of a head and the row
// (c1, c2), (s1, s2) of the tables at the token's position; its transpose (the gradient) is x1 = y1 c1 + y2 s2, x2 = y2 c2 - y1 s1,
// the same with s1 and s2 exchanged and negated. q (B, H, L, D) and k (B, Hk, L, D) of any strides but dense channels are turned
// by one launch. A thread takes the same V channels of both halves of up to 8 heads of one token: a row of the tables is read
// once for 8 heads, and 16 loads of up to 16 bytes are under way. Positions outside the tables give NaN.
//
// ropeTable: frequencies and angles in f32, operation by operation as the reference; powers, cos and sin in double, rounded once.
#pragma once
#include "cuda/kernel.cuh"

namespace mm::cuda {

constexpr int kRopeHeads = 8, kRopeRows = 16;

template <class T>
struct RopeOperand {
  const T* x;
  T* y;
  int64_t xStride[3], yStride[3];  // batch, head, token
  int heads;                       // 0: absent
};

struct RopeShape {
  int64_t tokens;   // B * L
  int length, half, rows;  // L, D / 2, rows of the tables
  bool sharedIds;   // positionIds (1, L), else (B, L)
  float sign;       // of the sines
  bool exchanged;   // s1 and s2
};

template <int V, class T>
__device__ __forceinline__ void turnHeads(const RopeOperand<T>& o, const RopeShape& shape, int64_t b, int64_t l, int first, int j,
                                          bool known, const float (&c1)[V], const float (&c2)[V], const float (&s1)[V],
                                          const float (&s2)[V]) {
  float x1[kRopeHeads][V], x2[kRopeHeads][V];
  const T* x = o.x + b * o.xStride[0] + l * o.xStride[2] + j;
#pragma unroll
  for (int h = 0; h < kRopeHeads; h++)
    if (first + h < o.heads) {
      loadFloats<V>(x + (first + h) * o.xStride[1], x1[h]);
      loadFloats<V>(x + (first + h) * o.xStride[1] + shape.half, x2[h]);
    }
  T* y = o.y + b * o.yStride[0] + l * o.yStride[2] + j;
#pragma unroll
  for (int h = 0; h < kRopeHeads; h++)
    if (first + h < o.heads) {
      float y1[V], y2[V];
#pragma unroll
      for (int i = 0; i < V; i++) {
        y1[i] = known ? x1[h][i] * c1[i] - x2[h][i] * s1[i] : NAN;
        y2[i] = known ? x2[h][i] * c2[i] + x1[h][i] * s2[i] : NAN;
      }
      storeFloats<V>(y + (first + h) * o.yStride[1], y1);
      storeFloats<V>(y + (first + h) * o.yStride[1] + shape.half, y2);
    }
}

// Threads: channels fastest, then tokens, then groups of 8 heads of q, then of k.
template <class T, int V>
__global__ void __launch_bounds__(128) ropeKernel(RopeOperand<T> q, RopeOperand<T> k, RopeShape shape, const float* __restrict__ cos,
                                                  const float* __restrict__ sin, const int32_t* __restrict__ ids) {
  const int vectors = shape.half / V, group = int(blockIdx.y), groupsOfQ = (q.heads + kRopeHeads - 1) / kRopeHeads;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, token = i / vectors;
  if (token >= shape.tokens) return;
  const int j = int(i - token * vectors) * V;
  const int64_t b = token / shape.length, l = token - b * shape.length;
  const int position = ids[shape.sharedIds ? l : token];
  const bool known = position >= 0 && position < shape.rows;
  const int64_t row = known ? int64_t(position) * 2 * shape.half + j : 0;
  float c1[V] = {}, c2[V] = {}, s1[V] = {}, s2[V] = {};
  if (known) {
    loadFloats<V>(cos + row, c1);
    loadFloats<V>(cos + row + shape.half, c2);
    loadFloats<V>(sin + row + (shape.exchanged ? shape.half : 0), s1);
    loadFloats<V>(sin + row + (shape.exchanged ? 0 : shape.half), s2);
#pragma unroll
    for (int e = 0; e < V; e++) s1[e] *= shape.sign, s2[e] *= shape.sign;
  }
  if (group < groupsOfQ) turnHeads<V>(q, shape, b, l, group * kRopeHeads, j, known, c1, c2, s1, s2);
  else turnHeads<V>(k, shape, b, l, (group - groupsOfQ) * kRopeHeads, j, known, c1, c2, s1, s2);
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
