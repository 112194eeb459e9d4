// The state of a walk over a segment, in the registers of its warps: read, written, advanced by a chunk.
#pragma once
#include "cuda/chunk_scan_mma_tiles.cuh"

namespace mm::cuda::chunk_scan {

// Element (p, n) of a state of the call.
__device__ __forceinline__ int64_t stateOffset(const Scan& s, int n, int p) {
  return s.byValue ? int64_t(p) * s.n + n : int64_t(n) * s.p + p;
}

// The state of a warp, NT / 8 accumulator tiles of 16 value channels from `p` x 8 key channels.
template <int NT>
__device__ __forceinline__ void readState(float (&state)[NT / 8][4], const Scan& s, const float* from, int p, int pEnd) {
  const int row = p + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int v = row + i / 2 * 8, n = 8 * j + col + i % 2;
      state[j][i] = v < pEnd && n < s.n ? from[stateOffset(s, n, v)] : 0.f;
    }
}
template <int NT>
__device__ __forceinline__ void writeState(const float (&state)[NT / 8][4], const Scan& s, float* to, int p, int pEnd) {
  const int row = p + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int v = row + i / 2 * 8, n = 8 * j + col + i % 2;
      if (v < pEnd && n < s.n) to[stateOffset(s, n, v)] = state[j][i];
    }
}
// The same for a state (PT, NT) of the workspace; row0: the warp's first row
template <int NT>
__device__ __forceinline__ float2* tiledPair(float* states, int row0, int j, int half) {
  const int lane = threadIdx.x % 32;
  return reinterpret_cast<float2*>(states + (row0 + lane / 4 + 8 * half) * NT + 8 * j + lane % 4 * 2);
}
template <int NT>
__device__ __forceinline__ void readTiled(float (&state)[NT / 8][4], float* from, int row0) {
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float2 v = *tiledPair<NT>(from, row0, j, half);
      state[j][2 * half] = v.x, state[j][2 * half + 1] = v.y;
    }
}
template <int NT>
__device__ __forceinline__ void writeTiled(const float (&state)[NT / 8][4], float* to, int row0) {
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) *tiledPair<NT>(to, row0, j, half) = {state[j][2 * half], state[j][2 * half + 1]};
}
// In the dtype of the operands, 16 bytes a lane.
template <int NT, class T>
__device__ __forceinline__ void writeRounded(const float (&state)[NT / 8][4], T* to, int row0) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int j = 0; j < NT / 8; j += 4) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = pack2<T>(state[j + i][2 * half], state[j + i][2 * half + 1]);
      transposeQuad(r);
      *reinterpret_cast<uint4*>(to + (row0 + lane / 4 + 8 * half) * NT + (j + lane % 4) * 8) = make_uint4(r[0], r[1], r[2], r[3]);
    }
}

// The 64 steps' fragments of v for the 16 value channels from row0.
template <int PT>
__device__ __forceinline__ void loadValues(uint32_t (&x)[kChunk / 16][4], uint32_t values, int row0) {
#pragma unroll
  for (int k = 0; k < kChunk / 16; k++) loadA<PT / 8, true>(x[k], values, row0, 16 * k);
}
// state = exp(c_T) state + sum over the steps of scale(s) v_s k_s^T, from the fragments of v; by channel v is taken as it is. decay: what
// loadDecayAsync brought.
template <class T, int NT, Decay KIND, class Scale>
__device__ __forceinline__ void advanceState(float (&state)[NT / 8][4], const float* decay, const uint32_t (&x)[kChunk / 16][4],
                                             uint32_t keys, Scale&& scale) {
  const int t = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) state[j][i] *= decay[KIND == Decay::Head ? UP * kChunk + kChunk - 1 : 8 * j + t + i % 2];
#pragma unroll
  for (int k = 0; k < kChunk / 16; k++) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (KIND == Decay::Channel) {
        a[i] = x[k][i];
        continue;
      }
      const int step = 16 * k + t + i / 2 * 8;
      const float2 v = unpack2<T>(x[k][i]);
      a[i] = pack2<T>(v.x * scale(step), v.y * scale(step + 1));
    }
#pragma unroll
    for (int j = 0; j < NT / 8; j += 2) {
      uint32_t b[2][2];
      loadB<NT / 8, true>(b, keys, 16 * k, 8 * j);
      mma16816<T>(state[j], a, b[0]);
      mma16816<T>(state[j + 1], a, b[1]);
    }
  }
}

}  // namespace mm::cuda::chunk_scan
