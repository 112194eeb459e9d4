#include "core/stream.h"

#include <utility>

#include "core/pool.h"

namespace mm {

std::shared_ptr<Stream> Stream::create(const MMBackend* backend, int32_t device, std::string& error) {
  std::shared_ptr<Stream> s(new Stream(backend, device));
  if (backend->stream_create(device, &s->handle_) != MM_OK) {
    error = std::string("cannot create a stream on ") + s->deviceName();
    return nullptr;
  }
  s->executor_.thread = std::thread([raw = s.get()] { raw->executor_.loop(); });
  return s;
}

Stream::~Stream() {
  shutdown();
  if (handle_) backend_->stream_destroy(handle_);
}

std::string Stream::deviceName() const {
  const std::string name = backend_->name;
  return name == "cpu" ? name : name + ":" + std::to_string(device_);
}

void Stream::enqueue(std::function<void()> task) { executor_.push(std::move(task)); }

void Stream::complete(std::function<void()> task) {
  if (!completions_.thread.joinable()) completions_.thread = std::thread([this] { completions_.loop(); });
  completions_.push(std::move(task));
}

void Stream::Lane::push(std::function<void()> task) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (stopping) return;
    queue.push_back(std::move(task));
  }
  wake.notify_one();
}

void Stream::Lane::loop() {
  lowerThreadPriority();
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    wake.wait(lock, [&] { return stopping || !queue.empty(); });
    if (queue.empty()) return;
    std::function<void()> task = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // its references go before the next task starts, so that their memory can serve it
    lock.lock();
  }
}

void Stream::Lane::shutdown(bool drop) {
  std::deque<std::function<void()>> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex);
    stopping = true;
    if (drop) dropped.swap(queue);
  }
  wake.notify_one();
  if (!thread.joinable()) return;
  if (thread.get_id() == std::this_thread::get_id()) thread.detach();  // the last reference went inside a task
  else thread.join();
}

void Stream::shutdown() {
  executor_.shutdown(true);
  completions_.shutdown(false);  // what waits there holds memory of the device's reads
}

void* Stream::allocate(uint64_t bytes, char* error, uint64_t error_size) {
  void* data = nullptr;
  if (backend_->allocate(handle_, bytes, &data, error, error_size) != MM_OK) return nullptr;
  const int64_t live = stats_.bytes.fetch_add(static_cast<int64_t>(bytes)) + static_cast<int64_t>(bytes);
  int64_t peak = stats_.peak.load();
  while (live > peak && !stats_.peak.compare_exchange_weak(peak, live)) {
  }
  return data;
}

void Stream::release(void* data, uint64_t bytes) {
  stats_.bytes.fetch_sub(static_cast<int64_t>(bytes));
  backend_->release(handle_, data, bytes);
}

void Stream::fail(const std::string& message, bool inPlace) {
  std::lock_guard<std::mutex> lock(errorMutex_);
  if (error_.empty()) error_ = message;
  if (inPlace && unwritten_.empty()) unwritten_ = message;
}

void Stream::told(const std::string& message) {
  std::lock_guard<std::mutex> lock(errorMutex_);
  error_.clear();
  if (unwritten_ == message) unwritten_.clear();
}

std::string Stream::takeError() {
  std::lock_guard<std::mutex> lock(errorMutex_);
  const std::string first = error_.empty() ? unwritten_ : error_;
  error_.clear();
  if (unwritten_ == first) unwritten_.clear();
  return first;
}

}  // namespace mm
