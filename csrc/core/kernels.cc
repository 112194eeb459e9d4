#include "core/kernels.h"

#include <map>
#include <mutex>
#include <vector>

#include "core/registry.h"

namespace mm {

namespace {
using Table = std::vector<std::vector<const MMKernelEntry*>>;

const Table& tableOf(const MMBackend* backend) {
  static auto* tables = new std::map<const MMBackend*, Table>;
  static auto* mutex = new std::mutex;
  std::lock_guard<std::mutex> lock(*mutex);
  auto found = tables->find(backend);
  if (found != tables->end()) return found->second;
  Table table(schemas().size());
  for (uint64_t i = 0; i < backend->kernel_count; i++) {
    const int op = opId(backend->kernels[i].op);
    if (op >= 0) table[op].push_back(&backend->kernels[i]);
  }
  return tables->emplace(backend, std::move(table)).first->second;
}
}  // namespace

const MMKernelEntry* pickKernel(const MMBackend* backend, int op, const MMCall* call) {
  for (const MMKernelEntry* entry : tableOf(backend)[op])
    if (!entry->supports || entry->supports(call)) return entry;
  return nullptr;
}

bool hasKernel(const MMBackend* backend, int op) { return !tableOf(backend)[op].empty(); }

}  // namespace mm
