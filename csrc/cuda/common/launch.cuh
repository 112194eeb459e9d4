// The ways kernels are started.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>

#include "cuda/device.h"

namespace mm::cuda {

// MMMAMBA_CUDA_SYNC=1 waits behind every launch, so that a failing kernel is named where it failed.
inline bool launchesWait() {
  static const bool wait = [] {
    const char* text = std::getenv("MMMAMBA_CUDA_SYNC");
    return text && *text && *text != '0';
  }();
  return wait;
}

inline int32_t launched(const MMCall* c) {
  const Stream& s = *static_cast<const Stream*>(c->stream);
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && launchesWait() && !s.capturing) status = cudaStreamSynchronize(s.handle);
  return checked(s, status, c->error, c->error_size);
}

// Puts kernel(args...) on the call's stream, with launch attributes. An empty grid is nothing to do. `shared`: bytes of dynamic shared
// memory.
template <class... P, class... A>
int32_t launchWith(const MMCall* c, cudaLaunchAttribute* attributes, unsigned count, void (*kernel)(P...), dim3 grid, dim3 block,
                   size_t shared, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return MM_OK;
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  cudaError_t status = cudaSuccess;
  if (shared > 48 * 1024)
    status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = s.handle;
  config.attrs = attributes, config.numAttrs = count;
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
  return status == cudaSuccess ? launched(c) : checked(s, status, c->error, c->error_size);
}
//   return launch(c, rmsNormKernel<T>, dim3(rows), dim3(256), 0, x, y, n);
template <class... P, class... A>
int32_t launch(const MMCall* c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  return launchWith(c, nullptr, 0, kernel, grid, block, shared, args...);
}

// Kernels that overlap with their neighbours on the stream (programmatic dependent launch, from capability 9.0 on): the blocks may
// start while the kernel before still ends, which hides the launch and all that a kernel does before it needs memory. Every thread
// calls awaitEarlierKernels() before it touches device memory; it then sees all that earlier kernels wrote, and lets the kernel
// behind it start in turn.
__device__ __forceinline__ void awaitEarlierKernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for the 128 bytes around an address to come into the L2 cache. That may be before awaitEarlierKernels(), for memory that the
// kernel will read: all kernels meet in this cache, so that what earlier ones still write is there when it is read.
__device__ __forceinline__ void prefetchLine(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Whether kernels run as code that knows how to wait: the device's own capability is not enough, as older code may serve it.
template <int = 0>
__global__ void overlapProbeKernel() {}
inline bool overlaps(const Device& device) {
  constexpr int kDevices = 64;
  static std::atomic<int8_t> known[kDevices];  // 0: not asked yet
  if (device.index >= kDevices) return false;
  std::atomic<int8_t>& answer = known[device.index];
  if (answer == 0) {
    cudaFuncAttributes about{};
    const cudaError_t status = cudaFuncGetAttributes(&about, overlapProbeKernel<0>);
    if (status != cudaSuccess) cudaGetLastError();
    answer = status == cudaSuccess && device.capability() >= 90 && about.ptxVersion >= 90 ? 1 : -1;
  }
  return answer > 0;
}

// launch() for such a kernel.
template <class... P, class... A>
int32_t launchOverlapping(const MMCall* c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  return launchWith(c, &overlap, overlaps(*s.device) ? 1 : 0, kernel, grid, block, shared, args...);
}

inline cudaStream_t streamOf(const MMCall* c) { return static_cast<const Stream*>(c->stream)->handle; }

}  // namespace mm::cuda
