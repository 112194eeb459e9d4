// cuBLASLt, loaded by name when first needed, so that the library itself loads anywhere.
#pragma once
#include <string>

#include "cuda/cublas_lt.h"

namespace mm::cuda {

struct Cublas {
#define MM_CUBLAS_FUNCTION(name) decltype(&::name) name = nullptr;
#include "cuda/cublas.inc"
#undef MM_CUBLAS_FUNCTION
};

// Null with a reason where the library cannot be loaded. Searched: MMMAMBA_CUBLASLT_PATH (a file), the loader's own places,
// /usr/local/cuda.
const Cublas* cublas(std::string& reason);

}  // namespace mm::cuda
