// compute-sanitizer's initcheck does not see what bulk stores write. Where every block is an allocation of its own, as it has it
// (MMMAMBA_CUDA_CACHE=0, scripts/sanitize.mjs), what they are going to write is zeroed first. That every element is written, the op
// tests show on NaN-filled memory.
#pragma once
#include "cuda/device.h"
#include "cuda/kernel.cuh"
#include "cuda/memory.h"

namespace mm::cuda {

inline int32_t zeroForInitcheck(const MMCall* c, void* to, int64_t bytes) {
  if (caching() || !bytes) return MM_OK;
  const Stream& s = *static_cast<const Stream*>(c->stream);
  use(s);
  return checked(s, cudaMemsetAsync(to, 0, size_t(bytes), s.handle), c->error, c->error_size);
}
// A dense output.
inline int32_t zeroForInitcheck(const MMCall* c, const MMTensorView& x) {
  return zeroForInitcheck(c, x.data, numel(x) * (x.dtype == MM_F32 ? 4 : 2));
}

}  // namespace mm::cuda
