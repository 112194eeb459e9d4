#include "napi/environment.h"

#include <algorithm>

#include "core/backends.h"
#include "napi/errors.h"

namespace mm {

namespace {

constexpr int64_t kShortest = int64_t(64) << 20;  // bytes: a stretch is no shorter, and a rise by less is none

}  // namespace

struct Environment::Waiter {
  Napi::Promise::Deferred deferred;
  Napi::Reference<Napi::Value> result;
  std::string error;
};

Environment::Environment(Napi::Env env) : env_(env) {
  wake_ = Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "mmmamba", 0, 1);
  wake_.Unref(env);  // only a pending promise keeps the process alive
  napi_add_env_cleanup_hook(env, shutdown, this);
}

Environment::~Environment() { shutdown(this); }

void Environment::shutdown(void* data) {
  auto* self = static_cast<Environment*>(data);
  if (self->closed_) return;
  self->closed_ = true;
  for (auto& [name, stream] : self->streams_) stream->shutdown();
  self->wake_.Release();
}

void Environment::allocated(Napi::Env env, int64_t bytes) {
  live_ += bytes;
  turnover_ += bytes;
  peak_ = std::max(peak_, live_);
  if (turnover_ < stretch_ && live_ < ceiling_) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, low_ - reported_);
  reported_ = low_;
  constexpr int64_t longest = int64_t(2) << 30;
  stretch_ = std::min(longest, std::max(kShortest, 8 * peak_));
  ceiling_ = peak_ + std::max(kShortest, peak_ / 2);
  turnover_ = 0, low_ = live_, peak_ = live_;
}

void Environment::freed(int64_t bytes, bool forgotten) {
  live_ -= bytes;
  low_ = std::min(low_, live_);
  if (!forgotten) return;
  peak_ = std::max(live_, peak_ - bytes);
  ceiling_ = std::max(peak_ + kShortest, ceiling_ - bytes);
}

const std::shared_ptr<Stream>& Environment::stream(Napi::Env env, const std::string& device) {
  auto found = streams_.find(device);
  if (found != streams_.end()) return found->second;
  const size_t colon = device.find(':');
  const std::string name = device.substr(0, colon);
  int index = 0;
  bool valid = name == "cpu" || name == "cuda";
  if (colon != std::string::npos) {
    const std::string digits = device.substr(colon + 1);
    valid = valid && !digits.empty() && digits.size() < 4 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (valid) index = std::stoi(digits);
  }
  if (!valid) throw makeError(env, "ERR_DEVICE", "unknown device '" + device + "'; expected 'cpu', 'cuda' or 'cuda:<index>'");
  std::string reason;
  const MMBackend* backend = findBackend(name, search_[name], reason);
  if (!backend) throw makeError(env, "ERR_DEVICE", "device '" + device + "' is not available: " + reason + " (npx mmmamba doctor says what helps)");
  char text[512] = "";
  const int count = backend->device_count(text, sizeof text);
  if (index >= count)
    throw makeError(env, "ERR_DEVICE", "device '" + device + "' does not exist: there are " + std::to_string(count) + " " + name + " devices");
  const std::string canonical = name == "cpu" ? name : name + ":" + std::to_string(index);
  if (canonical != device) return stream(env, canonical);
  std::shared_ptr<Stream> s = Stream::create(backend, index, reason);
  if (!s) throw makeError(env, "ERR_DEVICE", reason);
  return streams_.emplace(device, std::move(s)).first->second;
}

Napi::Promise Environment::fence(Napi::Env env, const std::shared_ptr<Stream>& stream, Napi::Value result, Begin begin) {
  auto* waiter = new Waiter{Napi::Promise::Deferred::New(env), {}, {}};
  if (result.IsObject()) waiter->result = Napi::Reference<Napi::Value>::New(result, 1);
  if (pending_++ == 0) wake_.Ref(env);
  Stream* raw = stream.get();
  raw->enqueue([this, raw, waiter, begin = std::move(begin)] {
    void* ticket = nullptr;
    waiter->error = begin(ticket);
    if (waiter->error.empty()) waiter->error = raw->takeError();
    else raw->told(waiter->error);
    const auto finish = [this, waiter] { wake_.NonBlockingCall(waiter, [this](Napi::Env e, Napi::Function, Waiter* w) { settle(e, w); }); };
    if (!ticket) return finish();
    raw->complete([raw, ticket, waiter, finish] {
      char error[512] = "";
      if (raw->backend()->read_end(ticket, error, sizeof error) != MM_OK && waiter->error.empty()) waiter->error = error;
      finish();
    });
  });
  return waiter->deferred.Promise();
}

void Environment::settle(Napi::Env env, Waiter* waiter) {
  if (--pending_ == 0) wake_.Unref(env);
  Napi::HandleScope scope(env);
  const std::unique_ptr<Waiter> owner(waiter);
  if (waiter->error.empty()) waiter->deferred.Resolve(waiter->result.IsEmpty() ? env.Undefined() : waiter->result.Value());
  else {
    const bool memory = waiter->error.find("out of memory") != std::string::npos;
    waiter->deferred.Reject(makeError(env, memory ? "ERR_OUT_OF_MEMORY" : "ERR_KERNEL", waiter->error).Value());
  }
}

}  // namespace mm
