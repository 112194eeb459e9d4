// Pinned host memory through which uploads and reads pass, so that neither waits for the device. Buffers are reused when
// their copy is done.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace mm::cuda {

struct PinnedBuffer {
  void* data = nullptr;
  uint64_t bytes = 0;
  cudaEvent_t done = nullptr;  // recorded behind the copy
};

class Staging {
 public:
  static constexpr uint64_t kPiece = uint64_t(4) << 20;  // copies are cut into pieces of at most this size

  Staging() = default;
  Staging(const Staging&) = delete;
  ~Staging();
  // A free buffer of at least `bytes` (at most kPiece); null where there is none to be had.
  PinnedBuffer* take(uint64_t bytes);
  // Reusable once `done` has passed.
  void give(PinnedBuffer* buffer);

 private:
  std::mutex mutex_;
  std::vector<PinnedBuffer*> given_;
};

}  // namespace mm::cuda
