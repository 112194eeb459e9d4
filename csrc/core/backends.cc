#include "core/backends.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "cpu/backend.h"

#if defined(__linux__) && defined(__LP64__)
#include <elf.h>
#endif

namespace mm {

namespace {

struct Loaded {
  const MMBackend* backend = nullptr;
  std::string reason, library;
};

// Why a file must not be opened as a library; empty where dlopen may judge. One that was cut off has pages that are mapped
// but not there, and touching them ends the process with SIGBUS.
std::string cutOff(const std::string& path) {
#if defined(__linux__) && defined(__LP64__)
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const uint64_t size = file ? static_cast<uint64_t>(file.tellg()) : 0;
  Elf64_Ehdr header;
  if (size < sizeof header || !file.seekg(0).read(reinterpret_cast<char*>(&header), sizeof header)) return "";
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64) return "";
  uint64_t end = std::max(header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize, header.e_phoff + header.e_phnum * sizeof(Elf64_Phdr));
  if (header.e_phentsize == sizeof(Elf64_Phdr) && file.seekg(static_cast<std::streamoff>(header.e_phoff)))
    for (int i = 0; i < header.e_phnum; i++) {
      Elf64_Phdr segment;
      if (!file.read(reinterpret_cast<char*>(&segment), sizeof segment)) break;
      if (segment.p_type == PT_LOAD) end = std::max(end, segment.p_offset + segment.p_filesz);
    }
  if (size < end) return "the file is truncated: " + std::to_string(size) + " of " + std::to_string(end) + " bytes; build or install it again";
#endif
  return "";
}

Loaded openLibrary(const std::string& name, const std::vector<std::string>& search) {
  Loaded r;
  for (const std::string& path : search) {
    const std::string separator = r.reason.empty() ? "" : "; ";
    if (access(path.c_str(), F_OK)) {
      r.reason += separator + path + ": no such file";
      continue;
    }
    const std::string wrong = cutOff(path);
    if (!wrong.empty()) {
      r.reason += separator + path + ": " + wrong;
      continue;
    }
    // Never closed again: its kernels may be queued, and a driver does not survive being unloaded.
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      r.reason += separator + dlerror();
      continue;
    }
    const auto entry = reinterpret_cast<MMBackendEntry>(dlsym(handle, "mm_backend_entry"));
    const MMBackend* backend = entry ? entry(MM_ABI_VERSION) : nullptr;
    if (!entry) r.reason += separator + path + ": not a backend library (no mm_backend_entry)";
    else if (!backend || backend->abi_version != MM_ABI_VERSION || backend->struct_size != sizeof(MMBackend))
      r.reason += separator + path + ": built for another version of mmmamba (backend ABI " + std::to_string(MM_ABI_VERSION) +
                  " is needed); rebuild or reinstall it";
    else {
      char text[512] = "";
      r.library = path;
      if (backend->device_count(text, sizeof text) > 0) {
        r.backend = backend;
        r.reason.clear();
      } else {
        r.reason = text;
      }
      return r;
    }
  }
  if (search.empty()) r.reason = "no library of the " + name + " backend is installed";
  return r;
}

const Loaded& load(const std::string& name, const std::vector<std::string>& search) {
  static auto* cache = new std::map<std::string, Loaded>;
  static auto* mutex = new std::mutex;
  std::lock_guard<std::mutex> lock(*mutex);
  auto found = cache->find(name);
  if (found != cache->end()) return found->second;
  Loaded r;
  if (name == "cpu") r.backend = cpu::backend();
  else r = openLibrary(name, search);
  return cache->emplace(name, std::move(r)).first->second;
}

}  // namespace

const MMBackend* findBackend(const std::string& name, const std::vector<std::string>& search, std::string& reason) {
  const Loaded& l = load(name, search);
  reason = l.reason;
  return l.backend;
}

BackendStatus backendStatus(const std::string& name, const std::vector<std::string>& search) {
  const Loaded& l = load(name, search);
  BackendStatus s;
  s.name = name, s.available = l.backend != nullptr, s.reason = l.reason, s.library = l.library;
  if (l.backend) {
    char text[1024] = "";
    const int n = l.backend->device_count(text, sizeof text);
    for (int i = 0; i < n; i++) {
      l.backend->device_info(i, text, sizeof text);
      s.devices.push_back(text);
    }
  }
  return s;
}

}  // namespace mm
