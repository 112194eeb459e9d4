// Which lanes of a warp arrive at an mbarrier when the warp is done with tiles that plain loads or stores touch: one, behind
// __syncwarp(). compute-sanitizer's racecheck does not follow that: it reports the smallest correct ring of two tiles with one lane's
// arrivals, and not the same ring with those of all lanes. So scripts/sanitize.mjs has all lanes arrive, by MMMAMBA_CUDA_RACECHECK=1,
// in the kernels that would be reported. (No slower: H100, ms, one lane and all: ssd L = 32768 0.247 and 0.247, attention's backward
// L = 8192 1.330 and 1.328.)
#pragma once
#include <cstdlib>
#include <cstring>
#include "cuda/common/tma.cuh"

namespace mm::cuda {

inline int arrivingLanes() {
  static const int lanes = [] {
    const char* text = std::getenv("MMMAMBA_CUDA_RACECHECK");
    return text && std::strcmp(text, "1") == 0 ? 32 : 1;
  }();
  return lanes;
}

// Every lane calls it; barriers are initialised with `lanes` arrivals a warp.
__device__ __forceinline__ void arriveForWarp(uint32_t barrier, int lanes) {
  __syncwarp();
  if (int(threadIdx.x % 32) < lanes) arrive(barrier);
}

}  // namespace mm::cuda
