#pragma once
#include <vector>

#include "abi/backend.h"

namespace mm::cuda {

// The entries of all files in cuda/kernels.inc, in that order.
std::vector<MMKernelEntry> allKernels();

}  // namespace mm::cuda
