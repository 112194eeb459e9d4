// The gradients of the chunk engine (chunk_scan.cuh has the formulas) on Hopper: warpgroup products (wgmma), bulk copies, chunks of
// 128 steps, N = 128 key channels, value channels in slices of 64, each a virtual head, decay per head or none.
//
//   scalars   of every step of a (chunk, head), by a small kernel
//   states    chunk_scan_hopper_states.cuh: the walks over the chunks in both directions, which leave the state before and the
//             gradient behind every chunk in the dtype of the operands
//   gradients chunk_scan_hopper_backward_gradient.cuh: all else, chunks in parallel
//   sums      of parts, in a fixed order: dq and dk where blocks share a group, the decays' gradients, D's
//
// What moves: the walks read q, k, v and dO once and write 2 states of 128 N P bytes a chunk; the gradients read all that and write
// dq, dk and dv. With chunks of 128 steps a state is as large as the values of its chunk, half as much as in chunk_scan_mma.cuh, and
// the products within a chunk are still fewer than those with the states.
//
// On an H100 at L = 103424, ms (mma.sync): ssd H = 16, P = 128, G = 16 2.94 (5.48), G = 8 2.60 (4.88), H = 80, P = 64, G = 1 5.97 (12.8);
// linearAttention 2.49 (4.94), simpleGla 2.87 (5.10). The walks are bound by memory, and without decay so are the gradients; with it they
// are bound by the latency of the arithmetic on the triangles, of which two warps on a scheduler hide little. z and normalisation stay
// with chunk_scan_mma.cuh.
//
// A state lies in memory as the slab in shared memory that products read: 128 rows of 64 value channels, 128 bytes a row, pieces
// swizzled (common/wgmma.cuh), so that a plain bulk copy brings it.
#pragma once
#include "cuda/chunk_scan_mma_tiles.cuh"
#include "cuda/common/tma.cuh"
#include "cuda/common/wgmma.cuh"
#include "cuda/half_math.cuh"

namespace mm::cuda::chunk_scan::hopper {

constexpr int kSteps = 128, kKeys = 128, kValues = 64;  // of a chunk; N; of a virtual head
constexpr int kStateElements = kKeys * kValues;

// Scalars by step: c_t in base 2, w, exp(c_t), exp(c_T - c_t), and from and to the middle of the chunk: exp(|c_t - c_63|) below 1
enum { LOG2, WEIGHT, BEFORE, BEHIND, MIDDLE, kScalars };
constexpr int kScalarFloats = kScalars * kSteps, kScalarBytes = kScalarFloats * 4;
constexpr int kThroughParts = 8, kSkipParts = 8;  // warps that sum <S, dS>, and the gradient of a D by value channel

using KeyTile = SlabTile<kSteps, kKeys>;
using ValueTile = SlabTile<kSteps, kValues>;
using StateTile = SlabTile<kKeys, kValues>;
using SquareTile = SlabTile<64, 64>;

struct Task {
  int chunks = 0, slices = 0;                    // chunks of a sequence, virtual heads of a head
  const float* scalars = nullptr;                // (chunks of all, heads, kScalars, 128); null: no decay
  const float* skip = nullptr;                   // D as (heads, P); null: none
  void *states = nullptr, *gradients = nullptr;  // (chunks of all, virtual heads, 128, 64) before and behind every chunk
  float* sums = nullptr;                         // (chunks of all, virtual heads, kGradientKinds, 128)
  float* through = nullptr;                      // (chunks of all, virtual heads, kThroughParts)
  // The gradient kernel's stages, a virtual head of a chunk each, in the order (chunk, group, head of the group); a block takes
  // `perBlock` of them one after the other. parts (blocks, 2, 2, 128, 128): dq and dk of a group that a block ends (starts) within
  int64_t stages = 0, perBlock = 1;
  float* parts = nullptr;

  __host__ __device__ int virtualHeads(const Scan& s) const { return s.heads * slices; }
  __host__ __device__ int share(const Scan& s) const { return s.share() * slices; }  // virtual heads of a group
};

// Boxes of 64 channels and, for the states, of 64 steps, for the gradients of 128.
struct Maps {
  CUtensorMap q, k, v, dO;
};

int32_t launchStates(const MMCall* c, const Scan& s, const Gradient& g, const Task& task, const Maps& maps);
int32_t launchGradients(const MMCall* c, const Scan& s, const Gradient& g, const Task& task, const Maps& maps);
bool kernelsBuilt();

// ---- pieces of the kernels

// Both halves of an accumulator's 16 rows, times a factor, as 16-byte pieces of T: f(half, piece, words), a piece of every four a lane.
template <class T, int R, class F>
__device__ __forceinline__ void forPieces(const float (&d)[R], float factor, F&& f) {
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int j = 0; j < R / 4; j += 4) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = pack2<T>(d[4 * (j + i) + 2 * half] * factor, d[4 * (j + i) + 2 * half + 1] * factor);
      transposeQuad(r);
      f(half, j + int(threadIdx.x % 4), make_uint4(r[0], r[1], r[2], r[3]));
    }
}

}  // namespace mm::cuda::chunk_scan::hopper
