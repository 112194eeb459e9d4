#include "core/graph.h"

#include "core/stream.h"

namespace mm {

Graph::~Graph() {
  if (handle_) stream_->backend()->graph_destroy(stream_->handle(), handle_);
}

std::string Graph::begin() {
  char error[512] = "";
  if (stream_->backend()->capture_begin(stream_->handle(), error, sizeof error) != MM_OK) return error;
  stream_->recording = this;
  return {};
}

std::string Graph::end() {
  if (stream_->recording != this) return "the capture did not begin";
  stream_->recording = nullptr;
  char error[512] = "";
  return stream_->backend()->capture_end(stream_->handle(), &handle_, error, sizeof error) == MM_OK ? "" : error;
}

std::string Graph::replay() {
  char error[512] = "";
  if (!handle_) return "the graph was not captured";
  return stream_->backend()->graph_launch(stream_->handle(), handle_, error, sizeof error) == MM_OK ? "" : error;
}

}  // namespace mm
