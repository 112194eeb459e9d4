#include "cuda/memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/graph.h"

namespace mm::cuda {

namespace {

constexpr uint64_t kSmall = uint64_t(256) << 10, kSlab = uint64_t(8) << 20;

uint64_t rounded(uint64_t bytes) {
  if (bytes <= 512) return 512;
  const int top = 63 - __builtin_clzll(bytes - 1);
  const uint64_t step = std::max<uint64_t>(512, uint64_t(1) << (top > 3 ? top - 3 : 0));
  return (bytes + step - 1) / step * step;
}

void* pop(std::map<uint64_t, std::vector<void*>>& free, uint64_t size) {
  const auto found = free.find(size);
  if (found == free.end() || found->second.empty()) return nullptr;
  void* block = found->second.back();
  found->second.pop_back();
  return block;
}

void* allocate(uint64_t bytes) {
  void* p = nullptr;
  if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError();  // running out is reported by the caller and is no error of the device
  return nullptr;
}

}  // namespace

bool caching() {
  static const bool on = [] {
    const char* text = std::getenv("MMMAMBA_CUDA_CACHE");
    return !text || std::strcmp(text, "0") != 0;
  }();
  return on;
}

std::string bytesText(uint64_t bytes) {
  char text[32];
  if (bytes >= uint64_t(1) << 30) std::snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1 << 30));
  else if (bytes >= uint64_t(1) << 20) std::snprintf(text, sizeof text, "%.1f MiB", double(bytes) / double(1 << 20));
  else std::snprintf(text, sizeof text, "%llu bytes", static_cast<unsigned long long>(bytes));
  return text;
}

MemoryPool::~MemoryPool() {
  for (const auto& [block, b] : blocks_)
    if (b.own) cudaFree(block);
  for (void* slab : slabs_) cudaFree(slab);
}

// Small blocks are cut from slabs: a training step has hundreds of them, and cudaMalloc hands out 2 MiB at least.
void* MemoryPool::fresh(uint64_t size, bool exact) {
  const bool small = !exact && size <= kSmall;
  char* p = static_cast<char*>(allocate(small ? kSlab : size));
  if (!p) return nullptr;
  stats_.allocations++;
  if (!small) {
    blocks_[p] = {size, nullptr, true};
    return p;
  }
  slabs_.push_back(p);
  for (uint64_t at = size; at + size <= kSlab; at += size) {
    blocks_[p + at] = {size, nullptr, false};
    free_[size].push_back(p + at);
    stats_.cached += size;
  }
  blocks_[p] = {size, nullptr, false};
  return p;
}

void* MemoryPool::take(uint64_t bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool exact = !caching() && !capturing_;
  const uint64_t size = exact ? std::max<uint64_t>(bytes, 1) : rounded(bytes);
  void* block = capturing_ ? pop(capturing_->free, size) : nullptr;
  if (!block) {
    block = exact ? nullptr : pop(free_, size);
    if (block) stats_.cached -= size;
  }
  if (!block) block = fresh(size, exact);
  if (!block) {
    lock.unlock();
    trim();
    lock.lock();
    block = fresh(size, exact);
  }
  if (!block) return nullptr;
  blocks_[block].owner = capturing_;
  stats_.live += size;
  stats_.peak = std::max(stats_.peak, stats_.live);
  return block;
}

void MemoryPool::give(void* block) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Block& b = blocks_.at(block);
  stats_.live -= b.size;
  if (b.owner) {
    b.owner->free[b.size].push_back(block);
    return;
  }
  if (!caching() && b.own) {
    cudaFree(block);  // waits for the device
    blocks_.erase(block);
    return;
  }
  free_[b.size].push_back(block);
  stats_.cached += b.size;
}

void MemoryPool::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (capturing_) return;  // freeing would wait for a stream that captures
  for (auto& [size, list] : free_) {
    const auto kept = std::partition(list.begin(), list.end(), [&](void* p) { return !blocks_.at(p).own; });
    for (auto it = kept; it != list.end(); ++it) {
      cudaFree(*it);
      blocks_.erase(*it);
      stats_.cached -= size;
    }
    list.erase(kept, list.end());
  }
}

void MemoryPool::beginCapture(Graph* graph) {
  std::lock_guard<std::mutex> lock(mutex_);
  capturing_ = graph;
}

void MemoryPool::endCapture() {
  std::lock_guard<std::mutex> lock(mutex_);
  capturing_ = nullptr;
}

void MemoryPool::disown(Graph* graph) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [block, b] : blocks_)
    if (b.owner == graph) b.owner = nullptr;
  for (auto& [size, list] : graph->free) {
    free_[size].insert(free_[size].end(), list.begin(), list.end());
    stats_.cached += size * list.size();
  }
  graph->free.clear();
}

MemoryStats MemoryPool::stats() {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

}  // namespace mm::cuda
