// gla on Hopper, as the front end of the op sees it.
#pragma once
#include "cuda/chunk_scan.cuh"

namespace mm::cuda::gla {

bool fitsHopper(const MMCall* c, const chunk_scan::Problem& problem);
uint64_t hopperWorkspace(const MMCall* c, const chunk_scan::Problem& problem);
// False where copies cannot serve the addresses.
bool runHopper(const MMCall* c, const chunk_scan::Problem& problem, int32_t& status);

}  // namespace mm::cuda::gla
