// What every CUDA kernel file includes.
//
// csrc/cuda/<op>.cuh holds the kernels, <op>.cu the launchers: functions int32_t(const MMCall*) that read operands, attributes
// and workspace of a call (abi/call.h, csrc/ops/<op>.h), put work on its stream by launch() and never wait. <op>.cu ends with
// MM_CUDA_KERNELS, the entries of the kernel table. Sums across blocks go through partial results that are added in a fixed
// order: the same inputs give the same bits, so no float atomics.
#pragma once
#include <cstdint>
#include <type_traits>

#define MM_CALL_NAMESPACE mm::cuda
#include "abi/call.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/types.cuh"

namespace mm::cuda {

// Calls f(T{}) with T = float, bf16 or f16 for a float dtype: dispatchFloat(x.dtype, [&](auto t) { using T = decltype(t); ... });
template <class F>
auto dispatchFloat(int32_t dtype, F&& f) {
  switch (dtype) {
    case MM_BF16: return f(bf16{});
    case MM_F16: return f(f16{});
    default: return f(float{});
  }
}

// Calls f(std::integral_constant<int, V>{}) for the first V of Vs that is at least n; the last one for all above.
template <int V, int... Vs, class F>
auto dispatchSize(int64_t n, F&& f) {
  if constexpr (sizeof...(Vs) == 0) return f(std::integral_constant<int, V>{});
  else return n <= V ? f(std::integral_constant<int, V>{}) : dispatchSize<Vs...>(n, f);
}

template <class F>
auto dispatchBool(bool value, F&& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The device that the call will run on; also valid in supports() and workspace().
inline const Device& deviceOf(const MMCall* c) { return *static_cast<const Stream*>(c->stream)->device; }

// Cuts the workspace into 256-byte aligned parts: Scratch s(c); float* a = s.take<float>(n); the same walk with a null
// workspace gives the size: Scratch s; ...; return s.bytes();
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(const MMCall* c) : base_(static_cast<char*>(c->workspace)) {}
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<uint64_t>(count) * sizeof(T) + 255) / 256 * 256;
    return p;
  }
  uint64_t bytes() const { return used_; }

 private:
  char* base_ = nullptr;
  uint64_t used_ = 0;
};

struct KernelList {
  const MMKernelEntry* entries;
  int count;
};

}  // namespace mm::cuda

// At the end of csrc/cuda/<file>.cu: MM_CUDA_KERNELS(rms_norm, {"rmsNorm", "rows", supports, workspace, run}, ...); the file is
// listed in cuda/kernels.inc.
#define MM_CUDA_KERNELS(file, ...)                                                   \
  namespace mm::cuda {                                                               \
  extern const KernelList file##_kernels;                                            \
  static const MMKernelEntry file##_entries[] = {__VA_ARGS__};                       \
  const KernelList file##_kernels = {file##_entries, int(sizeof(file##_entries) / sizeof(MMKernelEntry))}; \
  }
