// One ordered executor: tasks run one after the other on a thread of their own, never on the event loop's.
// Every JavaScript environment has a stream of its own for each device that it uses; streams of a device share the
// backend and its memory.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "abi/backend.h"

namespace mm {

struct MemoryStats {
  std::atomic<int64_t> tensors{0};  // live storages
  std::atomic<int64_t> bytes{0};    // live device memory
  std::atomic<int64_t> peak{0};
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static std::shared_ptr<Stream> create(const MMBackend* backend, int32_t device, std::string& error);
  ~Stream();

  void enqueue(std::function<void()> task);
  // Drops what is queued, waits for the running task and ends the thread. Idempotent.
  void shutdown();

  void* allocate(uint64_t bytes, char* error, uint64_t error_size);
  void release(void* data, uint64_t bytes);

  // The first failure since the last call of takeError(), in the words of the op that failed.
  void fail(std::string message);
  std::string takeError();

  const MMBackend* backend() const { return backend_; }
  int32_t device() const { return device_; }
  void* handle() const { return handle_; }
  MemoryStats& stats() { return stats_; }
  std::string deviceName() const;  // "cpu", "cuda:0"

 private:
  Stream(const MMBackend* backend, int32_t device) : backend_(backend), device_(device) {}
  void loop();

  const MMBackend* const backend_;
  const int32_t device_;
  void* handle_ = nullptr;
  MemoryStats stats_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::thread thread_;
  std::mutex errorMutex_;
  std::string error_;
};

}  // namespace mm
