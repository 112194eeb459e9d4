#include "core/backends.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "abi/cut_off.h"
#include "cpu/backend.h"

namespace mm {

namespace {

struct Loaded {
  const MMBackend* backend = nullptr;
  std::string reason, library;
};

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
