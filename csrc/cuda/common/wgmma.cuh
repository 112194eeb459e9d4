// Hopper's warpgroup products, wgmma m64nNk16 (sm_90a), and the tiles in shared memory that they read.
//
// d (64 x N, f32, in registers) += a (64 x 16) b (16 x N); b lies in shared memory, a there or in registers. Fragments: warp w of
// the four holds rows [16 w, 16 w + 16), g = lane / 4, t = lane % 4:
//   d[4 j + 0], d[4 j + 1] = (g, 8 j + 2 t), (g, 8 j + 2 t + 1); d[4 j + 2], d[4 j + 3] = the same of row g + 8
//   a in registers: as the A fragment of mma.sync m16n8k16 (common/mma.cuh), so d packs into the a of a next product
//
// A tile is ROWS rows of D channels, D a multiple of 64: slabs of 64 channels behind each other, a slab ROWS rows of 128 bytes
// with the 16-byte pieces of row r exchanged by r % 8 (the 128-byte swizzle of wgmma and of bulk tensor copies). Tiles start at
// multiples of 1024 bytes. Either axis of a tile may be the one that is summed over: channels ("k-major") or rows ("mn-major").
//
// A product is issued by all four warps and runs behind their back: fence, issue, commit, wait. Registers that it reads or
// writes are not to be touched before the wait; settle() ties what is read later to that place.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/mma.cuh"

namespace mm::cuda {

// Orders accesses to registers before it and products behind it.
__device__ __forceinline__ void fenceProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N of the committed groups are under way.
template <int N>
__device__ __forceinline__ void waitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The compiler may not move accesses to these registers across this place.
template <class V, int N>
__device__ __forceinline__ void settle(V (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    if constexpr (std::is_same_v<V, float>) asm volatile("" : "+f"(d[i])::"memory");
    else asm volatile("" : "+r"(d[i])::"memory");
  }
}
// The assembler moves arithmetic behind a wait for products that does not need it, where nothing runs meanwhile. A branch in between,
// never taken for a reason that it does not know, keeps the arithmetic before the wait.
__device__ __forceinline__ void holdBeforeWait(bool never) {
  if (never) asm volatile("nanosleep.u32 0;" ::: "memory");
}
// Shared memory written by ordinary stores becomes visible to products and bulk copies behind a barrier.
__device__ __forceinline__ void fenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A barrier of so many threads, the arriving ones among them; 0 is __syncthreads().
__device__ __forceinline__ void syncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arriveThreads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void syncWarpgroup(int barrier) { syncThreads(barrier, 128); }

// Registers of a thread, for all warps of a warpgroup; the kernel needs __launch_bounds__(threads, 1).
template <int N>
__device__ __forceinline__ void raiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void lowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Built for another architecture than sm_90a, a kernel is empty; its registers tell.
template <class K>
bool builtForHopper(K kernel) {
  cudaFuncAttributes a{};
  const bool known = cudaFuncGetAttributes(&a, kernel) == cudaSuccess;
  if (!known) cudaGetLastError();  // what was asked and refused is no error of a later launch
  return known && a.binaryVersion == 90 && a.numRegs > 64;
}

// ---- tiles
template <int ROWS, int D>
struct SlabTile {
  static_assert(D % 64 == 0 && ROWS % 8 == 0, "whole slabs of whole groups of eight rows");
  static constexpr int rows = ROWS, dim = D, slabs = D / 64, slabBytes = ROWS * 128, bytes = slabs * slabBytes;
  // Byte offset of the 16-byte piece `piece` (eight channels) of a row.
  __host__ __device__ static constexpr uint32_t offset(int row, int piece) {
    return uint32_t(piece / 8 * slabBytes + row * 128 + ((piece % 8) ^ (row & 7)) * 16);
  }
  // Byte offset of the first of 16 channels (k-major: 16 k = k-th step) or of 16 rows (mn-major) for descriptors below.
  __host__ __device__ static constexpr uint32_t channels(int k) { return uint32_t(k / 4 * slabBytes + k % 4 * 32); }
  __host__ __device__ static constexpr uint32_t rowOffset(int row) { return uint32_t(row * 128); }
};

// Descriptor of an operand in a tile with 128-byte swizzle (PTX ISA, "Matrix Descriptor Format"): address, leading and stride
// offset in units of 16 bytes. Groups of eight rows lie 1024 bytes apart (stride); mn-major, groups of 64 channels lie a slab
// apart (leading, which k-major ignores).
__device__ __forceinline__ uint64_t tileDescriptor(uint32_t address, uint32_t leading = 16) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
// A descriptor `bytes` further on.
__device__ __forceinline__ uint64_t shifted(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// ---- products
#define MM_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MM_D16(i) MM_D4(i), MM_D4(i + 4), MM_D4(i + 8), MM_D4(i + 12)
#define MM_D32(i) MM_D16(i), MM_D16(i + 16)
#define MM_N0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define MM_N1 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MM_N2 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define MM_N3 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// A from shared memory: operands behind the N / 2 of d are descA, descB, accumulate, transA, transB.
#define MM_WGMMA_SS(type, n, regs, list, opA, opB, on, tA, tB)                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " on ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type    \
               " {" regs "}, " opA ", " opB ", p, 1, 1, " tA ", " tB ";\n}"                                                 \
               : list                                                                                                       \
               : "l"(descA), "l"(descB), "r"(int(accumulate)), "n"(int(TRANS_A)), "n"(int(TRANS_B))                         \
               : "memory")
// A from registers.
#define MM_WGMMA_RS(type, n, regs, list, opA, opB, on, tB)                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " on ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type    \
               " {" regs "}, {" opA "}, " opB ", p, 1, 1, " tB ";\n}"                                                       \
               : list                                                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descB), "r"(int(accumulate)), "n"(int(TRANS_B))            \
               : "memory")

// d = a b or, with `accumulate`, d += a b. N is 2 / registers of d: 32, 64 or 128. TRANS_A, TRANS_B: that operand is mn-major.
template <class T, bool TRANS_A, bool TRANS_B, int R>
__device__ __forceinline__ void multiply(float (&d)[R], uint64_t descA, uint64_t descB, bool accumulate) {
  static_assert(R == 16 || R == 32 || R == 64, "columns");
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (R == 16) {
    if constexpr (kBf16) MM_WGMMA_SS("bf16", "32", MM_N0, MM_D16(0), "%16", "%17", "%18", "%19", "%20");
    else MM_WGMMA_SS("f16", "32", MM_N0, MM_D16(0), "%16", "%17", "%18", "%19", "%20");
  } else if constexpr (R == 32) {
    if constexpr (kBf16) MM_WGMMA_SS("bf16", "64", MM_N0 "," MM_N1, MM_D32(0), "%32", "%33", "%34", "%35", "%36");
    else MM_WGMMA_SS("f16", "64", MM_N0 "," MM_N1, MM_D32(0), "%32", "%33", "%34", "%35", "%36");
  } else {
#define MM_D64 MM_D32(0), MM_D32(32)
    if constexpr (kBf16) MM_WGMMA_SS("bf16", "128", MM_N0 "," MM_N1 "," MM_N2 "," MM_N3, MM_D64, "%64", "%65", "%66", "%67", "%68");
    else MM_WGMMA_SS("f16", "128", MM_N0 "," MM_N1 "," MM_N2 "," MM_N3, MM_D64, "%64", "%65", "%66", "%67", "%68");
  }
}
template <class T, bool TRANS_B, int R>
__device__ __forceinline__ void multiply(float (&d)[R], const uint32_t (&a)[4], uint64_t descB, bool accumulate) {
  static_assert(R == 16 || R == 32 || R == 64, "columns");
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (R == 16) {
    if constexpr (kBf16) MM_WGMMA_RS("bf16", "32", MM_N0, MM_D16(0), "%16,%17,%18,%19", "%20", "%21", "%22");
    else MM_WGMMA_RS("f16", "32", MM_N0, MM_D16(0), "%16,%17,%18,%19", "%20", "%21", "%22");
  } else if constexpr (R == 32) {
    if constexpr (kBf16) MM_WGMMA_RS("bf16", "64", MM_N0 "," MM_N1, MM_D32(0), "%32,%33,%34,%35", "%36", "%37", "%38");
    else MM_WGMMA_RS("f16", "64", MM_N0 "," MM_N1, MM_D32(0), "%32,%33,%34,%35", "%36", "%37", "%38");
  } else {
    if constexpr (kBf16) MM_WGMMA_RS("bf16", "128", MM_N0 "," MM_N1 "," MM_N2 "," MM_N3, MM_D64, "%64,%65,%66,%67", "%68", "%69", "%70");
    else MM_WGMMA_RS("f16", "128", MM_N0 "," MM_N1 "," MM_N2 "," MM_N3, MM_D64, "%64,%65,%66,%67", "%68", "%69", "%70");
  }
}
// d = a b for 64 columns, both operands in shared memory. multiply() without `accumulate` still takes d as read, which keeps its
// registers from other use since d was last read; here they are free until the product is issued.
#define MM_O4(i) "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3])
#define MM_O16(i) MM_O4(i), MM_O4(i + 4), MM_O4(i + 8), MM_O4(i + 12)
#define MM_WGMMA_NEW(type)                                                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type           \
               " {" MM_N0 "," MM_N1 "}, %32, %33, p, 1, 1, %34, %35;\n}"                                                    \
               : MM_O16(0), MM_O16(16)                                                                                      \
               : "l"(descA), "l"(descB), "n"(int(TRANS_A)), "n"(int(TRANS_B))                                               \
               : "memory")
template <class T, bool TRANS_A, bool TRANS_B>
__device__ __forceinline__ void multiplyNew(float (&d)[32], uint64_t descA, uint64_t descB) {
  if constexpr (std::is_same_v<T, bf16>) MM_WGMMA_NEW("bf16");
  else MM_WGMMA_NEW("f16");
}
#undef MM_WGMMA_NEW
#undef MM_O16
#undef MM_O4
#undef MM_D64
#undef MM_WGMMA_SS
#undef MM_WGMMA_RS
#undef MM_D4
#undef MM_D16
#undef MM_D32
#undef MM_N0
#undef MM_N1
#undef MM_N2
#undef MM_N3

// The a of the k-th step (16 columns of d) of a next product.
template <class T, int R>
__device__ __forceinline__ void packStep(uint32_t (&a)[4], const float (&d)[R], int k) {
  a[0] = pack2<T>(d[8 * k + 0], d[8 * k + 1]);
  a[1] = pack2<T>(d[8 * k + 2], d[8 * k + 3]);
  a[2] = pack2<T>(d[8 * k + 4], d[8 * k + 5]);
  a[3] = pack2<T>(d[8 * k + 6], d[8 * k + 7]);
}

}  // namespace mm::cuda
