// Clusters of thread blocks (sm_90): addresses, stores and barriers in the shared memories of other blocks of a cluster, and how
// kernels with clusters are started.
//
// A store to another block's memory announces its bytes to a barrier there (common/tma.cuh), as bulk copies do: the reader expects the
// bytes, waits for the barrier, and sees the stores. Blocks leave a cluster together, as memory of one that is gone is gone.
#pragma once
#include <cstdint>

#include "cuda/common/launch.cuh"

namespace mm::cuda {

__device__ __forceinline__ int rankInCluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
// The address of the same place in the shared memory of that block of the cluster.
__device__ __forceinline__ uint32_t inBlock(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// A barrier of all threads of the cluster; what they wrote before is seen behind it.
__device__ __forceinline__ void syncCluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// `barrier` is an address of inBlock(). For buffers in shared memory that have been read and may be written again; a release to the
// cluster would first wait until all stores to global memory are done.
__device__ __forceinline__ void arriveInBlock(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Stores to the block that address and barrier (of inBlock()) lie in, behind the caller's back.
__device__ __forceinline__ void storeInBlock(uint32_t address, float x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address), "f"(x), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void storeInBlock(uint32_t address, const uint32_t (&x)[4], uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(barrier)
               : "memory");
}

// A flag in global memory: what the warp wrote before is seen behind awaitFlag().
__device__ __forceinline__ void raiseFlag(int32_t* flag) {
  __threadfence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
}
__device__ __forceinline__ void awaitFlag(const int32_t* flag) {
  int32_t raised = 0;
  while (!raised) asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(raised) : "l"(flag) : "memory");
}

// Copies from this block's shared memory, in multiples of 16 bytes. What ordinary stores wrote needs fenceAsyncProxy() before; who reads
// it as operands of products there needs none.
__device__ __forceinline__ void copyToBlock(uint32_t address, uint32_t from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address), "r"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}

inline cudaLaunchAttribute clusterOf(int blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(blocks), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// Clusters of that many blocks that run at once; 0 where the device has none.
template <class... P>
int residentClusters(const MMCall* c, void (*kernel)(P...), int blocks, int threads, size_t shared) {
  use(*static_cast<const Stream*>(c->stream));
  const void* f = reinterpret_cast<const void*>(kernel);
  cudaLaunchAttribute attribute = clusterOf(blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads)), config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = 1;
  int count = 0;
  if (cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&count, f, &config) != cudaSuccess) {
    cudaGetLastError();  // what was asked and refused is no error of a later launch
    return 0;
  }
  return count;
}

// As launch(), in clusters of `blocks` blocks, which the grid is a multiple of.
template <class... P, class... A>
int32_t launchClusters(const MMCall* c, void (*kernel)(P...), int blocks, dim3 grid, dim3 block, size_t shared, A... args) {
  cudaLaunchAttribute attribute = clusterOf(blocks);
  return launchWith(c, &attribute, 1, kernel, grid, block, shared, args...);
}

}  // namespace mm::cuda
