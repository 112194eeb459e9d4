// Kernel tables of the backends, indexed by op id.
#pragma once
#include "abi/backend.h"

namespace mm {

// The first entry of `op` that supports the call; null when there is none.
const MMKernelEntry* pickKernel(const MMBackend* backend, int op, const MMCall* call);
// Whether the backend has any entry for the op.
bool hasKernel(const MMBackend* backend, int op);

}  // namespace mm
