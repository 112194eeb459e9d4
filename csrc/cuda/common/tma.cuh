// Bulk tensor copies from global to shared memory (sm_90) and the barriers in shared memory that they complete on.
//
// A barrier counts arrivals and announced bytes of a phase; phases alternate in parity, and waiting for parity x passes once the
// phase of that parity is over. The first phase has parity 0.
#pragma once
#include <cuda.h>

#include "cuda/common/mma.cuh"
#include "cuda/kernel.cuh"

namespace mm::cuda {

__device__ __forceinline__ void initBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Behind the initialisations, before the block's barrier.
__device__ __forceinline__ void fenceBarriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arriveExpecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives once the thread's copyAsync's so far are done.
__device__ __forceinline__ void arriveBehindCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void waitBarrier(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nmm_wait:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra mm_done;\nbra mm_wait;\n"
      "mm_done:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// One box of a map: 64 channels from `channel` on of rows from `row` on, of one head and batch entry, into a slab. Rows and
// channels outside the tensor become zeros.
__device__ __forceinline__ void copyBox(uint32_t slab, const CUtensorMap& map, uint32_t barrier, int channel, int row, int head,
                                        int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(slab),
      "l"(&map), "r"(barrier), "r"(channel), "r"(row), "r"(head), "r"(batch)
      : "memory");
}
// The other way; what lies outside the tensor is not written. Threads that wrote the box fence (fenceAsyncProxy) before the block's
// barrier; the thread that stores commits, and waits before it or the copies may write there again.
__device__ __forceinline__ void storeBox(const CUtensorMap& map, uint32_t slab, int channel, int row, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map), "r"(slab),
               "r"(channel), "r"(row), "r"(head), "r"(batch)
               : "memory");
}
__device__ __forceinline__ void commitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void waitStoresRead() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// All slabs of a tile.
template <class Tile>
__device__ __forceinline__ void copyTile(uint32_t tile, const CUtensorMap& map, uint32_t barrier, int row, int head, int batch) {
#pragma unroll
  for (int i = 0; i < Tile::slabs; i++) copyBox(tile + i * Tile::slabBytes, map, barrier, i * 64, row, head, batch);
}
// Plain bytes, 16-byte aligned, a multiple of 16: to shared memory, completing on a barrier.
__device__ __forceinline__ void copyBulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier)
               : "memory");
}
// The same from shared memory, written there by this proxy's fence and a barrier; floats are added to what lies there or replace it.
// The thread commits such copies (commitStores) and waits until shared memory has been read (waitStoresRead) or until all is done.
__device__ __forceinline__ void storeBulk(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void addBulk(float* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void waitBulk() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ void prefetchMap(const CUtensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// The driver's encoder, or null: the runtime finds it, so that the library needs no libcuda to load.
using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);
inline TensorMapEncoder tensorMapEncoder() {
  static const TensorMapEncoder encoder = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<TensorMapEncoder>(f) : nullptr;
  }();
  return encoder;
}

// Map of a tensor of four axes, the first dense, `strides` in bytes those of the others. False where copies cannot serve it.
inline bool encodeBoxes(CUtensorMap& map, const void* data, CUtensorMapDataType type, const cuuint64_t (&shape)[4],
                        const cuuint64_t (&strides)[3], const cuuint32_t (&box)[4], CUtensorMapSwizzle swizzle) {
  const TensorMapEncoder encode = tensorMapEncoder();
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  for (const cuuint64_t axis : shape)
    if (!axis) return false;
  return encode && encode(&map, type, 4, const_cast<void*>(data), shape, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Map of a (B, L, H, D) operand of 16-bit elements for boxes of `rows` rows of a head. False where copies cannot serve it: empty,
// strides or address not multiples of 16 bytes, or no driver that knows maps.
inline bool encodeHeads(CUtensorMap& map, const MMTensorView& v, int rows) {
  const TensorMapEncoder encode = tensorMapEncoder();
  if (!encode || numel(v) == 0 || v.stride[3] != 1) return false;
  const cuuint64_t shape[4] = {cuuint64_t(v.shape[3]), cuuint64_t(v.shape[1]), cuuint64_t(v.shape[2]), cuuint64_t(v.shape[0])};
  cuuint64_t strides[3];
  const int axes[3] = {1, 2, 0};
  for (int i = 0; i < 3; i++) {
    const int64_t bytes = v.shape[axes[i]] > 1 ? v.stride[axes[i]] * 2 : 16;  // an axis of one element is never stepped along
    if (bytes <= 0 || bytes % 16) return false;
    strides[i] = cuuint64_t(bytes);
  }
  const cuuint32_t box[4] = {64, cuuint32_t(rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  return encode(&map, v.dtype == MM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, v.data, shape, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace mm::cuda
