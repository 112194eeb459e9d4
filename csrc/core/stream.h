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

class Graph;

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static std::shared_ptr<Stream> create(const MMBackend* backend, int32_t device, std::string& error);
  ~Stream();

  void enqueue(std::function<void()> task);
  // Runs what waits for the device on a thread of its own, in order, so that the executor goes on. Called by tasks.
  void complete(std::function<void()> task);
  // Drops what is queued, waits for the running task and for the device's reads, and ends the threads. Idempotent.
  void shutdown();

  void* allocate(uint64_t bytes, char* error, uint64_t error_size);
  void release(void* data, uint64_t bytes);

  // The first failure since a wait told of one, in the words of the op that failed. A failure that left something unwritten in place,
  // which no result tells, stays until a wait has told of it.
  void fail(const std::string& message, bool inPlace);
  void told(const std::string& message);
  std::string takeError();

  const MMBackend* backend() const { return backend_; }
  int32_t device() const { return device_; }
  void* handle() const { return handle_; }
  MemoryStats& stats() { return stats_; }
  Graph* recording = nullptr;  // the graph that the executor captures now; touched by its thread alone
  std::string deviceName() const;  // "cpu", "cuda:0"

 private:
  Stream(const MMBackend* backend, int32_t device) : backend_(backend), device_(device) {}
  // Tasks in order on one thread.
  struct Lane {
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<std::function<void()>> queue;
    bool stopping = false;
    std::thread thread;

    void push(std::function<void()> task);
    void loop();
    void shutdown(bool drop);
  };

  const MMBackend* const backend_;
  const int32_t device_;
  void* handle_ = nullptr;
  MemoryStats stats_;
  Lane executor_, completions_;
  std::mutex errorMutex_;
  std::string error_, unwritten_;
};

}  // namespace mm
