// Tensor-core pieces for sm_80 and up: mma.sync m16n8k16 with f32 accumulators, ldmatrix, cp.async.
//
// Fragments of one warp, g = lane / 4, t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A 16x16 row-major, 4 registers of 2: a[0] = (g, 2t), a[1] = (g + 8, 2t), a[2] = (g, 2t + 8), a[3] = (g + 8, 2t + 8)
//   B 16x8 (k x n),    2 registers of 2: b[0] = (k = 2t, n = g), b[1] = (k = 2t + 8, n = g)
//   C 16x8,            4 floats:         c[0], c[1] = (g, 2t), (g, 2t + 1); c[2], c[3] = (g + 8, 2t), (g + 8, 2t + 1)
// The C fragment of one product is the A fragment of the next after packing pairs: a = {c[0..1], c[2..3]} of n-tile 2j and
// the same of 2j + 1.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/common/types.cuh"

namespace mm::cuda {

// c += a b; T is bf16 or f16.
template <class T>
__device__ __forceinline__ void mma16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t sharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8x8 matrices of 2-byte elements; lane i gives the address of row i % 8 of matrix i / 8 (16 bytes, aligned).
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix4Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

// The other way, sm_90: lane i gives the address of row i % 8 of matrix i / 8, a fragment's register j is of matrix j.
__device__ __forceinline__ void stmatrix4(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Copies 16 bytes from global to shared memory behind the caller's back; `valid` false writes zeros and reads nothing.
__device__ __forceinline__ void copyAsync16(uint32_t shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
// The same for 4 bytes.
__device__ __forceinline__ void copyAsync4(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commitAsync() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of the committed groups are under way.
template <int N>
__device__ __forceinline__ void waitAsync() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Two floats as one register of T, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}

// Byte offset of the 16-byte piece `piece` of row `row` in a tile of rows of `pieces` pieces (a power of two): pieces are
// exchanged by the row's number, so that eight rows of one column lie in different banks.
template <int pieces>
__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
  static_assert(pieces > 0 && (pieces & (pieces - 1)) == 0, "rows are powers of two");
  if constexpr (pieces >= 8) return uint32_t((row * pieces + (piece ^ (row & 7))) * 16);
  else return uint32_t((row * pieces + (piece ^ ((row / (8 / pieces)) & (pieces - 1)))) * 16);
}

}  // namespace mm::cuda
