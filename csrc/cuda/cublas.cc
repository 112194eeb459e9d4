#include "cuda/cublas.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdlib>
#include <vector>

namespace mm::cuda {

namespace {

struct Loaded {
  Cublas functions;
  bool complete = false;
  std::string reason;

  Loaded() {
    const std::string soname = "libcublasLt.so." + std::to_string(CUDART_VERSION / 1000);
    std::vector<std::string> paths;
    if (const char* path = std::getenv("MMMAMBA_CUBLASLT_PATH")) paths.push_back(path);
    else paths = {soname, "/usr/local/cuda/lib64/" + soname};
    void* library = nullptr;
    for (const std::string& path : paths) {
      library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library) break;
      reason += (reason.empty() ? "" : "; ") + std::string(dlerror());
    }
    if (!library) {
      reason = "cuBLASLt is missing (" + reason + "); install the CUDA " + std::to_string(CUDART_VERSION / 1000) +
               " libraries or set MMMAMBA_CUBLASLT_PATH to " + soname;
      return;
    }
#define MM_CUBLAS_FUNCTION(name)                                                  \
  functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(library, #name)); \
  if (!functions.name) {                                                          \
    reason = soname + " lacks " #name "; it is too old for this library";         \
    return;                                                                       \
  }
#include "cuda/cublas.inc"
#undef MM_CUBLAS_FUNCTION
    complete = true;
  }
};

}  // namespace

const Cublas* cublas(std::string& reason) {
  static const auto* loaded = new Loaded;
  reason = loaded->reason;
  return loaded->complete ? &loaded->functions : nullptr;
}

}  // namespace mm::cuda
