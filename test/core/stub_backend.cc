// A device library without a device: one "cuda" whose memory is the host's and which has no kernel. It shows on any machine
// what happens between devices.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "abi/backend.h"

extern "C" __attribute__((visibility("default"))) const MMBackend* mm_backend_entry(uint32_t version) {
  static MMBackend b{};
  b.abi_version = MM_ABI_VERSION, b.struct_size = sizeof b, b.name = "cuda";
  b.device_count = [](char*, uint64_t) { return 1; };
  b.device_info = [](int32_t, char* json, uint64_t size) { std::snprintf(json, size, "{}"); };
  b.stream_create = [](int32_t, void** stream) { return *stream = &b, int32_t{MM_OK}; };
  b.stream_destroy = [](void*) {};
  b.allocate = [](void*, uint64_t bytes, void** data, char*, uint64_t) {
    return (*data = std::malloc(bytes ? bytes : 1)) ? int32_t{MM_OK} : int32_t{MM_ERR_OUT_OF_MEMORY};
  };
  b.release = [](void*, void* data, uint64_t) { std::free(data); };
  b.upload = [](void*, void* dst, const void* src, uint64_t n, char*, uint64_t) { return std::memcpy(dst, src, n), int32_t{MM_OK}; };
  b.zero = [](void*, void* dst, uint64_t n, char*, uint64_t) { return std::memset(dst, 0, n), int32_t{MM_OK}; };
  b.read_begin = [](void*, void* dst, const void* src, uint64_t n, void** ticket, char*, uint64_t) {
    if (n) std::memcpy(dst, src, n);
    return *ticket = nullptr, int32_t{MM_OK};
  };
  b.read_end = [](void*, char*, uint64_t) { return int32_t{MM_OK}; };
  return version == MM_ABI_VERSION ? &b : nullptr;
}
