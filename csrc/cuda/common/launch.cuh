// The one way kernels are started.
#pragma once
#include <cuda_runtime.h>

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

// Puts kernel(args...) on the call's stream. An empty grid is nothing to do. `shared`: bytes of dynamic shared memory.
//   return launch(c, rmsNormKernel<T>, dim3(rows), dim3(256), 0, x, y, n);
template <class... P, class... A>
int32_t launch(const MMCall* c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return MM_OK;
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  if (shared > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (status != cudaSuccess) return checked(s, status, c->error, c->error_size);
  }
  kernel<<<grid, block, shared, s.handle>>>(static_cast<P>(args)...);
  return launched(c);
}

inline cudaStream_t streamOf(const MMCall* c) { return static_cast<const Stream*>(c->stream)->handle; }

}  // namespace mm::cuda
