// All operator schemas, by id (the order of ops/ops.inc) and by name.
#pragma once
#ifndef MM_OP_SCHEMA
#define MM_OP_SCHEMA
#endif
#include "ops/schema.h"

namespace mm {

const std::vector<Schema>& schemas();
int opId(const char* name);  // -1 when unknown

}  // namespace mm
