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
// A gate z costs the outputs before it anew, by the forward pass (dz = dy y silu'(z)), and one kernel over the values.
//
// On an H100 at L = 103424, ms (mma.sync): ssd H = 16, P = 128, G = 16 2.56 (5.48), G = 8 2.19 (4.78), H = 80, P = 64, G = 1 4.82 (13.0);
// linearAttention 2.32 (4.95), simpleGla 2.52 (5.12); ssd with z, L = 65536 2.73 (5.84). Walks (0.96 ms of the 2.56; 1.58 of the 4.82,
// gradients 2.98) and, without decay, gradients are bound by memory; with it the gradients are bound by the latency of the arithmetic on
// the triangles, of which two warps on a scheduler hide little. On the way: addresses and descriptors made anew where they are needed, not
// kept in spilled registers, simpleGla 2.95 to 2.86; the decays' gradients of the steps through shared memory, as neighbours in the tensor
// are heads; walks that keep pace, G = 16 2.82 to 2.69, G = 8 2.53 to 2.29, H = 80 5.89 to 5.08; one code for both warpgroups of the
// gradients, 2.69 to 2.60; sums over columns once for a triangle, not every 16 columns, H = 80 5.02 to 4.80. No gain: products of the
// shared triangle before the sums of the own one (4.99, more spills), <S, dS> behind the products with S (4.83), decays of the own
// triangle loaded ahead (5.07, more spills), R stored once for a triangle (4.95); without the branch that leaves out what lies beyond the
// diagonal, or with products of the next stage begun early, the compiler runs out of registers and serialises the products. Normalisation
// stays with chunk_scan_mma.cuh.
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
  float log2Scale = 0.f;                         // of q k^T
  const float* scalars = nullptr;                // (chunks of all, heads, kScalars, 128); null: no decay
  const float* skip = nullptr;                   // D as (heads, P); null: none
  void *states = nullptr, *gradients = nullptr;  // (chunks of all, virtual heads, 128, 64) before and behind every chunk
  int32_t* begun = nullptr;                      // (sequences, groups, directions, chunks): walks that have; null: none keeps pace
  float* sums = nullptr;                         // (chunks of all, virtual heads, kGradientKinds, 128)
  float* through = nullptr;                      // (chunks of all, virtual heads, kThroughParts)
  // The gradient kernel's stages, a virtual head of a chunk each, in the order (chunk, group, head of the group); a block takes
  // `perBlock` of them one after the other. parts (blocks, 2, 2, 128, 128): dq and dk of a group that a block ends (starts) within
  int64_t stages = 0, perBlock = 1;
  float* parts = nullptr;

  __host__ __device__ int virtualHeads(const Scan& s) const { return s.heads * slices; }
  // walks that share keys, a block a virtual head, direction and half of the key channels; and of all
  __host__ __device__ int sharedWalks(const Scan& s) const { return share(s) * 2; }
  __host__ __device__ int64_t walks(const Scan& s) const { return int64_t(s.batch) * virtualHeads(s) * 4; }
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
