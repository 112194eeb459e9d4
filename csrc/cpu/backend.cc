// The CPU as a backend: picks the kernel table of the best instruction set at run time, and hands out host memory.
#include "cpu/backend.h"

#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace mm::cpu {

const char* onednnStatus();  // cpu/onednn.cc

namespace {

struct KernelList {
  const MMKernelEntry* entries;
  int count;
};

}  // namespace

#define MM_DECLARE_ISA(isa)                        \
  namespace isa {                                  \
  struct KernelList;                               \
  extern const KernelList* const all_kernels[];    \
  }
MM_DECLARE_ISA(base)
#if defined(__x86_64__)
MM_DECLARE_ISA(avx2)
MM_DECLARE_ISA(avx512)
#endif

namespace {

struct Isa {
  const char* name;
  const void* kernels;  // null-terminated array of KernelList pointers, the same layout in every namespace
  bool available;
};

Isa pickIsa() {
  std::vector<Isa> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
  unsigned a, b, c, d;  // clang's __builtin_cpu_supports has no word for f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  sets.push_back({"avx512", avx512::all_kernels, bool(has512)});
  sets.push_back({"avx2", avx2::all_kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c});
#endif
  sets.push_back({"base", base::all_kernels, true});
  const char* wanted = std::getenv("MMMAMBA_ISA");  // to test a lower set on a higher machine
  for (const Isa& s : sets)
    if (s.available && (!wanted || !std::strcmp(wanted, s.name))) return s;
  return sets.back();
}

const Isa& isa() {
  static const Isa* chosen = new Isa(pickIsa());
  return *chosen;
}

// Freed blocks are kept by size: a training step asks for the same sizes again, and fresh pages cost more than most
// kernels. Sizes are rounded to eighths of a power of two, so that near misses fit too.
class Allocator {
 public:
  void* take(uint64_t bytes) {
    const uint64_t size = rounded(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto it = free_.find(size);
      if (it != free_.end() && !it->second.empty()) {
        void* p = it->second.back();
        it->second.pop_back();
        cached_ -= size;
        used(size);
        return p;
      }
    }
    void* p = fresh(size);
    if (!p) {
      trim(0);
      p = fresh(size);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (p) used(size);
    return p;
  }
  void give(void* p, uint64_t bytes) {
    const uint64_t size = rounded(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      live_ -= size;
      free_[size].push_back(p);
      cached_ += size;
    }
    trim(peak_ > (uint64_t(256) << 20) ? peak_ : uint64_t(256) << 20);
  }
  uint64_t cached() {
    std::lock_guard<std::mutex> lock(mutex_);
    return cached_;
  }

 private:
  // Large blocks on huge pages where the system grants them: 8 % on an SSD forward over 8,192 steps.
  static void* fresh(uint64_t size) {
    constexpr uint64_t page = uint64_t(2) << 20;
    if (size < 2 * page) return std::aligned_alloc(64, size);
    void* p = std::aligned_alloc(page, (size + page - 1) / page * page);
#if defined(MADV_HUGEPAGE)
    if (p) madvise(p, size, MADV_HUGEPAGE);
#endif
    return p;
  }
  static uint64_t rounded(uint64_t bytes) {
    if (bytes <= 512) return 512;
    const int top = 63 - __builtin_clzll(bytes - 1);
    const uint64_t step = top > 9 ? uint64_t(1) << (top - 3) : 64;
    return (bytes + step - 1) / step * step;
  }
  void used(uint64_t size) {
    live_ += size;
    if (live_ > peak_) peak_ = live_;
  }
  // Frees the largest cached blocks until at most `limit` bytes are cached.
  void trim(uint64_t limit) {
    std::vector<void*> gone;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto it = free_.rbegin(); it != free_.rend() && cached_ > limit; ++it)
        while (!it->second.empty() && cached_ > limit) {
          gone.push_back(it->second.back());
          it->second.pop_back();
          cached_ -= it->first;
        }
    }
    for (void* p : gone) std::free(p);
  }

  std::mutex mutex_;
  std::map<uint64_t, std::vector<void*>> free_;
  uint64_t cached_ = 0, live_ = 0, peak_ = 0;
};

Allocator& allocator() {
  static auto* a = new Allocator;  // blocks may come back while the process exits
  return *a;
}

std::vector<MMKernelEntry> collectKernels() {
  std::vector<MMKernelEntry> all;
  for (auto* p = static_cast<const KernelList* const*>(isa().kernels); *p; p++)
    all.insert(all.end(), (*p)->entries, (*p)->entries + (*p)->count);
  return all;
}

int32_t deviceCount(char*, uint64_t) { return 1; }
// A JSON string's characters: a loader's message may quote anything.
std::string escaped(const char* text) {
  std::string out;
  for (; *text; text++) {
    const char c = *text;
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out;
}
void deviceInfo(int32_t, char* json, uint64_t size) {
  std::snprintf(json, size, "{\"isa\":\"%s\",\"threads\":%d,\"cachedBytes\":%llu,\"gemm\":\"%s\"}", isa().name, workerCount(),
                static_cast<unsigned long long>(allocator().cached()), escaped(onednnStatus()).c_str());
}
int32_t streamCreate(int32_t, void** stream) {
  *stream = nullptr;
  return MM_OK;
}
void streamDestroy(void*) {}
int32_t allocate(void*, uint64_t bytes, void** data, char* error, uint64_t error_size) {
  *data = allocator().take(bytes);
  if (*data) return MM_OK;
  std::snprintf(error, error_size, "out of memory: %llu bytes could not be allocated", static_cast<unsigned long long>(bytes));
  return MM_ERR_OUT_OF_MEMORY;
}
void release(void*, void* data, uint64_t bytes) { allocator().give(data, bytes); }
int32_t upload(void*, void* dst, const void* host, uint64_t bytes, char*, uint64_t) {
  if (bytes) std::memcpy(dst, host, bytes);
  return MM_OK;
}
int32_t zero(void*, void* dst, uint64_t bytes, char*, uint64_t) {
  std::memset(dst, 0, bytes);
  return MM_OK;
}
int32_t readBegin(void*, void* host, const void* src, uint64_t bytes, void** ticket, char*, uint64_t) {
  *ticket = nullptr;
  if (bytes) std::memcpy(host, src, bytes);
  return MM_OK;
}
int32_t readEnd(void*, char*, uint64_t) { return MM_OK; }

}  // namespace

const MMBackend* backend() {
  static const MMBackend* table = [] {
    static const auto* kernels = new std::vector<MMKernelEntry>(collectKernels());
    return new MMBackend{MM_ABI_VERSION, sizeof(MMBackend), "cpu",    kernels->data(), kernels->size(), deviceCount, deviceInfo, streamCreate,
                         streamDestroy,  allocate,          release,  upload,          zero,            readBegin,   readEnd,    nullptr,
                         nullptr,        nullptr,           nullptr};
  }();
  return table;
}

}  // namespace mm::cpu
