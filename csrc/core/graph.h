// A captured piece of a stream's work, to be replayed with the same tensors and new contents.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/storage.h"

namespace mm {

class Stream;

class Graph {
 public:
  explicit Graph(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Called on the stream's thread, in this order; "" or what failed.
  std::string begin();
  std::string end();
  std::string replay();

  // Keeps what the captured work reads or writes and did not make itself.
  void hold(const std::shared_ptr<Storage>& storage) { held_.push_back(storage); }

  const std::shared_ptr<Stream>& stream() const { return stream_; }

 private:
  const std::shared_ptr<Stream> stream_;
  void* handle_ = nullptr;
  std::vector<std::shared_ptr<Storage>> held_;
};

}  // namespace mm
