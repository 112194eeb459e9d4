// Sizes and names of the element types.
#pragma once
#include <cstdint>

#include "abi/backend.h"

namespace mm {

constexpr int kDtypeCount = 5;

constexpr int64_t dtypeSize(int32_t dtype) {
  constexpr int64_t sizes[kDtypeCount] = {4, 2, 2, 4, 1};
  return sizes[dtype];
}
const char* dtypeName(int32_t dtype);  // "f32", "bf16", ...

}  // namespace mm
