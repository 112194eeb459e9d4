// Device memory of one stream. Blocks come and go in the stream's order, so one that was freed behind a kernel may serve the
// next one without waiting. Freed blocks are kept by size; sizes are rounded to eighths of a power of two.
//
// While the stream captures a graph, blocks that the captured work uses belong to the graph and go back to it, since every
// replay writes to them again; destroying the graph gives them back.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace mm::cuda {

struct Graph;  // cuda/graph.h

struct MemoryStats {
  uint64_t live = 0, cached = 0, peak = 0;
  uint64_t allocations = 0;  // calls of cudaMalloc so far
};

class MemoryPool {
 public:
  MemoryPool() = default;
  // Frees all memory. The stream has done its work, and its device is current.
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;
  // Null where the device has no memory left, also after the cached blocks were freed.
  void* take(uint64_t bytes);
  void give(void* block);
  // Frees all cached blocks that have memory of their own. Waits for the device.
  void trim();
  void beginCapture(Graph* graph);
  void endCapture();
  void disown(Graph* graph);
  MemoryStats stats();

 private:
  struct Block {
    uint64_t size;
    Graph* owner;  // the graph that captured it
    bool own;      // has memory of its own, rather than a part of a slab
  };
  void* fresh(uint64_t size, bool exact);

  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::map<uint64_t, std::vector<void*>> free_;
  std::vector<void*> slabs_;
  Graph* capturing_ = nullptr;
  MemoryStats stats_;
};

// False under MMMAMBA_CUDA_CACHE=0: every block is then an allocation of its own, of its exact size, and freed at once, so that a
// sanitizer sees where it ends and what nobody wrote.
bool caching();

// "2.50 GiB"
std::string bytesText(uint64_t bytes);

}  // namespace mm::cuda
