// What belongs to one JavaScript environment (the main thread or a worker): its streams, the promises that wait on them
// and the handle count. Nothing here is static, so several environments live and die independently.
#pragma once
#include <napi.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/stream.h"

namespace mm {

class Environment {
 public:
  explicit Environment(Napi::Env env);
  ~Environment();

  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  // The stream of "cpu", "cuda" or "cuda:1"; throws a JavaScript error with the reason when there is none.
  const std::shared_ptr<Stream>& stream(Napi::Env env, const std::string& device);
  const std::map<std::string, std::shared_ptr<Stream>>& streams() const { return streams_; }

  // A promise that settles when the device has passed this point: rejected by what `begin` returns, or by
  // Stream::takeError(). `begin` runs on the stream's thread and may give a ticket of the backend's read_begin.
  using Begin = std::function<std::string(void*& ticket)>;
  Napi::Promise fence(Napi::Env env, const std::shared_ptr<Stream>& stream, Napi::Value result, Begin begin);

  void setSearch(const std::string& backend, std::vector<std::string> paths) { search_[backend] = std::move(paths); }
  const std::vector<std::string>& search(const std::string& backend) { return search_[backend]; }

  int64_t handles = 0;  // live tensor handles

  // V8 must feel device memory, or it never collects forgotten tensors; but it starts a collection whenever the figure
  // rises by some tens of megabytes, as it does in every training step. So it is told the low-water mark of stretches
  // that are long enough to hold a step: what rises from stretch to stretch is forgotten, not used. A stretch that rises
  // half above the peak of the one before ends there, so that it makes no difference how fast memory is forgotten; what
  // the collector frees (`forgotten`) was no use, and leaves the peak.
  void allocated(Napi::Env env, int64_t bytes);
  void freed(int64_t bytes, bool forgotten);

 private:
  struct Waiter;
  void settle(Napi::Env env, Waiter* waiter);
  static void shutdown(void* self);

  napi_env env_;
  std::map<std::string, std::shared_ptr<Stream>> streams_;
  std::map<std::string, std::vector<std::string>> search_;
  Napi::ThreadSafeFunction wake_;
  int pending_ = 0;
  int64_t live_ = 0, low_ = 0, peak_ = 0, turnover_ = 0, stretch_ = 0, ceiling_ = 0, reported_ = 0;
  bool closed_ = false;
};

}  // namespace mm
