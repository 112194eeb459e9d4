#include "core/profile.h"

#include <atomic>
#include <map>
#include <mutex>

namespace mm {

namespace {
std::atomic<bool> on{false};
std::mutex& mutex() {
  static auto* m = new std::mutex;
  return *m;
}
std::map<const MMKernelEntry*, ProfileRow>& rows() {
  static auto* r = new std::map<const MMKernelEntry*, ProfileRow>;
  return *r;
}
}  // namespace

bool profiling() { return on.load(std::memory_order_relaxed); }
void setProfiling(bool value) { on.store(value, std::memory_order_relaxed); }

void recordKernel(const MMKernelEntry* kernel, int64_t nanoseconds) {
  std::lock_guard<std::mutex> lock(mutex());
  ProfileRow& row = rows().try_emplace(kernel, ProfileRow{kernel, 0, 0}).first->second;
  row.calls++, row.nanoseconds += nanoseconds;
}

std::vector<ProfileRow> takeProfile() {
  std::lock_guard<std::mutex> lock(mutex());
  std::vector<ProfileRow> out;
  for (const auto& [kernel, row] : rows()) out.push_back(row);
  rows().clear();
  return out;
}

}  // namespace mm
