// run(): from operands and attributes to queued work. Checks by the schema, picks the kernel by the operands' device,
// makes dense copies where a kernel needs them, declares the outputs and enqueues the call.
#pragma once
#include <vector>

#include "core/storage.h"
#include "core/stream.h"

namespace mm {

using Operands = std::vector<std::vector<Tensor>>;  // by slot; an absent optional operand is an empty slot

// `attrs`: one double or int64 (by the schema's kinds) in each 8-byte field. Throws OpError.
Operands run(const std::shared_ptr<Stream>& stream, int op, Operands inputs, std::vector<uint64_t> attrs);

Tensor emptyTensor(const std::shared_ptr<Stream>& stream, int32_t dtype, const Shape& shape, Shape strides = {});
Tensor denseCopy(const Tensor& t);

}  // namespace mm
