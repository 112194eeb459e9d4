// The CUDA backend's side of abi/backend.h: devices, streams, memory, copies and captures.
#include "abi/backend.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/gemm.h"
#include "cuda/graph.h"
#include "cuda/table.h"

namespace mm::cuda {

namespace {

// Streams that live, for the figures of a device.
struct Streams {
  std::mutex mutex;
  std::set<Stream*> all;
};
Streams& streams() {
  static auto* s = new Streams;
  return *s;
}

Stream& of(void* stream) { return *static_cast<Stream*>(stream); }

void setText(char* to, uint64_t size, const std::string& text) { std::snprintf(to, size, "%s", text.c_str()); }

int32_t countDevices(char* reason, uint64_t size) {
  std::string why;
  const int n = deviceCount(why);
  setText(reason, size, why);
  return n;
}

void deviceInfo(int32_t index, char* json, uint64_t size) {
  std::string why;
  const Device* d = findDevice(index, why);
  if (!d) return setText(json, size, "{}");
  MemoryStats sum;
  {
    std::lock_guard<std::mutex> lock(streams().mutex);
    for (Stream* s : streams().all) {
      if (s->device != d) continue;
      const MemoryStats one = s->memory.stats();
      sum.live += one.live, sum.cached += one.cached, sum.peak += one.peak, sum.allocations += one.allocations;
    }
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::snprintf(json, size,
                "{\"name\":\"%s\",\"capability\":\"%d.%d\",\"multiprocessors\":%d,\"totalBytes\":%llu,\"l2Bytes\":%llu,\"cuda\":\"%d.%d\","
                "\"driverCuda\":\"%d.%d\",\"liveBytes\":%llu,\"cachedBytes\":%llu,\"peakBytes\":%llu,\"allocations\":%llu}",
                d->name.c_str(), d->major, d->minor, d->multiprocessors, static_cast<unsigned long long>(d->totalBytes),
                static_cast<unsigned long long>(d->l2Bytes), CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, driver / 1000, driver % 1000 / 10,
                static_cast<unsigned long long>(sum.live), static_cast<unsigned long long>(sum.cached), static_cast<unsigned long long>(sum.peak),
                static_cast<unsigned long long>(sum.allocations));
}

int32_t streamCreate(int32_t index, void** stream) {
  std::string why;
  const Device* d = findDevice(index, why);
  if (!d) return MM_ERR_KERNEL;
  auto* s = new Stream(d);
  use(*s);
  if (cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking) != cudaSuccess ||
      cudaMalloc(reinterpret_cast<void**>(&s->tickets), kTickets * sizeof(uint32_t)) != cudaSuccess ||
      cudaMemsetAsync(s->tickets, 0, kTickets * sizeof(uint32_t), s->handle) != cudaSuccess) {
    cudaGetLastError();
    cudaFree(s->tickets);
    if (s->handle) cudaStreamDestroy(s->handle);
    delete s;
    return MM_ERR_KERNEL;
  }
  std::lock_guard<std::mutex> lock(streams().mutex);
  streams().all.insert(s);
  *stream = s;
  return MM_OK;
}

void streamDestroy(void* stream) {
  Stream* s = &of(stream);
  use(*s);
  cudaStreamSynchronize(s->handle);
  {
    std::lock_guard<std::mutex> lock(streams().mutex);
    streams().all.erase(s);
  }
  destroyGemm(*s);
  cudaFree(s->tickets);
  cudaStreamDestroy(s->handle);
  delete s;
}

int32_t allocate(void* stream, uint64_t bytes, void** data, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  *data = s.memory.take(bytes);
  if (*data) return MM_OK;
  const MemoryStats m = s.memory.stats();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  std::snprintf(error, error_size, "out of memory on cuda:%d: %s were asked for; %s are live, %s cached, %s of %s free", s.device->index,
                bytesText(bytes).c_str(), bytesText(m.live).c_str(), bytesText(m.cached).c_str(), bytesText(free).c_str(), bytesText(total).c_str());
  return MM_ERR_OUT_OF_MEMORY;
}

void release(void* stream, void* data, uint64_t) { of(stream).memory.give(data); }

int32_t outsideCapture(const Stream& s, const char* what, char* error, uint64_t error_size) {
  if (!s.capturing) return MM_OK;
  std::snprintf(error, error_size, "%s cannot be captured: a graph replays work of the device alone; do it before or after", what);
  return MM_ERR_KERNEL;
}

// Why there is no pinned memory: a device that failed before gives none either.
int32_t noStaging(const Stream& s, const char* what, char* error, uint64_t error_size) {
  const cudaError_t status = cudaStreamQuery(s.handle);
  if (status != cudaSuccess && status != cudaErrorNotReady) return checked(s, status, error, error_size);
  cudaGetLastError();
  std::snprintf(error, error_size, "out of memory: no pinned host memory for %s", what);
  return MM_ERR_OUT_OF_MEMORY;
}

int32_t upload(void* stream, void* dst, const void* host, uint64_t bytes, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  if (const int32_t status = outsideCapture(s, "an upload", error, error_size)) return status;
  for (uint64_t at = 0; at < bytes; at += Staging::kPiece) {
    const uint64_t n = std::min(Staging::kPiece, bytes - at);
    PinnedBuffer* buffer = s.staging.take(n);
    if (!buffer) return noStaging(s, "an upload", error, error_size);
    std::memcpy(buffer->data, static_cast<const char*>(host) + at, n);
    cudaError_t status = cudaMemcpyAsync(static_cast<char*>(dst) + at, buffer->data, n, cudaMemcpyHostToDevice, s.handle);
    if (status == cudaSuccess) status = cudaEventRecord(buffer->done, s.handle);
    s.staging.give(buffer);
    if (status != cudaSuccess) return checked(s, status, error, error_size);
  }
  return MM_OK;
}

int32_t zero(void* stream, void* dst, uint64_t bytes, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  return bytes ? checked(s, cudaMemsetAsync(dst, 0, bytes, s.handle), error, error_size) : MM_OK;
}

// A read under way: pieces in pinned memory, to be copied to the host's buffer once they have come.
struct Ticket {
  Stream* stream;
  char* host;
  std::vector<std::pair<PinnedBuffer*, uint64_t>> pieces;
};

int32_t readBegin(void* stream, void* host, const void* src, uint64_t bytes, void** ticket, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  *ticket = nullptr;
  if (const int32_t status = outsideCapture(s, "a read", error, error_size)) return status;
  auto* t = new Ticket{&s, static_cast<char*>(host), {}};
  uint64_t at = 0;
  do {  // at least one piece: its event is what is waited for
    const uint64_t n = std::min(Staging::kPiece, bytes - at);
    PinnedBuffer* buffer = s.staging.take(std::max<uint64_t>(n, 1));
    if (!buffer) {
      for (auto& [b, size] : t->pieces) s.staging.give(b);
      delete t;
      return noStaging(s, "a read", error, error_size);
    }
    if (n) cudaMemcpyAsync(buffer->data, static_cast<const char*>(src) + at, n, cudaMemcpyDeviceToHost, s.handle);
    cudaEventRecord(buffer->done, s.handle);
    t->pieces.emplace_back(buffer, n);
    at += n;
  } while (at < bytes);
  *ticket = t;
  return MM_OK;
}

int32_t readEnd(void* ticket, char* error, uint64_t error_size) {
  auto* t = static_cast<Ticket*>(ticket);
  use(*t->stream);
  cudaError_t status = cudaSuccess;
  char* to = t->host;
  for (auto& [buffer, n] : t->pieces) {
    if (status == cudaSuccess) status = cudaEventSynchronize(buffer->done);
    if (status == cudaSuccess && n) std::memcpy(to, buffer->data, n);
    to += n;
    t->stream->staging.give(buffer);
  }
  const int32_t result = checked(*t->stream, status, error, error_size);
  delete t;
  return result;
}

int32_t captureBegin(void* stream, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  if (s.capturing) {
    setText(error, error_size, "a capture is under way already; captures do not nest");
    return MM_ERR_KERNEL;
  }
  // What is cached cannot be freed for other sizes while the stream captures.
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (s.memory.stats().cached > free) s.memory.trim();
  auto* graph = new Graph;
  // Relaxed: the pool may call cudaMalloc for blocks that the captured work needs.
  const int32_t status = checked(s, cudaStreamBeginCapture(s.handle, cudaStreamCaptureModeRelaxed), error, error_size);
  if (status != MM_OK) {
    delete graph;
    return status;
  }
  s.memory.beginCapture(graph);
  s.capturing = graph;
  return MM_OK;
}

void graphDestroy(void* stream, void* handle) {
  auto* graph = static_cast<Graph*>(handle);
  Stream& s = of(stream);
  use(s);
  s.memory.disown(graph);
  if (graph->executable) cudaGraphExecDestroy(graph->executable);
  delete graph;
}

int32_t captureEnd(void* stream, void** handle, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  Graph* graph = s.capturing;
  s.capturing = nullptr;
  s.memory.endCapture();
  cudaGraph_t recorded = nullptr;
  cudaError_t status = cudaStreamEndCapture(s.handle, &recorded);
  if (status == cudaSuccess) status = cudaGraphInstantiate(&graph->executable, recorded, 0);
  if (recorded) cudaGraphDestroy(recorded);
  if (status != cudaSuccess) {
    cudaGetLastError();
    graphDestroy(stream, graph);
    return checked(s, status, error, error_size);
  }
  *handle = graph;
  return MM_OK;
}

int32_t graphLaunch(void* stream, void* handle, char* error, uint64_t error_size) {
  Stream& s = of(stream);
  use(s);
  return checked(s, cudaGraphLaunch(static_cast<Graph*>(handle)->executable, s.handle), error, error_size);
}

const MMBackend* backend() {
  static const auto* kernels = new std::vector<MMKernelEntry>(allKernels());
  static const auto* table = new MMBackend{MM_ABI_VERSION, sizeof(MMBackend), "cuda",    kernels->data(), kernels->size(), countDevices, deviceInfo, streamCreate,
                                           streamDestroy,  allocate,          release,   upload,          zero,            readBegin,    readEnd,    captureBegin,
                                           captureEnd,     graphLaunch,       graphDestroy};
  return table;
}

}  // namespace

}  // namespace mm::cuda

extern "C" __attribute__((visibility("default"))) const MMBackend* mm_backend_entry(uint32_t abi_version) {
  return abi_version == MM_ABI_VERSION ? mm::cuda::backend() : nullptr;
}
