#include "cuda/table.h"

#include "cuda/kernel.cuh"

namespace mm::cuda {

#define MM_CUDA_FILE(file) extern const KernelList file##_kernels;
#include "cuda/kernels.inc"
#undef MM_CUDA_FILE

std::vector<MMKernelEntry> allKernels() {
  static const KernelList* const lists[] = {
#define MM_CUDA_FILE(file) &file##_kernels,
#include "cuda/kernels.inc"
#undef MM_CUDA_FILE
  };
  std::vector<MMKernelEntry> all;
  for (const KernelList* list : lists) all.insert(all.end(), list->entries, list->entries + list->count);
  return all;
}

}  // namespace mm::cuda
