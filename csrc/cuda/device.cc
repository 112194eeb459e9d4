#include "cuda/device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "abi/backend.h"
#include "cuda/cublas.h"

namespace mm::cuda {

namespace {

constexpr int kLowestCapability = 80;

std::string versionText(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

struct Devices {
  std::vector<Device> list;
  std::string reason;

  Devices() {
    int driver = 0, count = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      reason = "no NVIDIA driver: libcuda.so.1 could not be loaded; install the driver (a container needs the NVIDIA container toolkit)";
      return;
    }
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {
      reason = "the NVIDIA driver supports CUDA " + versionText(driver) + "; this library was built with CUDA " + versionText(CUDART_VERSION) +
               " and needs a newer driver";
      return;
    }
    if (status != cudaSuccess || count == 0) {
      reason = status == cudaSuccess || status == cudaErrorNoDevice
                   ? "the driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"
                   : std::string("the driver reports: ") + cudaGetErrorString(status);
      return;
    }
    std::string missing;
    if (!cublas(missing)) {
      reason = missing;
      return;
    }
    for (int i = 0; i < count; i++) {
      cudaDeviceProp p{};
      if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
      if (10 * p.major + p.minor < kLowestCapability) {
        reason = std::string(p.name) + " has compute capability " + std::to_string(p.major) + "." + std::to_string(p.minor) +
                 "; 8.0 (Ampere) or newer is needed";
        continue;
      }
      Device d;
      d.index = i, d.name = p.name, d.major = p.major, d.minor = p.minor;
      d.multiprocessors = p.multiProcessorCount;
      d.sharedPerBlock = p.sharedMemPerBlockOptin;
      d.l2Bytes = size_t(p.l2CacheSize), d.totalBytes = p.totalGlobalMem;
      list.push_back(d);
    }
    if (!list.empty()) reason.clear();
  }
};

const Devices& devices() {
  static const auto* found = new Devices;  // outlives static destruction, as streams may
  return *found;
}

}  // namespace

int Device::capability() const {
  static const int most = [] {
    const char* text = std::getenv("MMMAMBA_CUDA_CAPABILITY");
    return text ? std::atoi(text) : 1000;
  }();
  return std::min(10 * major + minor, most);
}

int deviceCount(std::string& reason) {
  reason = devices().reason;
  return int(devices().list.size());
}

const Device* findDevice(int index, std::string& reason) {
  const Devices& d = devices();
  reason = d.reason;
  if (index < 0 || index >= int(d.list.size())) return nullptr;
  return &d.list[size_t(index)];
}

void use(const Stream& stream) {
  thread_local int current = -1;
  if (current == stream.device->index) return;
  cudaSetDevice(stream.device->index);
  current = stream.device->index;
}

int32_t checked(const Stream& stream, cudaError_t status, char* error, uint64_t error_size) {
  if (status == cudaSuccess) return MM_OK;
  // Errors of a kernel that ran leave the context unusable; those of a launch do not.
  const bool lasting = status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure || status == cudaErrorAssert ||
                       status == cudaErrorMisalignedAddress || status == cudaErrorIllegalInstruction || status == cudaErrorHardwareStackError;
  std::snprintf(error, error_size, "cuda:%d: %s%s", stream.device->index, cudaGetErrorString(status),
                lasting ? " in this op or one queued before it (MMMAMBA_CUDA_SYNC=1 names it); the device stays unusable until the process ends" : "");
  return status == cudaErrorMemoryAllocation ? MM_ERR_OUT_OF_MEMORY : MM_ERR_KERNEL;
}

}  // namespace mm::cuda
