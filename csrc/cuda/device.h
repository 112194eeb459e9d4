// Devices and streams of the CUDA backend, on the host's side.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "cuda/memory.h"
#include "cuda/staging.h"

namespace mm::cuda {

struct Device {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t sharedPerBlock = 0;  // bytes a block may have when it opts in
  size_t l2Bytes = 0, totalBytes = 0;

  // What kernels are chosen by. MMMAMBA_CUDA_CAPABILITY=80 lowers it, so that tests on a newer GPU cover the kernels for older ones.
  int capability() const;
};

// Null with a reason where the index does not exist or the device cannot be used.
const Device* findDevice(int index, std::string& reason);
// Usable devices; 0 with the reason.
int deviceCount(std::string& reason);

constexpr int kTickets = 1024;

// What MMCall::stream points to.
struct Stream {
  const Device* device = nullptr;
  cudaStream_t handle = nullptr;
  MemoryPool memory;
  Staging staging;
  void* gemm = nullptr;  // state of the matrix products (cuda/gemm.h), made when first needed
  Graph* capturing = nullptr;  // the graph that is being captured
  // kTickets zeros of device memory: blocks of a kernel that find out by them which one ends last leave zeros behind, so that kernels
  // and replayed graphs, in the stream's order, share them. Null: none.
  uint32_t* tickets = nullptr;

  explicit Stream(const Device* d) : device(d) {}
};

// Makes the stream's device current on this thread.
void use(const Stream& stream);

// "cuda:0: the text of the error"; MM_OK passes.
int32_t checked(const Stream& stream, cudaError_t status, char* error, uint64_t error_size);

}  // namespace mm::cuda
