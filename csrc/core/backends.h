// The device backends: the CPU's is part of this library, the others are shared libraries that are opened when asked for.
#pragma once
#include <string>
#include <vector>

#include "abi/backend.h"

namespace mm {

struct BackendStatus {
  std::string name;
  bool available = false;
  std::string reason;       // why it is not available
  std::string library;      // the file it was loaded from
  std::vector<std::string> devices;  // JSON object of each device
};

// Null with a reason when it is not available. `search`: absolute paths that are tried in order for a library.
const MMBackend* findBackend(const std::string& name, const std::vector<std::string>& search, std::string& reason);
BackendStatus backendStatus(const std::string& name, const std::vector<std::string>& search);

}  // namespace mm
