#include "cuda/staging.h"

#include <cstddef>

namespace mm::cuda {

namespace {

constexpr size_t kMost = 16;  // buffers kept; with so many in flight, the oldest is waited for

void destroy(PinnedBuffer* b) {
  cudaEventSynchronize(b->done);
  cudaEventDestroy(b->done);
  cudaFreeHost(b->data);
  delete b;
}

}  // namespace

Staging::~Staging() {
  for (PinnedBuffer* b : given_) destroy(b);
}

PinnedBuffer* Staging::take(uint64_t bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (size_t i = 0; i < given_.size(); i++) {
    PinnedBuffer* b = given_[i];
    if (b->bytes < bytes || (given_.size() < kMost && cudaEventQuery(b->done) != cudaSuccess)) continue;
    given_.erase(given_.begin() + static_cast<std::ptrdiff_t>(i));
    lock.unlock();
    cudaEventSynchronize(b->done);
    return b;
  }
  lock.unlock();
  cudaGetLastError();  // of the queries: not ready
  auto* b = new PinnedBuffer;
  uint64_t size = 4096;
  while (size < bytes) size *= 2;
  b->bytes = size;
  if (cudaHostAlloc(&b->data, size, cudaHostAllocDefault) != cudaSuccess || cudaEventCreateWithFlags(&b->done, cudaEventDisableTiming) != cudaSuccess) {
    cudaGetLastError();
    if (b->data) cudaFreeHost(b->data);
    delete b;
    return nullptr;
  }
  return b;
}

void Staging::give(PinnedBuffer* buffer) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (given_.size() < kMost || cudaEventQuery(buffer->done) != cudaSuccess) {
    given_.push_back(buffer);
    return;
  }
  lock.unlock();
  destroy(buffer);  // a large read had more of them than are worth keeping
}

}  // namespace mm::cuda
