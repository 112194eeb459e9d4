#pragma once
#include "abi/backend.h"

namespace mm::cpu {

const MMBackend* backend();

}  // namespace mm::cpu
