// A captured piece of work and the blocks that it used.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <vector>

namespace mm::cuda {

struct Graph {
  cudaGraphExec_t executable = nullptr;
  std::map<uint64_t, std::vector<void*>> free;  // blocks that nothing but the graph holds, by size
};

}  // namespace mm::cuda
