// Where the time goes: nanoseconds and calls by kernel, counted on the executors while switched on.
#pragma once
#include <cstdint>
#include <vector>

#include "abi/backend.h"

namespace mm {

struct ProfileRow {
  const MMKernelEntry* kernel;
  int64_t calls, nanoseconds;
};

bool profiling();
void setProfiling(bool on);
void recordKernel(const MMKernelEntry* kernel, int64_t nanoseconds);
// What was counted since the last call.
std::vector<ProfileRow> takeProfile();

}  // namespace mm
